"""Runs a suite of benchmarks, or redraws pictures from result files: `python -m benchmarks SUITE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import RESULTS, suites
from benchmarks.suites import SUITES


def parser_for(given: Sequence[str]) -> argparse.ArgumentParser:
    """Command line; only the suite that is asked for is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Benchmarks of selective-kernels. Each suite checks its results before it times anything.",
    )
    commands = parser.add_subparsers(dest="command", metavar="SUITE", required=True)
    for name in SUITES:
        line = suites.line_of(name)
        command = commands.add_parser(name, help=line, description=line)
        suites.add_common(command)
        if given[:1] == [name]:
            suites.load(name).add_options(command)
            command.set_defaults(suite_parser=command)
    line = "draws the pictures of result files again, without measuring"
    redraw = commands.add_parser("plot", help=line, description=line)
    redraw.add_argument("suites", nargs="*", metavar="SUITE", help=f"any of {', '.join(SUITES)}; default: all")
    redraw.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="of CSV and PNG files")
    return parser


def measure(options: argparse.Namespace) -> int:
    """Runs one suite; 0, 1 if a result is wrong, 2 if something is missing. A missed bar is no error."""
    import torch

    from benchmarks.gate import Mismatch
    from benchmarks.report import write_csv

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA GPU here", file=sys.stderr)
        return 2
    suite = suites.load(options.command)
    try:
        rows = suite.run(options)
    except Mismatch as error:
        print(f"WRONG RESULT, no time is reported: {error}", file=sys.stderr)
        return 1
    except suites.CannotRun as error:
        print(f"python -m benchmarks {options.command}: {error}", file=sys.stderr)
        return 2
    table = suites.result_path(options.command, options, "csv")
    picture = suites.result_path(options.command, options, "png")
    if table is not None:
        write_csv(table, rows)
        print(f"written: {table}")
    if picture is not None:
        suite.plot([{key: str(value) for key, value in row.items()} for row in rows], picture)
        print(f"written: {picture}")
    return 0


def redraw(options: argparse.Namespace) -> int:
    """Draws what result files of a folder say; 0, or 2 if there is none of a suite that was named."""
    if unknown := set(options.suites) - set(SUITES):
        print(f"SUITE: expected some of {', '.join(SUITES)}, got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    for name in options.suites or SUITES:
        found = [path for path in (options.results / f"{name}{end}.csv" for end in ("", "-cuda")) if path.exists()]
        if not found and name in options.suites:
            print(f"{options.results}: expected {name}.csv, got no such file", file=sys.stderr)
            return 2
        for path in found:
            suites.load(name).plot(suites.read_csv(path), path.with_suffix(".png"))
            print(f"written: {path.with_suffix('.png')}")
    return 0


def main(given: Sequence[str] | None = None) -> int:
    """Exit code."""
    words = sys.argv[1:] if given is None else list(given)
    options = parser_for(words).parse_args(words)
    if options.command == "plot":
        return redraw(options)
    own = vars(options).pop("suite_parser")
    options.narrowed = suites.narrowed(options, own)
    return measure(options)


if __name__ == "__main__":
    raise SystemExit(main())
