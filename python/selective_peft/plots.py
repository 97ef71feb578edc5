"""The picture of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

BLUE, ORANGE, GREY = "#2a6fbb", "#d9772b", "#8a8a8a"
MODULES = 14  # rows of the map; what is left is added up


def draw(
    path: Path,
    *,
    title: str,
    history: Sequence[Mapping[str, float]],
    metric: str,
    before: float,
    baseline: float,
    selected_per_step: Sequence[int],
    where: Mapping[str, Mapping[str, int]],
) -> None:
    """Writes a PNG: loss, quality, unmasking schedule, and where the budget went.

    Args:
        title: above all panels.
        history: the Trainer's log.
        metric: which one to draw; without "eval_".
        before, baseline: its values without training and for a constant answer.
        selected_per_step: scalars selected in each step.
        where: module -> layer -> selected scalars.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, parse_math=False)  # file names may hold dollar signs
    halves: Any = figure.subfigures(2, 1)  # so that the map's long names do not push the panels above it apart
    upper, lower = halves
    loss, quality = upper.subplots(1, 2)
    schedule, budget = lower.subplots(1, 2)
    _loss(loss, history)
    _quality(quality, history, metric, before, baseline)
    _schedule(schedule, selected_per_step)
    _map(lower, budget, where)
    figure.savefig(path, format="png", dpi=110)


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    found = {entry["step"]: entry[key] for entry in history if key in entry}
    return list(found), list(found.values())


def _steps(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _loss(axes: Axes, history: Sequence[Mapping[str, float]]) -> None:
    axes.plot(*_series(history, "loss"), color=BLUE, label="training")
    axes.plot(*_series(history, "eval_loss"), color=ORANGE, marker="o", markersize=4, label="evaluation")
    axes.legend(frameon=False)
    _steps(axes, "Loss")


def _quality(axes: Axes, history: Sequence[Mapping[str, float]], metric: str, before: float, baseline: float) -> None:
    steps, values = _series(history, f"eval_{metric}")
    axes.plot([0, *steps], [before, *values], color=ORANGE, marker="o", markersize=4, label="fine-tuned")
    axes.axhline(baseline, color=GREY, linestyle=":", label="constant answer")
    axes.legend(frameon=False)
    _steps(axes, f"{metric.replace('_', ' ').capitalize()} on the evaluation part")


def _schedule(axes: Axes, selected_per_step: Sequence[int]) -> None:
    total = np.cumsum(selected_per_step)
    axes.step(np.arange(1, len(total) + 1), total, where="post", color=BLUE)
    axes.fill_between(np.arange(1, len(total) + 1), total, step="post", color=BLUE, alpha=0.15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _steps(axes, "Scalars unmasked")


def _map(figure: SubFigure, axes: Axes, where: Mapping[str, Mapping[str, int]]) -> None:
    rows, layers, counts = budget_map(where)
    image = axes.imshow(counts, aspect="auto", cmap="Blues", norm=PowerNorm(0.5, vmin=0))  # small counts show, too
    axes.set_title("Where the budget went (scalars)", loc="left", fontsize=10)
    axes.set_xlabel("layer")
    axes.set_xticks(range(len(layers)), [layer or "none" for layer in layers])
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    dark = counts.max() / 3
    for (row, column), count in np.ndenumerate(counts):
        label = "" if count == 0 else f"{count:,}" if count < 1000 else f"{count / 1000:,.0f}k"
        axes.text(column, row, label, ha="center", va="center", fontsize=6, color="white" if count > dark else "black")
    figure.colorbar(image, ax=axes, format=FuncFormatter(lambda value, _: f"{value:,.0f}"))


def budget_map(where: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[str], Any]:
    """Names of rows (modules, most scalars first) and columns (layers), and the scalars, shape (rows, columns).

    Modules past the first few are one row, "others".
    """
    layers = sorted(
        {layer for counts in where.values() for layer in counts}, key=lambda name: (name != "", name.zfill(9))
    )
    order = sorted(where, key=lambda module: -sum(where[module].values()))
    table = np.array([[where[module].get(layer, 0) for layer in layers] for module in order], dtype=np.int64)
    if len(order) > MODULES:
        rest = table[MODULES - 1 :].sum(axis=0, keepdims=True)
        table = np.concatenate([table[: MODULES - 1], rest])
        order = [*order[: MODULES - 1], f"others ({len(order) - MODULES + 1})"]
    return order, layers, table
