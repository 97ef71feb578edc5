"""What a step of each method takes: `python -m benchmarks.quality.speed`, with nothing else running.

Film reviews, as in the comparison; one method after the other with all threads, each in a few steps of its own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import RESULTS
from benchmarks.quality import plan
from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plan import PRESETS, Preset
from benchmarks.quality.running import train
from benchmarks.report import environment, write_csv
from benchmarks.resident import state_bytes
from benchmarks.reviews import MissingData

DATA, STEPS = "reviews", 40


def jobs(preset: Preset) -> list[Job]:
    """A run of each method that is trained, at the first budget."""
    found = [cell for cell in plan.cells(preset) if cell.data == DATA and cell.method != NONE]
    return [replace(cell, lr=METHODS[cell.method].lr) for cell in found if cell.share in (0.0, preset.shares[0])]


def measure(preset: Preset, steps: int) -> list[dict[str, object]]:
    """A row per method: medians over the steps, in seconds, and bytes of the optimizer's state after the last.

    Raises:
        MissingData: a package or its file is not there.
    """
    rows: list[dict[str, object]] = []
    stamp = environment()
    for job in tqdm(jobs(preset), unit="method"):
        done = train(job, replace(preset.tasks[DATA], steps=steps))
        assert done.optimizer is not None
        rows.append(
            {
                "method": job.method,
                "share": f"{job.share:g}",
                "steps": steps,
                "forward_backward_seconds": f"{done.forward_backward:.5g}",
                "optimizer_seconds": f"{done.step:.5g}",
                "state_bytes": state_bytes(done.optimizer),
                "trained": done.trained,
                **stamp,
            }
        )
    return rows


def main(given: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one sentence about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.speed", description="Times the methods' steps.")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each method (default: {STEPS})")
    parser.add_argument("--csv", type=Path, default=RESULTS / "quality_speed.csv")
    options = parser.parse_args(given)
    try:
        rows = measure(PRESETS[options.preset], options.steps)
    except MissingData as error:
        print(f"python -m benchmarks.quality.speed: {error}", file=sys.stderr)
        return 2
    write_csv(options.csv, rows)
    print(f"written: {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
