"""The picture of the suite of operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import pictures
from benchmarks.op_report import points_of

DTYPE_COLORS = {"float32": pictures.OURS, "bfloat16": "#1f9e77", "float16": "#a05fb4"}


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Writes `figure` of the rows of the suite's result file into a PNG file."""
    pictures.save(figure(rows), path)


def figure(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Left: speed-up over each rival at the base point. Right: share of the bandwidth, by dtype."""
    ops = list(dict.fromkeys(row["op"] for row in rows))
    base = {
        op: next(((ours, others) for ours, others in points_of(rows, op) if ours["axis"] == "base"), None) for op in ops
    }
    found = {op: pair for op, pair in base.items() if pair is not None}
    first = next(iter(found.values()))[0] if found else rows[0]
    title = f"Single operations, {first['model']} ({int(str(first['scalars'])):,} scalars)"
    made = pictures.new_figure(title, rows, 2, 12, 6.4)
    left, right = made.axes
    speedups = {
        op: {str(row["what"]): float(str(row["speedup"])) for row in others} for op, (_, others) in found.items()
    }
    pictures.speedup_bars(left, {op: group for op, group in speedups.items() if group}, named=True)
    pictures.set_title(left, f"times faster than PyTorch's ways, {first['dtype']}")
    shares: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["what"] == "ours" and row["axis"] in ("base", "dtype"):
            shares.setdefault(f"{row['op']}\n({row['bound']})", {})[row["dtype"]] = float(row["percent_of_bound"])
    pictures.bars(right, shares, lambda value: f"{value:.0f} %", limit=100.0, colors=DTYPE_COLORS)
    pictures.set_title(right, "% of the bandwidth measured in the same rounds")
    return made
