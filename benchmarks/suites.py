"""What a suite of benchmarks is, and the options that all suites have."""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from benchmarks import RESULTS, ROOT

NONE = "none with the preset small, or if anything is left out or added"
SUITES = ("ops", "step", "end2end", "memory", "scaling")  # modules of this package, in the order of `make bench`
DTYPES = ("float32", "bfloat16", "float16")


class CannotRun(Exception):
    """Something that a suite needs is not there, or an option has no meaning for it; the message says which."""


class Suite(Protocol):
    """A module of this package that can be run as `python -m benchmarks NAME`."""

    LINE: str
    """What it measures, in one line; a literal, since help shows it without importing the module."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that only this suite has."""

    def run(self, options: argparse.Namespace) -> list[dict[str, object]]:
        """Checks, measures, prints a table and which bars are held; returns CSV rows, all with the same columns.

        Raises:
            gate.Mismatch: a result is wrong; nothing is reported.
            CannotRun: something is missing.
        """

    def plot(self, rows: Sequence[Mapping[str, str]], path: Path) -> None:
        """Draws the rows of a CSV file into a PNG file."""


def load(name: str) -> Suite:
    """The module of a suite."""
    return cast(Suite, importlib.import_module(f"benchmarks.{name}"))


def line_of(name: str) -> str:
    """`LINE` of a suite's source, which is read and not run: help must not wait for torch."""
    path = ROOT / "benchmarks" / f"{name}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == "LINE" for each in targets):
            return str(ast.literal_eval(cast(ast.Assign, node).value))
    return ""


def narrowed(options: argparse.Namespace, parser: argparse.ArgumentParser) -> bool:
    """Whether something was asked for that is not what result files hold: other models, methods, rounds, ..."""
    free = ("command", "preset", "device", "csv", "plot", "other_rows")
    return any(value != parser.get_default(name) for name, value in vars(options).items() if name not in free)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every suite has."""
    parser.add_argument("--preset", choices=("small", "full"), default="full", help="small: to try it, in seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="default: chosen by the suite")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: chosen by the suite")
    parser.add_argument("--threads", type=_positive, help="torch's and the kernels'; default: torch's")
    parser.add_argument("--rounds", type=_positive, help="timed rounds; default: chosen by the suite")
    parser.add_argument("--csv", type=Path, metavar="PATH", help=f"default: benchmarks/results/SUITE.csv; {NONE}")
    parser.add_argument("--plot", type=Path, metavar="PATH", help=f"default: benchmarks/results/SUITE.png; {NONE}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


def result_path(name: str, options: argparse.Namespace, suffix: str) -> Path | None:
    """Where the CSV (suffix "csv") or the picture ("png") of a suite goes; None: nowhere."""
    given: Path | None = options.csv if suffix == "csv" else options.plot
    if given is not None or options.preset == "small" or options.narrowed:
        return given
    return RESULTS / f"{name}{'' if options.device == 'cpu' else f'-{options.device}'}.{suffix}"


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a result file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
