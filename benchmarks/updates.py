"""Adds up a whole run's scalar updates: `python -m benchmarks.updates` (`make bench-all`).

ID3 spends its budget along the run, so that over T steps it updates (T + 1) / 2T of the scalars that a static selection
of the same size does (paper, Sec. 3). Both runs are made in one process, a step of each in turn, on the same gradients
(two random sets take turns); what is added up is the number of updated scalars and the time of the update kernel, and
beside it the time of the whole optimizer, selection included. First the result is checked.

A run is repeated, with exactly the same work in each of its steps. Of each step the median time counts: what else a
busy machine does adds about the same to every call, however little it updates, and would move the ratio towards 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import gate, rivals
from benchmarks.harness import Contender, interleave
from benchmarks.report import RESULTS, describe, environment, format_table, write_csv
from benchmarks.resident import warm_threads
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, copies, random_tensors, total
from selective_kernels.ranges import stopwatch

STATIC, INCREMENT = "static", "increment"
CHECKED_STEPS = 2
TARGET = 0.55  # of the static run's updates, and of their time


@dataclass(frozen=True)
class Case:
    """What to run: the shapes of a model, a budget, and how long and how often."""

    model: str
    budget: int
    total_steps: int
    repeats: int

    @property
    def title(self) -> str:
        """For screens."""
        scalars = total(MODELS[self.model])
        return f"{self.model} ({scalars:,} scalars), float32, budget {self.budget:,}, {self.total_steps} steps"


@dataclass
class Steps:
    """The steps of a run, in order.

    Attributes:
        updates: how many scalars each updated.
        update_seconds: in the update kernel and its checks.
        optimizer_seconds: in the whole step.
    """

    updates: list[int] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: Sequence[float] = ()


Run = Mapping[str, Steps]  # by strategy


def one_run(base: Sequence[Tensor], grads: rivals.GradSets, case: Case, tick: Callable[[], object]) -> dict[str, Steps]:
    """A whole run of each strategy, a step of each in turn.

    Raises:
        gate.Mismatch: a run does not end with its budget spent.
    """
    steps = {strategy: Steps() for strategy in (STATIC, INCREMENT)}
    optimizers = {}
    contenders = []
    for strategy, noted in steps.items():
        params = copies(base)
        optimizers[strategy] = rivals.whole_run(params, case.budget, case.total_steps, strategy)
        stepped = partial(_step, optimizers[strategy], noted)
        contenders.append(Contender(strategy, stepped, partial(_set_grads, params, grads)))
    timings = interleave(contenders, case.total_steps, 0, tick)
    for strategy, optimizer in optimizers.items():
        steps[strategy].optimizer_seconds = timings[strategy].seconds
        if optimizer.num_selected != case.budget or optimizer.skipped_steps:
            raise gate.Mismatch(f"{strategy}: expected {case.budget} scalars, got {optimizer.num_selected}")
    return steps


def _set_grads(params: Sequence[Tensor], grads: rivals.GradSets, number: int) -> None:
    for param, grad in zip(params, grads[number % len(grads)], strict=True):
        param.grad = grad


def _step(optimizer: SelectiveAdamW, noted: Steps) -> None:
    with stopwatch() as ranges:
        optimizer.step()
    noted.updates.append(optimizer.num_selected)  # every tensor has a gradient, so all that are selected by now
    noted.update_seconds.append(ranges["update"])


def measure(case: Case) -> list[dict[str, Steps]]:
    """Checks, then makes the runs, one for each repeat.

    Raises:
        gate.Mismatch: the kernels do not agree with the reference, or a run does not spend its budget.
    """
    shapes = MODELS[case.model]
    base = random_tensors(shapes, PARAM_STD, torch.float32, seed=0)
    grads = [random_tensors(shapes, GRAD_STD, torch.float32, seed=seed) for seed in (1, 2)]
    for strategy in (STATIC, INCREMENT):
        share = case.total_steps if strategy == STATIC else min(CHECKED_STEPS, case.total_steps)
        make = partial(_whole_run, case, strategy)
        gate.agree(base, grads, make, case.budget * share // case.total_steps, CHECKED_STEPS)
    gate.check(base, grads, case.budget, case.total_steps)
    print("checked: the same scalars as the reference, equal values", flush=True)
    warm_threads()
    with tqdm(total=case.repeats * case.total_steps, unit="step", leave=False) as bar:
        return [one_run(base, grads, case, bar.update) for _ in range(case.repeats)]


def _whole_run(case: Case, strategy: str, params: list[Tensor], backend: str) -> SelectiveAdamW:
    return rivals.whole_run(params, case.budget, case.total_steps, strategy, backend)


def typical(repeats: Sequence[Sequence[float]]) -> float:
    """Seconds of a run: the sum over its steps of the median of the repeats."""
    return float(sum(statistics.median(step) for step in zip(*repeats, strict=True)))


def rows_of(case: Case, runs: Sequence[Run], stamp: Mapping[str, str]) -> list[dict[str, object]]:
    """A CSV row for each strategy. Minimum and maximum of the ratio are over the repeats, each with its own sums."""
    rows = []
    whole = typical([run[STATIC].update_seconds for run in runs])
    for strategy in (STATIC, INCREMENT):
        updates, of_static = (sum(runs[0][each].updates) for each in (strategy, STATIC))
        seconds = typical([run[strategy].update_seconds for run in runs])
        compared = [sum(run[strategy].update_seconds) / sum(run[STATIC].update_seconds) for run in runs]
        row: dict[str, object] = {
            "model": case.model,
            "scalars": total(MODELS[case.model]),
            "tensors": len(MODELS[case.model]),
            "dtype": "float32",
            "budget": case.budget,
            "total_steps": case.total_steps,
            "strategy": strategy,
            "repeats": case.repeats,
            "updates": updates,
            "updates_ratio": f"{updates / of_static:.4f}",
            "update_seconds": f"{seconds:.6f}",
            "update_ratio": f"{seconds / whole:.4f}",
            "update_ratio_min": f"{min(compared):.4f}",
            "update_ratio_max": f"{max(compared):.4f}",
            "ns_per_update": f"{1e9 * seconds / updates:.3f}",
            "optimizer_seconds": f"{typical([run[strategy].optimizer_seconds for run in runs]):.6f}",
        }
        rows.append({**row, **stamp})
    return rows


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one case as a table."""
    header = ("", "updates", "of static", "kernel ms", "of static", "min - max", "ns per update", "optimizer ms")
    lines = [
        [
            str(row["strategy"]),
            f"{row['updates']:,}",
            str(row["updates_ratio"]),
            f"{1e3 * float(str(row['update_seconds'])):.1f}",
            str(row["update_ratio"]),
            f"{row['update_ratio_min']} - {row['update_ratio_max']}",
            str(row["ns_per_update"]),
            f"{1e3 * float(str(row['optimizer_seconds'])):.1f}",
        ]
        for row in rows
    ]
    return format_table(header, lines)


def verdicts(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """One line per aim: measured, wanted, met or not."""
    lines = []
    for row in rows:
        if row["strategy"] == INCREMENT:
            for name, column in (("scalar updates", "updates_ratio"), ("update time", "update_ratio")):
                met = "met" if float(str(row[column])) <= TARGET else "NOT MET"
                lines.append(f"{row['budget']:,}: {name} {row[column]} of static, target <= {TARGET}: {met}")
    return lines


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The runs asked for."""
    small = options.preset == "small"
    budgets = options.budget or ([100_000] if small else [1_000_000, 4_000_000])
    steps = options.steps or (10 if small else 100)
    repeats = options.repeats or (1 if small else 5)
    return [Case("minilm-l6" if small else "bert-base", budget, steps, repeats) for budget in budgets]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.updates", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", choices=("full", "small"), default="full", help="small: MiniLM, one short run")
    parser.add_argument("--budget", type=int, action="append", help="default: 1000000 and 4000000; small: 100000")
    parser.add_argument("--steps", type=int, help="of a run, default 100; small: 10")
    parser.add_argument("--repeats", type=int, help="runs of each strategy, default 5; small: 1")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/updates.csv; small: none")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if the result is wrong. A missed target is reported, it is not an error."""
    options = arguments(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    stamp = environment()
    print(describe(stamp))
    rows: list[dict[str, object]] = []
    for case in cases_of(options):
        print(f"\n{case.title}", flush=True)
        try:
            mine = rows_of(case, measure(case), stamp)
        except gate.Mismatch as error:
            print(f"WRONG RESULT, no time is reported: {error}", file=sys.stderr)
            return 1
        rows.extend(mine)
        print(screen(mine))
    print("\nTargets\n" + "\n".join(verdicts(rows)))
    path = options.csv or (None if options.preset == "small" else RESULTS / "updates.csv")
    if path is not None:
        write_csv(path, rows)
        print(f"\nwritten: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
