"""What a training run says of itself: the report, its picture and the table."""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.table import Table

import selective_kernels
from selective_peft import SelectiveAdamW, fitting, plots, results
from selective_peft.methods import METHODS
from selective_peft.metrics import Measure
from selective_peft.report import draw
from selective_peft.sizes import Size
from selective_peft.updates import Updates


def public(options: argparse.Namespace) -> dict[str, Any]:
    """The options without what argparse needs itself."""
    return {key: value for key, value in vars(options).items() if key not in ("command", "chosen")}


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "selective_kernels": selective_kernels.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def seconds_per_step(trained: fitting.Trained) -> dict[str, float]:
    """Means over the steps; "selection" is everything in the optimizer that is no update."""
    optimizer = statistics.fmean(trained.optimizer)
    update = trained.ranges.get("update", 0.0) / len(trained.optimizer)
    return {
        "forward_backward": statistics.fmean(trained.forward_backward),
        "selection": optimizer - update,
        "update": update,
    }


def sizes(saved: list[Size], unreached: list[float]) -> list[dict[str, Any]]:
    """One entry per share of --save-at."""
    return [{**asdict(size), "reached": True} for size in saved] + [
        {"share": share, "reached": False} for share in unreached
    ]


def report(
    options: argparse.Namespace,
    model: Any,
    optimizer: SelectiveAdamW,
    whole: frozenset[str],
    trained: fitting.Trained,
    constant: dict[str, float] | None,
) -> dict[str, Any]:
    """What metrics.json says, but for what only the caller knows."""
    found = {"constant_answer": constant, "not_fine_tuned": trained.before, "fine_tuned": trained.after}
    score = {"exp": options.score_exp, "eps": options.score_eps}
    return {
        "metrics": {name: values for name, values in found.items() if values is not None},
        "task": options.task,
        "method": options.method,
        "score": None if options.score_exp is None else score,
        "base": options.base,
        "scalars": sum(param.numel() for param in model.parameters()),
        "selected": optimizer.num_selected,
        "selectable": sum(p.numel() for group in optimizer.param_groups if group["selective"] for p in group["params"]),
        "trained_whole": sum(param.numel() for name, param in model.named_parameters() if name in whole),
        "whole_parameters": sorted(whole),
        "state_bytes": optimizer.state_nbytes(),
        "skipped_steps": optimizer.skipped_steps,
        "seconds_per_step": seconds_per_step(trained),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in public(options).items()},
        "budget_by_module_and_layer": results.where(model, optimizer),
        "selected_per_step": optimizer.selected_per_step().tolist(),
        "history": trained.history,
        "versions": versions(),
    }


def picture(options: argparse.Namespace, found: dict[str, Any], measure: Measure) -> Callable[[Path], None]:
    """Draws report.png from the report."""
    metric = measure.names[0]
    return partial(
        draw,
        title=f"{Path(options.model).name or options.model} on {options.recipe or options.data.name}: {options.method}"
        f"{'' if options.base == 'full' else f' on {options.base}'}, "
        f"{found['selected']:,} of {found['selectable'] or found['scalars']:,} scalars",
        history=found["history"],
        metric=metric,
        before=found["metrics"]["not_fine_tuned"][metric],
        baseline=found["metrics"].get("constant_answer", {}).get(metric),
        selected_per_step=found["selected_per_step"],
        where=found["budget_by_module_and_layer"],
    )


def unspent(optimizer: SelectiveAdamW) -> list[str]:
    """A sentence if scalars of the budget are left."""
    budget, selected = optimizer.budget or 0, optimizer.num_selected
    if selected >= budget:
        return []
    return [f"--budget: {selected:,} of {budget:,} scalars were selected; no other one had a finite score above zero"]


def analyses(options: argparse.Namespace, optimizer: SelectiveAdamW) -> dict[str, Callable[[Path], None]]:
    """The paper's pictures of a growing or static selection; nothing for methods that remember none."""
    if METHODS[options.method].whole or METHODS[options.method].strategy == "repeat" or not optimizer.num_selected:
        return {}
    base = "" if options.base == "full" else f" on {options.base}"
    title = f"{Path(options.model).name or options.model}: {options.method}{base}, {optimizer.num_selected:,} scalars"
    updates = Updates.from_optimizer(optimizer)
    return {"analyses.png": lambda path: plots.overview(path, updates, title=title)}


def table(found: dict[str, Any], measure: Measure) -> Table:
    """The final table."""
    grid = Table(show_header=True, header_style="bold")
    names = measure.names
    for heading in ("", *(name.replace("_", " ") for name in names)):
        grid.add_column(heading, justify="right" if heading else "left")
    for row, values in found["metrics"].items():
        grid.add_row(row.replace("_", " "), *_cells(values, measure))
    blank = [""] * (len(names) - 1)
    if found["saved"]:
        grid.add_section()
    for entry in found["saved"]:
        label = f"{100 * entry['share']:g} % of the budget"
        if entry["reached"]:
            label += f": {entry['scalars']:,} scalars, {entry['size']:,} bytes"
            grid.add_row(label, *_cells(entry["metrics"], measure))
        else:
            grid.add_row(label, "[yellow]not reached[/yellow]", *blank)
    grid.add_section()
    counts = [
        f"{found['selected']:,} ({100 * found['selected'] / found['selectable']:.2f} %)" if found["selected"] else "",
        f"{found['trained_whole']:,} whole" if found["trained_whole"] else "",
    ]
    grid.add_row("scalars trained", " + ".join(filter(None, counts)), *blank)
    grid.add_row("optimizer state", f"{found['state_bytes'] / 1e6:.2f} MB", *blank)
    if found["skipped_steps"]:
        grid.add_row("[red]steps skipped: inf or NaN[/red]", f"{found['skipped_steps']:,}", *blank)
    grid.add_section()
    seconds = found["seconds_per_step"]
    total = sum(seconds.values())
    for name, value in seconds.items():
        label = f"{name.replace('_', ' + ')}, ms per step"
        grid.add_row(label, f"{1e3 * value:.2f} ({100 * value / total:.1f} %)", *blank)
    return grid


def tests(found: dict[str, Any], names: tuple[str, ...]) -> Table:
    """The table of a recipe's tests."""
    grid = Table(show_header=True, header_style="bold")
    for heading in ("test", "rows", "", *names):
        grid.add_column(heading.replace("_", " "), justify="right" if heading in ("rows", *names) else "left")
    entries = [*found["tests"].items()] + [("mean", found["tests_mean"])] * bool(found["tests_mean"])
    for name, entry in entries:
        for when, values in entry.items():
            if isinstance(values, dict):
                rows = f"{entry['rows']:,}" if "rows" in entry else ""
                grid.add_row(name, rows, when.replace("_", " "), *(f"{values[metric]:.4f}" for metric in names))
    return grid


def _cells(values: dict[str, float], measure: Measure) -> list[str]:
    return [f"{values[name]:.4f}" for name in measure.names]
