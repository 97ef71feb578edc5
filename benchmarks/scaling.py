"""Times a step over size, selection, tensors and threads, and fits exponents: `python -m benchmarks scaling`.

Each problem has one set of random parameters and gradients, AdamW, ID3 with exp 2 and eps 1. An exponent p says that
the time goes as x^p; it comes from a straight line through the logarithms of the medians, with its standard error, and
with the range of the same line through the times of single rounds. What is expected stands in `scaling_cases`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import pictures
from benchmarks.device import Clock, gpu_environment
from benchmarks.report import describe, environment
from benchmarks.scaling_cases import AXES, FUSED, IDLE, PRESETS, READ, SELECTING, points_of
from benchmarks.scaling_measure import measure
from benchmarks.scaling_rows import law_rows, screen, time_rows
from benchmarks.suites import CannotRun

LINE = "how a step's cost grows with scalars, selection, tensors and threads, with fitted exponents"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this suite has."""
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES), help="what to vary; default: all")
    parser.add_argument("--largest", type=int, help="leave out problems with more scalars")


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """Checks, measures, prints tables; rows of `scaling_rows`.

    Raises:
        gate.Mismatch: a result is wrong.
        CannotRun: an option does not fit.
    """
    if options.models:
        raise CannotRun("--models: expected none, the problems of this suite are no models")
    sizes, device = PRESETS[options.preset], torch.device(options.device)
    clock = Clock(device)
    points = points_of(sizes, 0 if clock.on_gpu else torch.get_num_threads())
    points = [point for point in points if point.axis in options.axes]
    points = [point for point in points if point.scalars <= (options.largest or point.scalars)]
    stamp = environment() | (gpu_environment(device) if clock.on_gpu else {})
    print(describe(stamp))
    rows: list[dict[str, object]] = []
    for dtype in options.dtype or ["float32"]:
        mine = []
        with tqdm(total=len(points), unit="problem", leave=False) as bar:
            for point in points:
                bar.set_description(f"{point.axis} {pictures.short(point.x)}")
                found = measure(point, DTYPES[dtype], clock, options.rounds or sizes.rounds)
                mine.extend(time_rows(point, dtype, DTYPES[dtype].itemsize, found, stamp, device.type))
                bar.update()
        mine.extend(law_rows(mine, dtype, stamp))
        print(screen(mine), flush=True)
        rows.extend(mine)
    return rows


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Milliseconds over what varies, a panel for each axis, against the read; of the first dtype."""
    rows = [row for row in rows if row["dtype"] == rows[0]["dtype"]]
    axes_of = [axis for axis in AXES if any(row["axis"] == axis and row["ms_median"] for row in rows)]
    if not axes_of:
        return
    columns = min(3, len(axes_of))
    lines = -(-len(axes_of) // columns)
    title = f"How the time of an optimizer step grows ({rows[0]['dtype']})"
    figure = pictures.new_figure(title, rows, len(axes_of), 4.4 * columns, 1.0 + 3.6 * lines, columns=columns)
    colors = {SELECTING: pictures.OURS, IDLE: pictures.RIVALS[1], FUSED: pictures.RIVALS[0]}
    for axes, axis in zip(figure.axes, axes_of, strict=True):
        lines_of = {what: _points(rows, axis, what) for what in (SELECTING, IDLE, FUSED)}
        shown = {f"ours, {what}" if what != FUSED else what: points for what, points in lines_of.items() if points}
        known = {f"ours, {what}" if what != FUSED else what: color for what, color in colors.items()}
        known = {name: color for name, color in known.items() if name in shown}
        label = AXES[axis]
        pictures.set_title(axes, f"{label[:1].upper()}{label[1:]}")
        read = _points(rows, axis, READ)
        pictures.scaling_lines(axes, shown, label, "ms", limit=read, limit_label="reading both once", colors=known)
        times = [y for points in (*shown.values(), read) for _, y in points]
        axes.set_ylim(10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times))))
        if axis == "threads":
            axes.set_xticks([x for x, _ in read], minor=False)
            axes.minorticks_off()
    pictures.save(figure, path)


def _points(rows: Sequence[Mapping[str, str]], axis: str, what: str) -> list[tuple[float, float]]:
    mine = [row for row in rows if row["axis"] == axis and row["what"] == what and row["ms_median"]]
    return sorted((float(row["x"]), float(row["ms_median"])) for row in mine)
