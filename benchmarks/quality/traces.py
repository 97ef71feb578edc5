"""Where the selection goes and how far it follows full fine-tuning (paper, Fig. 7 and 8): `python -m
benchmarks.quality.traces`. It trains ID3 at each budget and PaFi on film reviews, and the whole
model, all with the learning rates that the comparison chose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from selective_peft import SelectiveAdamW, analysis
from selective_peft.updates import Updates
from torch import Tensor

from benchmarks import RESULTS
from benchmarks.quality import plan
from benchmarks.quality.jobs import Job
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import HEAD
from benchmarks.quality.plan import PRESETS, Preset
from benchmarks.quality.running import train
from benchmarks.report import environment, write_csv
from benchmarks.reviews import MissingData

FULL, DATA = "full", "reviews"
METHODS = ("ID3", "PaFi")
CORRELATION, SHARED = "correlation with full", "shared with full"  # measures of a whole run
Traces = dict[str, Updates]


def jobs(preset: Preset, ledger: Ledger) -> list[Job]:
    """The runs of seed 0 that are traced, with the learning rates that were chosen; full fine-tuning first.

    Raises:
        ValueError: a learning rate is not known yet.
    """
    wanted = [cell for cell in plan.cells(preset) if cell.data == DATA and cell.method in (FULL, *METHODS)]
    wanted = [cell for cell in wanted if cell.method != "PaFi" or cell.share == preset.shares[0]]
    found = []
    for cell in wanted:
        _, lr = plan.tuning(cell, preset, ledger)
        if lr is None:
            raise ValueError(f"{ledger.path}: expected all learning rates of {cell.method} at {cell.share:.1%} tried")
        found.append(replace(cell, lr=lr))
    return sorted(found, key=lambda job: (job.method != FULL, job.method, job.share))


def label(job: Job) -> str:
    """What a picture calls a run."""
    return f"{job.method}, {job.share:.1%}" if job.share else job.method


def trace(preset: Preset, ledger: Ledger) -> Traces:
    """What each run selected and changed, the new head left out.

    Raises:
        MissingData, ValueError: see `jobs` and `running.train`.
    """
    task, found = preset.tasks[DATA], {}
    for job in jobs(preset, ledger):
        print(f"{job} ...", flush=True)
        before = {name: value for name, value in task.model(job.seed).state_dict().items() if not _new(name)}
        done = train(job, task)
        if isinstance(done.optimizer, SelectiveAdamW):
            found[label(job)] = Updates.from_optimizer(done.optimizer)
        else:
            names = [name for name, _ in done.model.named_parameters() if not _new(name)]
            found[label(job)] = Updates.from_models(before, done.model, names)
    return found


def _new(name: str) -> bool:
    return HEAD in name.split(".")


def step_rows(traces: Traces) -> list[dict[str, object]]:
    """Tensor sparsity and entropy of the selection after each step, of the runs that select."""
    return [
        {"run": run, "step": step + 1, "tensor_sparsity": f"{sparsity:.6f}", "entropy": f"{entropy:.6f}"}
        for run, updates in traces.items()
        if updates.steps
        for step, (sparsity, entropy) in enumerate(
            zip(_numbers(analysis.tensor_sparsity(updates)), _numbers(analysis.selection_entropy(updates)), strict=True)
        )
    ]


def _numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def update_rows(traces: Traces) -> list[dict[str, object]]:
    """Of each run and module: the mean size of the update; and of each run its correlation with full fine-tuning's."""
    full = traces[FULL]
    rows: list[dict[str, object]] = []
    for run, updates in traces.items():
        measures: Mapping[str, Mapping[str, float]] = {
            "mean update by module": analysis.mean_update_by_module(updates),
            "mean update by layer": {str(key): value for key, value in analysis.mean_update_by_layer(updates).items()},
        }
        rows += [
            {"run": run, "measure": measure, "place": place, "value": f"{value:.6g}"}
            for measure, values in measures.items()
            for place, value in values.items()
        ]
        if run != FULL:
            shared = analysis.shared_updates(updates, full)[0]
            rows += [
                {"run": run, "measure": CORRELATION, "place": "", "value": _correlation(updates, full)},
                {"run": run, "measure": SHARED, "place": "", "value": str(len(shared))},
            ]
    return rows


def _correlation(updates: Updates, full: Updates) -> str:
    return f"{analysis.update_correlation(updates, full):.6f}"


def main(given: list[str] | None = None) -> int:
    """Exit code: 0, or 2 after one sentence about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.traces", description="Traces what is selected.")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--csv", type=Path, default=RESULTS / "quality.csv", help="results of the comparison")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="for quality_steps.csv and quality_updates.csv")
    options = parser.parse_args(given)
    stamp, preset = environment(), PRESETS[options.preset]
    try:
        traces = trace(preset, Ledger(options.csv))
    except (MissingData, ValueError) as error:
        print(f"python -m benchmarks.quality.traces: {error}", file=sys.stderr)
        return 2
    for name, rows in (("quality_steps", step_rows(traces)), ("quality_updates", update_rows(traces))):
        write_csv(
            options.folder / f"{name}.csv", [{**row, **stamp, "threads": torch.get_num_threads()} for row in rows]
        )
        print(f"written: {options.folder / f'{name}.csv'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
