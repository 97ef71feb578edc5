"""The picture of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from selective_peft.drawing import BLUE, DPI, GREY, ORANGE, rows_height, style_steps
from selective_peft.plots import budget_map, draw_map


def draw(
    path: Path,
    *,
    title: str,
    history: Sequence[Mapping[str, float]],
    metric: str,
    before: float,
    baseline: float | None,
    selected_per_step: Sequence[int],
    where: Mapping[str, Mapping[str, int]],
) -> None:
    """Writes a PNG: loss, quality, unmasking schedule, and where the budget went.

    Args:
        title: above all panels.
        history: the Trainer's log.
        metric: which one to draw; without "eval_".
        before, baseline: its values without training and for a constant answer, None where there is none.
        selected_per_step: scalars selected in each step.
        where: module -> layer -> selected scalars.
    """
    rows, _, _ = budget_map(where)
    heights = (3.6, max(3.9, 1.0 + rows_height(rows)))
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    figure.suptitle(title, parse_math=False)  # file names may hold dollar signs
    halves: Any = figure.subfigures(
        2, 1, height_ratios=heights
    )  # so that the map's long names do not push the panels above it apart
    upper, lower = halves
    loss, quality = upper.subplots(1, 2)
    schedule, budget = lower.subplots(1, 2)
    _loss(loss, history)
    _quality(quality, history, metric, before, baseline)
    _schedule(schedule, selected_per_step)
    draw_map(budget, where)
    figure.savefig(path, format="png", dpi=DPI)


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    found = {entry["step"]: entry[key] for entry in history if key in entry}
    return list(found), list(found.values())


def _loss(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    axes.plot(*_series(history, "loss"), color=BLUE, label="training")
    axes.plot(*_series(history, "eval_loss"), color=ORANGE, marker="o", markersize=4, label="evaluation")
    axes.legend(frameon=False)
    style_steps(axes, "Loss")


def _quality(
    axes: Axes, history: Sequence[Mapping[str, float]], metric: str, before: float, baseline: float | None
) -> None:
    steps, values = _series(history, f"eval_{metric}")
    axes.plot([0, *steps], [before, *values], color=ORANGE, marker="o", markersize=4, label="fine-tuned")
    if baseline is not None:
        axes.axhline(baseline, color=GREY, linestyle=":", label="constant answer")
        axes.legend(frameon=False)
    style_steps(axes, f"{metric.replace('_', ' ').capitalize()} on the evaluation part")


def _schedule(axes: Axes, selected_per_step: Sequence[int]) -> None:
    total = np.cumsum(selected_per_step)
    axes.step(np.arange(1, len(total) + 1), total, where="post", color=BLUE)
    axes.fill_between(np.arange(1, len(total) + 1), total, step="post", color=BLUE, alpha=0.15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    style_steps(axes, "Scalars unmasked")
