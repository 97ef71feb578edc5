"""Times the operations of another commit and of this tree in turn: `make bench-compare BASE=<commit>`.

The other commit is checked out in a temporary worktree and installed into build/compare, with kernels of its own; what
is measured, and how, is this tree's `benchmarks/test_ops.py` for both. Each pair of processes gives a ratio of the
fastest rounds, which other work on the machine disturbs least; an operation counts as slower if it is in every pair.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.report import format_table

FOLDER = ROOT / "build" / "compare"
LIMIT = 1.15  # times the other commit's time
BASE, TREE = "base", "tree"


class CannotCompare(Exception):
    """Something that a comparison needs is not there; the message says what."""


@dataclass(frozen=True)
class Ratios:
    """Of one operation: milliseconds of both sides, and this tree's time over the other commit's in each pair."""

    name: str
    base_ms: float
    tree_ms: float
    pairs: tuple[float, ...]

    def slower(self, limit: float) -> bool:
        """Whether this tree takes more than `limit` times as long in every pair."""
        return min(self.pairs) > limit


def git(*arguments: str) -> str:
    """What git prints.

    Raises:
        CannotCompare: it fails.
    """
    done = subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCompare(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def resolved(name: str) -> str:
    """The full hash of a commit.

    Raises:
        CannotCompare: there is none of that name.
    """
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except CannotCompare as error:
        raise CannotCompare(f"BASE: expected a commit, such as HEAD~1, got {name!r}") from error


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A temporary checkout of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "source")
        git("worktree", "add", "--detach", str(place), commit)
        try:
            yield place
        finally:
            git("worktree", "remove", "--force", str(place))


def installed(commit: str) -> Path:
    """Folder with the packages of a commit, built from its sources unless that was done before.

    Raises:
        CannotCompare: it does not build.
    """
    site = FOLDER / commit
    if site.exists():
        return site
    FOLDER.mkdir(parents=True, exist_ok=True)
    with worktree(commit) as source, tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        target = Path(folder, "site")
        command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotCompare(f"{commit} does not build:\n{done.stderr[-3000:]}")
        shutil.move(target, site)
    return site


def measure(site: Path | None, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs the benchmarks of the operations in a new process.

    Args:
        site: folder of the packages to measure; None for the installed ones.
        out: of pytest-benchmark's JSON.
        options: model, rounds and threads.

    Returns:
        Seconds of the fastest round, by name.

    Raises:
        CannotCompare: they fail, or what was measured is not in that folder.
    """
    search = [str(site)] * (site is not None) + [path for path in [os.environ.get("PYTHONPATH", "")] if path]
    with tempfile.TemporaryDirectory() as empty:  # `-m` puts the folder where it starts first on the path
        command = (
            sys.executable, "-m", "pytest", str(ROOT / "benchmarks" / "test_ops.py"), "-q", "-p", "no:cacheprovider",
            "-c", str(ROOT / "pyproject.toml"), "--benchmark-only", "--benchmark-disable-gc",
            f"--benchmark-json={out}", f"--op-model={options.model}", f"--op-rounds={options.rounds}",
            f"--op-threads={options.threads}",
        )  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCompare(f"the benchmarks fail with {site or 'the installed packages'}:\n{done.stdout[-3000:]}")
    found = json.loads(out.read_text(encoding="utf-8"))["benchmarks"]
    for each in found:
        package = Path(each["extra_info"]["package"])
        if site is not None and site.resolve() not in package.resolve().parents:
            raise CannotCompare(f"expected to measure what is in {site}, got {package}")
    return {each["name"]: float(each["stats"]["min"]) for each in found}


def compare(site: Path, folder: Path, options: argparse.Namespace) -> list[Ratios]:
    """Measures both sides in turn; who goes first changes from pair to pair.

    Args:
        site: the other commit's packages.
        folder: of the JSON files.
        options: model, rounds, threads and pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    times: dict[str, list[dict[str, float]]] = {BASE: [], TREE: []}
    for number in range(options.pairs):
        for side in (BASE, TREE) if number % 2 == 0 else (TREE, BASE):
            found = measure(site if side == BASE else None, folder / f"{side}-{number}.json", options)
            times[side].append(found)
            print(f"pair {number + 1} of {options.pairs}: {side} measured", flush=True)
    return ratios(times)


def ratios(times: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Ratios]:
    """Of the operations that both sides have.

    Args:
        times: of `BASE` and of `TREE`: seconds by name, for each pair.
    """
    found = []
    for name in (name for name in times[BASE][0] if name in times[TREE][0]):
        base, tree = ([each[name] for each in times[side]] for side in (BASE, TREE))
        pairs = tuple(mine / theirs for mine, theirs in zip(tree, base, strict=True))
        label = name.removeprefix("test_op[").removesuffix("]")
        found.append(Ratios(label, 1e3 * statistics.median(base), 1e3 * statistics.median(tree), pairs))
    return found


def screen(found: Sequence[Ratios], limit: float) -> str:
    """A line per operation: times, ratio with its range over the pairs, verdict."""
    lines = [
        (
            each.name,
            f"{each.base_ms:.3f}",
            f"{each.tree_ms:.3f}",
            f"{statistics.median(each.pairs):.3f}",
            f"{min(each.pairs):.3f} - {max(each.pairs):.3f}",
            "SLOWER" if each.slower(limit) else "",
        )
        for each in found
    ]
    return format_table(("", "base ms", "this tree ms", "ratio", "min - max", ""), lines)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("base", help="the other commit: a hash, a branch, HEAD~3")
    parser.add_argument("--pairs", type=int, default=3, help="of processes, default 3")
    parser.add_argument("--rounds", type=int, default=15, help="of an operation in a process, default 15")
    parser.add_argument("--model", default="minilm-l6", help="default: minilm-l6")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's; 1 where others use the machine, too")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"largest ratio of the times, default {LIMIT}")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 if an operation became slower; 2 if they cannot be compared."""
    options = arguments(given)
    try:
        if options.pairs < 1:
            raise CannotCompare(f"--pairs: expected an integer >= 1, got {options.pairs}")
        commit = resolved(options.base)
        print(f"base: {commit[:12]}; this tree: what is installed", flush=True)
        found = compare(installed(commit), FOLDER / "runs", options)
    except CannotCompare as error:
        print(f"python -m benchmarks.compare: {error}", file=sys.stderr)
        return 2
    print(f"\n{screen(found, options.limit)}")
    slower = [each.name for each in found if each.slower(options.limit)]
    print(f"\nslower than {options.limit:g} x base in each of {options.pairs} pairs: {', '.join(slower) or 'nothing'}")
    return 1 if slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
