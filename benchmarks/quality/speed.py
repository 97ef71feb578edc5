"""What a step of each method takes: `python -m benchmarks.quality.speed`, with nothing else running.

Film reviews, as in the comparison; with all threads, one method after the other for a few steps, in several rounds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

from torch import nn
from tqdm import tqdm, trange  # type: ignore[import-untyped]

from benchmarks import RESULTS
from benchmarks.quality import plan
from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plan import PRESETS, Preset
from benchmarks.quality.running import Trained, train
from benchmarks.quality.traces import DATA, FULL
from benchmarks.report import environment, write_csv
from benchmarks.resident import state_bytes
from benchmarks.reviews import MissingData

STEPS, ROUNDS = 20, 3


def jobs(preset: Preset) -> list[Job]:
    """A run of each method that is trained, at the first budget."""
    found = [cell for cell in plan.cells(preset) if cell.data == DATA and cell.method != NONE]
    return [replace(cell, lr=METHODS[cell.method].lr) for cell in found if cell.share in (0.0, preset.shares[0])]


def measure(preset: Preset, steps: int, rounds: int) -> list[dict[str, object]]:
    """A row per method, with medians over the rounds; a round before them warms the machine up.

    Times are seconds, medians over the steps of a round. The ratio is that of the whole steps to full fine-tuning's in
    the same round, for a machine's pace changes. Bytes are those of the optimizer's state after the last step.

    Raises:
        MissingData: a package or its file is not there.
    """
    task, made = replace(preset.tasks[DATA], steps=steps), jobs(preset)
    found: dict[Job, list[Trained]] = {job: [] for job in made}
    facts: dict[Job, dict[str, object]] = {}
    for number in trange(rounds + 1, unit="round"):
        for job in tqdm(made, unit="method", leave=False):
            done = train(job, task)
            assert done.optimizer is not None
            facts[job] = {"state_bytes": state_bytes(done.optimizer), "trained": done.trained}
            if number:
                found[job].append(replace(done, model=nn.Module(), optimizer=None))
    full = next(runs for job, runs in found.items() if job.method == FULL)
    stamp = environment()
    return [
        {
            "method": job.method,
            "share": f"{job.share:g}",
            "steps": steps,
            "rounds": rounds,
            "forward_backward_seconds": f"{median(each.forward_backward for each in runs):.5g}",
            "optimizer_seconds": f"{median(each.step for each in runs):.5g}",
            "ratio_to_full": f"{median(_whole(a) / _whole(b) for a, b in zip(runs, full, strict=True)):.4f}",
            **facts[job],
            **stamp,
        }
        for job, runs in found.items()
    ]


def _whole(done: Trained) -> float:
    return done.forward_backward + done.step


def main(given: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one sentence about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.speed", description="Times the methods' steps.")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each method (default: {STEPS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"over all methods (default: {ROUNDS})")
    parser.add_argument("--csv", type=Path, default=RESULTS / "quality_speed.csv")
    options = parser.parse_args(given)
    try:
        rows = measure(PRESETS[options.preset], options.steps, options.rounds)
    except MissingData as error:
        print(f"python -m benchmarks.quality.speed: {error}", file=sys.stderr)
        return 2
    write_csv(options.csv, rows)
    print(f"written: {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
