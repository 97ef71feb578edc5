"""Single operations on a list of tensors: how long each takes beside PyTorch's ways, and beside moving its bytes.

One combination of model, dtype, shares and threads is the base; from it one thing is varied at a time. In each round
every contender takes its turn with an empty cache, as after a backward pass, and so do two probes that read and copy a
large buffer: a percentage compares with the bandwidth of the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import op_indexing, op_merging, op_topk, op_update
from benchmarks.bars import format_bars
from benchmarks.cold import Cold
from benchmarks.device import Clock, gpu_environment
from benchmarks.harness import interleave
from benchmarks.op_grid import ALL_AXES, ALONE, THOROUGH, points, takes
from benchmarks.op_pictures import draw
from benchmarks.op_probes import probes
from benchmarks.op_problem import ALL, NONE, QUICK, Made, Point, Problem, make
from benchmarks.op_report import bars, rows_of, screen
from benchmarks.report import describe, environment
from selective_kernels.testing import num_threads, use_isa

LINE = "single operations (scan + top-k, update, merge, gather, scatter, swap) against PyTorch's ways"
MAKERS: dict[str, Callable[[Problem], Made]] = {
    "scan+topk": op_topk.made,
    "update": op_update.made,
    "merge": op_merging.made,
    "gather": op_indexing.gathering,
    "scatter": op_indexing.scattering,
    "swap": op_indexing.swapping,
}
ROUNDS = {"small": 3, "full": 7}
SMALL_BUFFER = 8 << 20  # bytes that probes read and that are written between runs in the small preset


def add_options(parser: argparse.ArgumentParser) -> None:
    """The operations, and what is varied."""
    parser.add_argument("--ops", nargs="+", choices=tuple(MAKERS), help="default: all")
    parser.add_argument("--axes", nargs="+", choices=ALL_AXES, help="what is varied; default: everything")


@contextmanager
def settings(point: Point) -> Iterator[None]:
    """Threads and instruction set of a point."""
    with num_threads(point.threads), use_isa(point.isa) if point.isa else nullcontext():
        yield


def measure(point: Point, ops: Sequence[str], setup: Setup, advance: Callable[[], object]) -> list[dict[str, object]]:
    """Checks and times some operations at a point; CSV rows.

    Raises:
        gate.Mismatch: a result is wrong.
    """
    rows = []
    rivals = NONE if point.axis in ALONE else ALL if point.axis in THOROUGH else QUICK
    with settings(point):
        problem = make(point, rivals, setup.clock.device)
        for op in ops:
            made = MAKERS[op](problem)
            made.check()
            timings = interleave([*setup.probes, *made.contenders], setup.rounds, timer=setup.cold)
            rows.extend(rows_of(op, point, problem, made, timings, setup.probed, setup.stamp))
            advance()
    return rows


class Setup:
    """What all points share: the clock, the probes and how many rounds are timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.clock = Clock(torch.device(options.device))
        buffer = SMALL_BUFFER if options.preset == "small" else None
        self.cold = Cold(self.clock, buffer)
        self.probes, self.probed = probes(self.clock, buffer)
        self.rounds: int = options.rounds or ROUNDS[options.preset]
        self.stamp = environment()
        if self.clock.on_gpu:
            self.stamp |= gpu_environment(self.clock.device)


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """See `suites.Suite.run`."""
    wanted = options.ops or list(MAKERS)
    plan = [(point, [op for op in wanted if takes(op, point)]) for point in points(options)]
    setup = Setup(options)
    print(describe(setup.stamp), flush=True)
    rows: list[dict[str, object]] = []
    with tqdm(total=sum(len(ops) for _, ops in plan), unit="op", leave=False) as progress:
        for point, ops in plan:
            rows.extend(measure(point, ops, setup, progress.update) if ops else [])
            setup.clock.forget()
    for op in dict.fromkeys(str(row["op"]) for row in rows):
        print(f"\n{screen(rows, op)}")
    held = bars(rows)
    print(f"\n{format_bars(held) if held else 'No bars: they are for models of more than 20M scalars'}\n")
    return rows


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """See `suites.Suite.plot`."""
    draw(rows, path)
