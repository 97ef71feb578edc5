"""What a benchmark leaves behind: a table on the screen and a CSV that says where its numbers come from."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import RESULTS as RESULTS
from benchmarks import ROOT

COMMIT_VARIABLE = "SELECTIVE_KERNELS_COMMIT"
# What a measured number depends on; the results themselves do not make a tree dirty.
SOURCES = ("csrc", "selective_kernels", "python", "benchmarks/*.py", "CMakeLists.txt", "setup.py", "pyproject.toml")


def cpu_model() -> str:
    """Name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the checked-out commit, "-dirty" if a source differs from it.

    A copy of the files without a repository is what the variable SELECTIVE_KERNELS_COMMIT says, else "unknown".
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", *SOURCES) else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT_VARIABLE, "unknown")


def version(distribution: str) -> str:
    """Installed version of a distribution, "" if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def driver() -> str:
    """Version of NVIDIA's driver, "" if its tool does not say."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.split("\n")[0].strip()


def environment() -> dict[str, str]:
    """Machine, versions, commit and time, for each row of a CSV."""
    from selective_kernels import _native

    module, _ = _native.load()
    return {
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "isa": "none" if module is None else str(module.isa()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "selective_kernels": version("selective-kernels"),
        "selective_optimizers": version("selective-optimizers"),
        "commit": commit(),
        "utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def describe(stamp: Mapping[str, str]) -> str:
    """An environment in one line."""
    return (
        f"{stamp['cpu']}, {stamp['cores']} cores, {stamp['threads']} threads, kernels {stamp['isa']}, "
        f"torch {stamp['torch']}, python {stamp['python']}, commit {stamp['commit']}"
    )


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Replaces a CSV file at once, see `write_text`.

    Raises:
        ValueError: no rows, or rows with different columns.
    """
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError("rows: expected one row or more, all with the same columns")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: another reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, text=True)
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> str:
    """Aligned columns: the first to the left, the others to the right, a rule below the header."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        padded[0] = cells[0].ljust(widths[0])
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*([title] if title else []), line(header), rule, *map(line, rows)])


def format_bytes(count: float) -> str:
    """Bytes in the largest decimal unit that leaves a number >= 1."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
