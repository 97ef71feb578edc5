"""How the suites draw: speed-up bars, lines against a limit, stacked bars of memory; each labelled with the machine.

Backgrounds are transparent, and every colour stands out on white paper and on a dark page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation
from selective_peft import drawing

from benchmarks.report import format_bytes

TEXT = "#737c86"  # a grey with a contrast of 4 or more on white and on #0d1117
OURS = "#2f81e0"
RIVALS = ("#d9772b", "#1f9e77", "#a05fb4", "#c2971b", "#c9506b", "#5f9ea8", "#8a8a8a")
Label = Callable[[float], str]


def new_figure(
    title: str, rows: Sequence[Mapping[str, str]], panels: int, width: float, height: float, *, columns: int = 0
) -> Figure:
    """A figure with panels side by side; what was measured on what stands below them.

    Args:
        title: of the whole.
        rows: of a result file; machine, threads, versions and commit come from the first. None: nothing was measured.
        panels: how many axes there are, `figure.axes`.
        width, height: inches.
        columns: how many panels stand side by side; 0: all.
    """
    columns = columns or panels
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=TEXT, fontweight="bold")
    if rows:
        figure.supxlabel(machine(rows[0]), x=0.01, ha="left", fontsize=8, color=TEXT)
    for i, axes in enumerate(figure.subplots(-(-panels // columns), columns, squeeze=False).flat):
        if i < panels:
            _plain(axes)
        else:
            axes.remove()
    return figure


def machine(row: Mapping[str, str]) -> str:
    """What a row was measured on, in one line."""
    place = row.get("gpu") or f"{row['cpu']}, {row['threads']} thread{'' if row['threads'] == '1' else 's'}"
    return f"{place}; torch {row['torch']}, kernels {row['isa'] or 'triton'}, commit {row['commit']}"


def _plain(axes: Axes) -> None:
    axes.patch.set_alpha(0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(TEXT)
    axes.tick_params(which="both", colors=TEXT, labelsize=9)
    axes.grid(color=TEXT, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def set_title(axes: Axes, title: str) -> None:
    """A title at the left."""
    axes.set_title(title, loc="left", fontsize=10, color=TEXT, parse_math=False)


def times(value: float) -> str:
    """A speed-up: 0.25x, 1.3x, 12x, 1,450x."""
    if value < 0.995:
        return f"{value:.2g}x"
    return f"{value:.1f}x" if value < 9.95 else f"{value:,.0f}x"


def bars(
    axes: Axes, groups: Mapping[str, Mapping[str, float]], label: Label, *, log: bool = False,
    limit: float | None = None, colors: Mapping[str, str] | None = None, named: bool = False,
) -> None:  # fmt: skip
    """Groups of horizontal bars, the first on top, each bar with its number.

    Args:
        axes: of `new_figure`.
        groups: per group: bar -> value > 0; a bar of one name has one colour in all groups.
        label: how a number is written.
        log: on a logarithmic scale.
        limit: where a line is drawn, such as 1 for "as fast as ours".
        colors: of bars by name; the others take those of `RIVALS` in turn.
        named: names stand beside the bars, which have one colour, and not in a legend; for many names.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    known = _colors(names, RIVALS, colors) if not named else dict.fromkeys(names, OURS)
    y, ticks = 0.0, {}
    for title, group in groups.items():
        if named:
            where = (axes.get_yaxis_transform(), "offset points")
            axes.annotate(title, (0, y), (-6, 0), *where, color=TEXT, ha="right", va="center", fontweight="bold")
            y += 0.9
        else:
            ticks[y + (len(group) - 1) / 2] = title
        for name, value in group.items():
            axes.barh(y, value, height=0.82, color=known[name])
            axes.annotate(f" {label(value)}", (value, y), va="center", fontsize=8, color=TEXT)
            if named:
                ticks[y] = name
            y += 1.0
        y += 0.7
    axes.set_yticks(list(ticks), list(ticks.values()), color=TEXT)
    axes.set_ylim(y - 0.9, -0.7)
    axes.grid(visible=False, axis="y")
    _span(axes, [value for group in groups.values() for value in group.values()], log, limit)
    if not named:
        legend(axes, {name: known[name] for name in names})


def _colors(names: Sequence[str], palette: Sequence[str], given: Mapping[str, str] | None) -> dict[str, str]:
    """A colour for each name: that which is given, or the next of the palette's others."""
    known = dict(given or {})
    unused = [color for color in palette if color not in known.values()] or list(palette)
    others = [name for name in names if name not in known]
    return {**known, **{name: unused[i % len(unused)] for i, name in enumerate(others)}}


def _span(axes: Axes, values: Sequence[float], log: bool, limit: float | None) -> None:
    """Limits of the axis of values that leave room for numbers beside the bars, and the line of `limit`."""
    most, least = max(values, default=1.0), min(values, default=1.0)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, 0.7 * least), 4 * max(most, 2.0))
        plain_log(axes, "x", times)
    else:
        axes.set_xlim(0, 1.18 * max(most, limit or 0.0))
    if limit is not None:
        axes.axvline(limit, color=TEXT, linewidth=1.2)


def speedup_bars(axes: Axes, groups: Mapping[str, Mapping[str, float]], named: bool = False) -> None:
    """How many times faster ours is, per group and rival, on a logarithmic scale; the line at 1 is ours.

    With many rivals `named` puts their names beside the bars, see `bars`.
    """
    bars(axes, groups, times, log=True, limit=1.0, named=named)


def scaling_lines(
    axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, *,
    limit: Sequence[tuple[float, float]] = (), limit_label: str = "read limit",
    colors: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Measured points by name on logarithmic axes, and a dashed line of the least that is possible.

    Args:
        axes: of `new_figure`.
        lines: name -> (x, y), both > 0, in the order of x.
        xlabel, ylabel: with units.
        limit: (x, y) of the limit; none: no line.
        limit_label: its name.
        colors: of lines by name; the first of the others takes `OURS`, then those of `RIVALS` in turn.
    """
    known = _colors(list(lines), (OURS, *RIVALS), colors)
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), color=known[name], marker="o", markersize=4, linewidth=1.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if limit:
        axes.plot(*zip(*limit, strict=True), color=TEXT, linestyle="--", linewidth=1.4)
        known[limit_label] = TEXT
    axes.set_xlabel(xlabel, color=TEXT, fontsize=9)
    axes.set_ylabel(ylabel, color=TEXT, fontsize=9)
    plain_log(axes, "x", short)
    plain_log(axes, "y", lambda value: f"{value:g}")
    legend(axes, {name: known[name] for name in (*lines, *([limit_label] if limit else []))})


def memory_bars(axes: Axes, stacks: Mapping[str, Mapping[str, float]]) -> None:
    """`stacked_bars` of bytes."""
    stacked_bars(axes, stacks, format_bytes)


def stacked_bars(axes: Axes, stacks: Mapping[str, Mapping[str, float]], label: Label) -> None:
    """A horizontal bar per method, the first on top, made of parts; at its end the sum.

    Args:
        axes: of `new_figure`.
        stacks: method -> part -> number; parts that are nothing may be left out.
        label: how a number is written.
    """
    parts = list(dict.fromkeys(part for stack in stacks.values() for part in stack))
    known = _colors(parts, (OURS, *RIVALS), None)
    for y, stack in enumerate(stacks.values()):
        begin = 0.0
        for part in parts:
            axes.barh(y, stack.get(part, 0.0), left=begin, height=0.72, color=known[part])
            begin += stack.get(part, 0.0)
        axes.annotate(f" {label(begin)}", (begin, y), va="center", fontsize=8, color=TEXT)
    axes.set_yticks(range(len(stacks)), list(stacks), color=TEXT)
    axes.set_ylim(len(stacks) - 0.4, -0.6)
    axes.set_xlim(0, 1.2 * max((sum(stack.values()) for stack in stacks.values()), default=1.0))
    axes.xaxis.set_major_locator(MaxNLocator(4))  # labels with units are wide
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axes.grid(visible=False, axis="y")
    legend(axes, known)


def legend(axes: Axes, colors: Mapping[str, str]) -> None:
    """Names and their colours, below the axes and what stands there."""
    figure, points = axes.get_figure(), 36 if axes.get_xlabel() else 20
    assert figure is not None
    below = axes.transAxes + ScaledTranslation(0, -points / 72, figure.dpi_scale_trans)
    handles = [Patch(color=color, label=name) for name, color in colors.items()]  # no artists that would widen the axes
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.02, 0), bbox_transform=below, ncols=3, frameon=False,
        fontsize=8, labelcolor=TEXT, handlelength=1.0, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def short(value: float) -> str:
    """A count for a tick: 100, 1k, 20M, 1G."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def plain_log(axes: Axes, which: str, label: Label) -> None:
    """Ticks of a logarithmic axis with numbers written out, and none between the powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, all of it or nothing; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(path, figure)
