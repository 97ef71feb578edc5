"""Which runs make a comparison: learning rates are chosen by the validation part, the same way for every method.

A cell is a data set, a method and a budget. Seed 0 tries three learning rates, half a decade apart; while the best one
is the largest or smallest, it tries the next one beyond. The other seeds run with the best one. The test part has no
say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.quality.jobs import EPS, EXP, NONE, Job
from benchmarks.quality.methods import METHODS
from benchmarks.quality.tasks import FULL, SMALL, Task

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHARE = 0.005  # the budget that every comparison has
ADAPTER_SHARES = (0.001, 0.005)  # adapters have fewer scalars than the next budget
MATH_EXP = 1.0  # of the D3 score, as in the paper for word problems (Table 11)
MATH = ("LoRA r=8", "LoRA r=2", "ID3", "LoRA r=8 + ID3")
Row = Mapping[str, str]
Ledger = Mapping[Job, Row]


@dataclass(frozen=True)
class Preset:
    """How much is run.

    Attributes:
        tasks: by data set.
        seeds: how many, from 0 on.
        shares: budgets, as shares of the base model's scalars, the usual one first.
        tries: learning rates of seed 0, an odd number; 1: the one that has won elsewhere.
        extend: whether to go beyond them while the best one is at an end.
        exps, epss: of the D3 score, of which all pairs are tried on film reviews.
    """

    tasks: Mapping[str, Task]
    seeds: int
    shares: tuple[float, ...]
    tries: int
    extend: bool
    exps: tuple[float, ...]
    epss: tuple[float, ...]


PRESETS = {
    "small": Preset(SMALL, 2, (SHARE,), 1, False, (0.0, 1.0), (1.0,)),
    "full": Preset(FULL, 3, (SHARE, 0.001, 0.02), 3, True, (0.0, 0.5, 1.0, 2.0), (0.01, 0.1, 1.0)),
}


def cells(preset: Preset) -> Iterator[Job]:
    """A job of each cell, learning rate and seed left open (0), what matters most first."""
    for share in preset.shares:
        usual = share == preset.shares[0]
        for data, task in preset.tasks.items():
            if usual:
                yield _cell(data, NONE, 0.0)
            if usual or task.budgets:
                yield from (_cell(data, method, share) for method in _methods(task, None if usual else share))


def _methods(task: Task, share: float | None) -> list[str]:
    """The methods that are run on a data set: all, or those with a budget that can be so large a share."""
    names = MATH if task.causal else tuple(METHODS)
    if share is None:
        return list(names)
    return [name for name in names if METHODS[name].budget and (not METHODS[name].adapter or share in ADAPTER_SHARES)]


def _cell(data: str, method: str, share: float) -> Job:
    way = METHODS.get(method)
    if way is None:
        return Job(data, NONE, 0.0, 0.0, 0)
    scored = (MATH_EXP if data == "asdiv" else EXP, EPS) if way.scored else (0.0, 0.0)
    return Job(data, method, share if way.budget else 0.0, 0.0, 0, *scored)


def scores(preset: Preset) -> list[Job]:
    """A job of each cell that differs from ID3's on film reviews in exp or eps only; exp 0 has no eps."""
    usual = _cell("reviews", "ID3", preset.shares[0])
    pairs = {(exp, eps if exp else EPS) for exp in preset.exps for eps in preset.epss}
    return [replace(usual, exp=exp, eps=eps) for exp, eps in sorted(pairs) if (exp, eps) != (EXP, EPS)]


def rates(cell: Job, preset: Preset) -> list[float]:
    """The first learning rates of a cell."""
    if cell.method == NONE:
        return [0.0]
    way, side = METHODS[cell.method], preset.tries // 2
    middle = LADDER.index(way.lr if side else way.won)
    return list(LADDER[middle - side : middle + side + 1])


def _merit(row: Row, by_loss: bool) -> tuple[float, float]:
    """What is larger for a better run: accuracy and minus the loss of the validation part, what counts first."""
    loss, accuracy = float(row["validation_loss"]), float(row["validation"])
    gain = -loss if math.isfinite(loss) else -math.inf
    return (gain, accuracy) if by_loss else (accuracy, gain)


def tuning(cell: Job, preset: Preset, ledger: Ledger) -> tuple[list[Job], float | None]:
    """The runs of seed 0 that are still to be made for now, and the learning rate once they are all there."""
    tried, by_loss = rates(cell, preset), preset.tasks[cell.data].by_loss
    while True:
        jobs = [replace(cell, lr=lr) for lr in tried]
        missing = [job for job in jobs if job not in ledger]
        if missing:
            return missing, None
        best = max(jobs, key=lambda job: _merit(ledger[job], by_loss)).lr
        beyond = _beyond(best, tried) if preset.extend and cell.method != NONE else None
        if beyond is None:
            return [], best
        tried = sorted([*tried, beyond])


def _beyond(best: float, tried: Sequence[float]) -> float | None:
    """The next learning rate outward if the best one is at an end, None if it is not, or there is none."""
    place = LADDER.index(best)
    if best == max(tried) and place + 1 < len(LADDER):
        return LADDER[place + 1]
    if best == min(tried) and place > 0:
        return LADDER[place - 1]
    return None


def runs(cell: Job, preset: Preset, ledger: Ledger) -> list[Job]:
    """The runs that a cell's mean is made of, one per seed; empty while the learning rate is not known."""
    _, lr = tuning(cell, preset, ledger)
    if lr is None:
        return []
    return [replace(cell, lr=lr, seed=seed) for seed in range(preset.seeds)]


def score_runs(preset: Preset, ledger: Ledger) -> list[Job]:
    """The runs of the cells of `scores`, with ID3's learning rate."""
    usual = _cell("reviews", "ID3", preset.shares[0])
    if "reviews" not in preset.tasks or not (found := runs(usual, preset, ledger)):
        return []
    return [replace(cell, lr=found[0].lr, seed=seed) for cell in scores(preset) for seed in range(preset.seeds)]


def check(preset: Preset, ledger: Ledger, device: str | None = None) -> None:
    """Raises ValueError if a row is not of a preset: another data set, length of training, or device (None: any)."""
    for job, row in ledger.items():
        task = preset.tasks.get(job.data)
        found = None if task is None else {name: row.get(name) for name in task.settings()}
        if task is None or found != task.settings():
            expected = "one of " + ", ".join(preset.tasks) if task is None else task.settings()
            raise ValueError(f"{job}: expected {expected}, got {found or job.data}; give another file with --csv")
        if device is not None and row.get("device") != device:
            raise ValueError(
                f"{job}: expected a run on {device}, got {row.get('device')}; give another file with --csv"
            )


def pending(preset: Preset, ledger: Ledger) -> list[Job]:
    """The runs that can be made now, in order; more may follow from their results."""
    found: list[Job] = []
    for cell in cells(preset):
        missing, lr = tuning(cell, preset, ledger)
        found += missing if lr is None else runs(cell, preset, ledger)
    found += score_runs(preset, ledger)
    return [job for job in dict.fromkeys(found) if job not in ledger]


def expected(preset: Preset, ledger: Ledger) -> int:
    """About how many runs there are in all: those known by now, and the other seeds of the rest."""
    known = len(set(pending(preset, ledger)) | set(ledger))
    later = sum(preset.seeds - 1 for cell in cells(preset) if not runs(cell, preset, ledger))
    if not score_runs(preset, ledger) and "reviews" in preset.tasks:
        later += len(scores(preset)) * preset.seeds
    return known + later
