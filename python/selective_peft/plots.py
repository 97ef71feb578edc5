"""Pictures of the paper's analyses; their numbers are those of `selective_peft.analysis`.

Each function draws into the axes it is given, or into a new figure that fits, and returns the axes; `save` writes
`axes.figure`. Where a picture can compare runs it takes a mapping label -> Updates, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from selective_peft import analysis
from selective_peft.drawing import (
    BLUE,
    COLORS,
    DENSITY,
    GREY,
    ORANGE,
    STYLES,
    End,
    label_ends,
    legend_above,
    new_axes,
    plain_numbers,
    rows_height,
    save,
    say,
    set_title,
    short_count,
    style_rows,
    style_steps,
)
from selective_peft.naming import layer_order, top_modules
from selective_peft.updates import Updates

__all__ = [
    "budget_by_layer_and_module",
    "budget_map",
    "draw_map",
    "overview",
    "save",
    "selection_entropy",
    "selection_overlap",
    "tensor_sparsity",
    "update_correlation",
    "update_size_by_module",
]
MODULES = 14  # rows of a picture; what is left is added up
POINTS = 2000  # more are drawn as counts per cell
LABELS = ("first run", "second run")
WIDEST = 20.0  # inches
DARK = "#555555"
BUDGET = "Where the budget went (scalars)"

Runs = Updates | Mapping[str, Updates]


def tensor_sparsity(runs: Runs, axes: Axes | None = None) -> Axes:
    """Share of the tensors with nothing selected, against the step; see `analysis.tensor_sparsity`.

    A run that is not known step by step is a dotted line at its end.
    """
    axes = new_axes(axes, 7, 3.8)
    ends = _lines(axes, runs, analysis.tensor_sparsity)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("share of all tensors")
    label_ends(axes, ends)
    style_steps(axes, "Tensors with nothing selected")
    return axes


def selection_entropy(runs: Runs, axes: Axes | None = None) -> Axes:
    """Entropy of the selection over the tensors, against the step; see `analysis.selection_entropy`.

    The grey line is the most there can be: the same share of each tensor. A run that is not known step by step is a
    dotted line at its end.
    """
    axes = new_axes(axes, 7, 3.8)
    ends = _lines(axes, runs, analysis.selection_entropy)
    tensors = max(len(updates.names) for updates in _named(runs).values())
    most = math.log(tensors)
    axes.axhline(most, color=GREY, linewidth=1)
    note = f"the same share of all {tensors:,} tensors" if tensors > 1 else "one tensor only"
    axes.annotate(note, (0.01, most), (0, 3), axes.get_yaxis_transform(), "offset points", fontsize=8, color=DARK)
    top = 1.12 * max(most, 1.0)
    axes.set_ylim(-0.03 * top, top)
    axes.set_ylabel("entropy (nats)")
    label_ends(axes, ends)
    style_steps(axes, "Entropy of the selection over tensors")
    return axes


def budget_by_layer_and_module(updates: Updates, axes: Axes | None = None) -> Axes:
    """Selected scalars of each module in each layer; see `analysis.budget_by_place`."""
    where = analysis.budget_by_place(updates)
    rows, layers, _ = budget_map(where)
    axes = new_axes(axes, min(4.5 + 0.36 * len(layers), WIDEST), 1.2 + rows_height(rows))
    draw_map(axes, where)
    return axes


def update_size_by_module(runs: Runs, axes: Axes | None = None) -> Axes:
    """Mean |after - before| of the selected scalars of each module (large) and of its layers (small).

    See `analysis.mean_update_by_module`; modules with most selected scalars first.
    """
    named = _named(runs)
    counts: dict[str, int] = {}
    for updates in named.values():
        for module, layers in analysis.budget_by_place(updates).items():
            counts[module] = counts.get(module, 0) + sum(layers.values())
    row_of = top_modules(counts, MODULES)
    rows = list(dict.fromkeys(row_of.values()))
    axes = new_axes(axes, 7, 1.3 + rows_height(rows) + 0.08 * (len(named) - 1) * len(rows))
    for number, (label, updates) in enumerate(named.items()):
        color = COLORS[number % len(COLORS)]
        shift = 0.7 * ((number + 0.5) / len(named) - 0.5)
        layers_too = analysis.mean_update(updates, lambda place: (row_of[place.module], place.layer))
        whole = analysis.mean_update(updates, lambda place: row_of[place.module])
        heights = [rows.index(row) + shift for row, _ in layers_too]
        axes.scatter(list(layers_too.values()), heights, s=9, color=color, alpha=0.45, linewidths=0)
        heights = [rows.index(row) + shift for row in whole]
        axes.scatter(list(whole.values()), heights, s=30, color=color, label=label, linewidths=0, zorder=3)
    many = len(named) > 1
    if many:
        legend_above(axes)
    style_rows(axes, rows, "Mean size of an update (small dots: single layers)", pad=24 if many else 6)
    axes.set_xlim(left=0)
    plain_numbers(axes.xaxis)
    axes.set_xlabel("mean |after − before| of the selected scalars")  # noqa: RUF001 - a minus sign
    axes.grid(axis="x", alpha=0.25)
    for row in range(0, len(rows), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0, zorder=0)
    if not sum(counts.values()):
        say(axes, "nothing selected")
    return axes


def update_correlation(a: Updates, b: Updates, axes: Axes | None = None, *, labels: tuple[str, str] = LABELS) -> Axes:
    """The updates of the scalars that both runs changed, against each other, and Spearman's coefficient.

    See `analysis.update_correlation`; above a few thousand scalars the plane is cut into cells that show their number.
    """
    axes = new_axes(axes, 6, 5)
    x, y = (each.numpy() for each in analysis.shared_updates(a, b))
    if len(x) > POINTS:
        cells = axes.hexbin(x, y, gridsize=55, bins="log", mincnt=1, cmap=DENSITY, linewidths=0.1)
        axes.figure.colorbar(cells, ax=axes, label="scalars per cell")
    else:
        axes.scatter(x, y, s=9, color=BLUE, alpha=0.5, linewidths=0)
    rho = f"{analysis.update_correlation(a, b):.3f}" if len(x) > 1 else "undefined"
    set_title(axes, f"Updates of the {len(x):,} scalars in both: Spearman {rho}")
    axes.set_xlabel(f"after − before, {labels[0]}", parse_math=False)  # noqa: RUF001 - a minus sign
    axes.set_ylabel(f"after − before, {labels[1]}", parse_math=False)  # noqa: RUF001 - a minus sign
    plain_numbers(axes.xaxis)
    plain_numbers(axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    if len(x):
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
    else:
        say(axes, "nothing in both")
    return axes


def selection_overlap(a: Updates, b: Updates, axes: Axes | None = None, *, labels: tuple[str, str] = LABELS) -> Axes:
    """Of what either run selected in a module, the shares that both, only the first and only the second selected.

    The share of both is the Jaccard index; see `analysis.overlap_by_module`. Modules with nothing selected are left
    out.
    """
    unions = {module: each.union for module, each in analysis.overlap_by_module(a, b).items() if each.union}
    row_of = top_modules(unions, MODULES)
    found = analysis.overlap_by(a, b, lambda place: row_of.get(place.module, ""))
    rows = list(dict.fromkeys(row_of.values()))
    axes = new_axes(axes, 7, 1.5 + rows_height(rows))
    unit = [found[row].union for row in rows]
    left = np.zeros(len(rows))
    for label, color, counts in (
        (f"only {labels[0]}", BLUE, [found[row].first - found[row].shared for row in rows]),
        ("both", DARK, [found[row].shared for row in rows]),
        (f"only {labels[1]}", ORANGE, [found[row].second - found[row].shared for row in rows]),
    ):
        widths = np.array(counts) / np.array(unit)
        axes.barh(range(len(rows)), widths, left=left, height=0.72, color=color, label=label)
        left += widths
    for row, name in enumerate(rows):
        note = f"{found[name].jaccard:.0%} of {found[name].union:,}"
        axes.text(1.01, row, note, transform=axes.get_yaxis_transform(), va="center", fontsize=7)
    whole = analysis.overlap(a, b)
    title = f"Selections: {whole.shared:,} scalars in both, Jaccard index {whole.jaccard:.3f}"
    style_rows(axes, rows, title, pad=24)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("share of the scalars selected by at least one")
    if rows:
        axes.text(1.01, 1.01, "in both", transform=axes.transAxes, fontsize=7, fontweight="bold")
        legend_above(axes)
    else:
        say(axes, "nothing selected")
    return axes


def overview(path: Path | str, updates: Updates, *, title: str) -> None:
    """Writes a PNG of one run: tensor sparsity, entropy, where the budget went, size of the updates.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    rows, _, _ = budget_map(analysis.budget_by_place(updates))
    heights = (3.6, max(4.2, 1.0 + rows_height(rows)))
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    figure.suptitle(title, parse_math=False)
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    upper, lower = halves
    left, right = upper.subplots(1, 2)
    tensor_sparsity(updates, left)
    selection_entropy(updates, right)
    left, right = lower.subplots(1, 2)
    budget_by_layer_and_module(updates, left)
    update_size_by_module(updates, right)
    right.tick_params(labelleft=False)  # its rows are those of the map
    save(path, figure)


def draw_map(axes: Axes, where: Mapping[str, Mapping[str, int]], title: str = BUDGET) -> None:
    """Draws the scalars of each module (row) in each layer (column); `where` is module -> layer -> scalars."""
    rows, layers, counts = budget_map(where)
    if not counts.size:
        axes.set_axis_off()
        say(axes, "nothing")
        return
    largest = max(int(counts.max()), 1)
    image = axes.imshow(
        counts, aspect="auto", cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=largest)
    )  # small ones show
    style_rows(axes, rows, title)
    axes.spines[:].set_visible(True)
    axes.set_xlabel("layer")
    every = math.ceil(len(layers) / 26)
    axes.set_xticks(range(0, len(layers), every), [layer or "none" for layer in layers[::every]])
    width, _ = axes.figure.figure.get_size_inches()
    if len(layers) <= 14 or width > 4 + 0.34 * len(layers):  # else the cells are too narrow for numbers
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if count > largest / 3 else "black"
            axes.text(column, row, short_count(count), ha="center", va="center", fontsize=6, color=color)
    numbers = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.figure.colorbar(image, ax=axes, format=numbers, ticks=MaxNLocator(7, integer=True))
    if not counts.any():
        say(axes, "nothing selected")


def budget_map(where: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[str], Any]:
    """Names of rows (modules, most scalars first) and columns (layers), and the scalars, shape (rows, columns).

    Modules past the first few are one row, "others".
    """
    layers = layer_order(layer for counts in where.values() for layer in counts)
    row_of = top_modules({module: sum(counts.values()) for module, counts in where.items()}, MODULES)
    rows = list(dict.fromkeys(row_of.values()))
    table = np.zeros((len(rows), len(layers)), dtype=np.int64)
    for module, counts in where.items():
        for layer, count in counts.items():
            table[rows.index(row_of[module]), layers.index(layer)] += count
    return rows, layers, table


def _named(runs: Runs) -> Mapping[str, Updates]:
    if isinstance(runs, Updates):
        return {"": runs}
    if not runs:
        raise ValueError("runs: expected at least one run, got an empty mapping")
    return runs


def _lines(axes: Axes, runs: Runs, measure: Callable[[Updates], Tensor]) -> list[End]:
    """Draws one line per run; returns where they end."""
    ends = []
    for number, (label, updates) in enumerate(_named(runs).items()):
        color = COLORS[number % len(COLORS)]
        values = measure(updates).numpy()
        if updates.chosen is None:
            axes.axhline(values[0], color=color, linestyle=":")
        else:
            marker = "o" if len(values) == 1 else None
            style = STYLES[number % len(STYLES)]  # a line shows through another on top of it
            axes.plot(np.arange(1, len(values) + 1), values, color=color, linestyle=style, marker=marker)
        if len(values):
            ends.append(End(label, color, float(values[-1])))
    return ends
