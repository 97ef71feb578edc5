"""What all pictures share: colours, labels, axes over steps, and how a picture is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

BLUE, ORANGE, GREY = "#2a6fbb", "#d9772b", "#8a8a8a"
COLORS = (BLUE, ORANGE, "#009e73", "#8e4a9e", "#56b4e9", "#1a1a1a")  # told apart with any colour vision
STYLES = ("-", "--", "-.")
DENSITY = LinearSegmentedColormap.from_list("density", ["#b3cde3", "#08306b"])  # a single entry is visible on white
DPI = 110
LABEL_WIDTH = 40  # characters; longer names take several lines


def new_axes(axes: Axes | None, width: float, height: float) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot() if axes is None else axes


def set_title(axes: Axes, title: str, pad: float = 6.0) -> None:
    """A title at the left; names in it may hold dollar signs."""
    axes.set_title(title, loc="left", fontsize=10, pad=pad, parse_math=False)


def style_steps(axes: Axes, title: str) -> None:
    """Axes over training steps."""
    set_title(axes, title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def style_rows(axes: Axes, names: Sequence[str], title: str, pad: float = 6.0) -> None:
    """Axes with one named row per module, the first on top."""
    set_title(axes, title, pad)
    axes.set_yticks(range(len(names)), [wrapped(name) for name in names], fontsize=7, parse_math=False)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)


def rows_height(names: Sequence[str]) -> float:
    """Inches that rows with these names take."""
    lines = max((wrapped(name).count("\n") + 1 for name in names), default=1)
    return (0.18 + 0.12 * lines) * max(len(names), 2)


def plain_numbers(axis: Axis) -> None:
    """Few ticks, each with its number in full; no common factor at the end of the axis."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def wrapped(name: str) -> str:
    """A dotted name, broken at its dots into lines of up to `LABEL_WIDTH` characters."""
    lines = [""]
    for number, part in enumerate(name.split(".")):
        piece = part if number == 0 else f".{part}"
        if lines[-1] and len(lines[-1]) + len(piece) > LABEL_WIDTH:
            lines.append(piece)
        else:
            lines[-1] += piece
    return "\n".join(lines)


def short_count(count: int) -> str:
    """A count in at most four characters, "" for 0: 999, 12k, 3M."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit - unit // 2000:  # what would round up to it, too
            return f"{count / unit:.0f}{name}"
    return f"{count}" if count else ""


class End(NamedTuple):
    """Where a line ends, and what it is called."""

    label: str
    color: str
    y: float


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Names lines at the right of the axes, beside their ends, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    named = sorted((end for end in ends if end.label), key=lambda end: end.y)
    for end, y in zip(named, _apart([(end.y - low) / (high - low) for end in named], 0.065), strict=True):
        axes.text(
            1.015, y, end.label, transform=axes.transAxes, color=end.color, va="center", fontsize=8, parse_math=False
        )


def _apart(places: Sequence[float], gap: float) -> Iterator[float]:
    """Ascending numbers in [0, 1], a gap apart: moved up where they are closer, and down where that leaves [0, 1]."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = max(1.0, gap * (len(moved) - 1))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    yield from moved


def legend_above(axes: Axes) -> None:
    """A legend in one line between the axes and a title that leaves room for it (`pad`)."""
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=6, frameon=False, fontsize=8, borderaxespad=0.1,
        handletextpad=0.4, columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def say(axes: Axes, words: str) -> None:
    """Words in the middle of axes that have nothing to show."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=9)


def save(path: Path | str, figure: Figure | SubFigure) -> None:
    """Writes a PNG: all of it or nothing.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in a folder that exists, got {target}")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    staged = Path(name)
    try:
        figure.figure.savefig(staged, format="png", dpi=DPI)
        staged.chmod(0o644)
        staged.replace(target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
