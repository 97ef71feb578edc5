"""Rows and screens of the scaling suite: times, and the exponents fitted to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.fitting import Exponent, fit
from benchmarks.harness import Timing
from benchmarks.report import format_table
from benchmarks.rivals import ARRAYS_READ
from benchmarks.scaling_cases import AXES, FUSED, LAWS, READ, SELECTING, Law, Point
from benchmarks.scaling_measure import Timed

Row = dict[str, object]
TIME, EXPONENT = "time", "exponent"
MOVED = {READ: 2, FUSED: 7}  # times the parameters' bytes; of a step without selection: unknown
COLUMNS = (
    "kind",
    "axis",
    "x",
    "what",
    "dtype",
    "scalars",
    "tensors",
    "selected",
    "k",
    "rounds",
    "ms_median",
    "ms_min",
    "ms_max",
    "ms_rounds",
    "ratio_to_read",
    "bytes_moved",
    "gb_per_s",
    "percent_of_read_bandwidth",
    "speedup_over_adamw_fused",
    "checked",
    "x_from",
    "x_to",
    "points",
    "exponent",
    "exponent_error",
    "exponent_low",
    "exponent_high",
    "expected",
    "note",
)


def _row(values: Mapping[str, object], stamp: Mapping[str, str]) -> Row:
    return {**dict.fromkeys(COLUMNS, ""), **stamp, **values}


def time_rows(
    point: Point, dtype: str, item: int, found: Timed, stamp: Mapping[str, str], device: str = "cpu"
) -> list[Row]:
    """Rows of kind "time" of one problem, also for who was left out.

    Times are in milliseconds, `ms_rounds` those of all rounds; ratios are medians of ratios taken within a round.
    `selected` is what was selected before the first timed step, `k` what each adds.
    """
    stamp = _with_threads(point, stamp)
    return [_row(_time_row(point, dtype, item, found, what, device), stamp) for what in point.whats]


def _with_threads(point: Point, stamp: Mapping[str, str]) -> Mapping[str, str]:
    return {**stamp, "threads": str(point.threads)} if point.threads else stamp


def _time_row(point: Point, dtype: str, item: int, found: Timed, what: str, device: str) -> Row:
    row: Row = {
        "kind": TIME,
        "axis": point.axis,
        "x": point.x,
        "what": what,
        "dtype": dtype,
        "scalars": point.scalars,
        "tensors": point.tensors,
        "selected": point.selected,
        "k": point.k,
        "rounds": 0,
        "note": found.notes.get(what, ""),
    }
    timing, read, fused = found.timings.get(what), found.timings.get(READ), found.timings.get(FUSED)
    if timing is None:
        return row
    row |= {
        "rounds": len(timing.seconds),
        "ms_median": f"{1e3 * timing.median:.4f}",
        "ms_min": f"{1e3 * timing.low:.4f}",
        "ms_max": f"{1e3 * timing.high:.4f}",
        "ms_rounds": " ".join(f"{1e3 * each:.4f}" for each in timing.seconds),
        "ratio_to_read": f"{timing.ratio(read):.3f}" if read else "",
        "checked": "values" if found.checked else "count",
    }
    arrays = ARRAYS_READ[device] if what == SELECTING else MOVED.get(what)
    if arrays:
        count = arrays * item * point.scalars
        row |= {"bytes_moved": count, "gb_per_s": f"{count / timing.median / 1e9:.2f}"}
        if read:
            row["percent_of_read_bandwidth"] = f"{100 * arrays / MOVED[READ] / timing.ratio(read):.1f}"
    if fused and what not in (READ, FUSED):
        row["speedup_over_adamw_fused"] = f"{fused.ratio(timing):.2f}"
    return row


def law_rows(rows: Sequence[Mapping[str, object]], dtype: str, stamp: Mapping[str, str]) -> list[Row]:
    """Rows of kind "exponent", for each law whose range holds two points or more, from rows of kind "time"."""
    made = []
    for law in LAWS:
        points = list(_points(rows, law))
        if len({x for x, _ in points}) >= 2:
            made.append(_row(_law_row(law, dtype, points, fit(points)), stamp))
    return made


def _points(rows: Sequence[Mapping[str, object]], law: Law) -> Iterator[tuple[float, Timing]]:
    for row in rows:
        if (row["kind"], row["axis"], row["what"]) == (TIME, law.axis, law.what) and row["ms_rounds"]:
            x = float(str(row["x"]))
            if law.low <= x <= law.high:
                yield x, Timing(tuple(float(each) / 1e3 for each in str(row["ms_rounds"]).split()))


def _law_row(law: Law, dtype: str, points: Sequence[tuple[float, Timing]], found: Exponent) -> Row:
    return {
        "kind": EXPONENT,
        "axis": law.axis,
        "what": law.what,
        "dtype": dtype,
        "rounds": min(len(timing.seconds) for _, timing in points),
        "x_from": int(min(x for x, _ in points)),
        "x_to": int(max(x for x, _ in points)),
        "points": found.points,
        "exponent": f"{found.value:.3f}",
        "exponent_error": "" if found.error is None else f"{found.error:.3f}",
        "exponent_low": f"{found.low:.3f}",
        "exponent_high": f"{found.high:.3f}",
        "expected": law.expected,
    }


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """Tables of the rows of one dtype: times by axis, then exponents, then who was left out and why."""
    parts = []
    header = ("ms", "min - max", "x read", "GB/s", "% of read", "x fused", "threads")
    keys = ("ratio_to_read", "gb_per_s", "percent_of_read_bandwidth", "speedup_over_adamw_fused", "threads")
    for axis, label in AXES.items():
        mine = [row for row in rows if row["kind"] == TIME and row["axis"] == axis and row["ms_median"]]
        lines = []
        for row in mine:
            low, middle, high = (float(str(row[f"ms_{which}"])) for which in ("min", "median", "max"))
            cells = [f"{middle:.3f}", f"{low:.3f} - {high:.3f}", *(str(row[key]) for key in keys)]
            lines.append([str(row["what"]), f"{int(str(row['x'])):,}", *cells])
        if lines:
            parts.append(format_table(("", axis, *header), lines, title=f"\n{label[:1].upper()}{label[1:]}"))
    laws = [row for row in rows if row["kind"] == EXPONENT]
    if laws:
        names = ("", "of", "from", "to", "points", "exponent", "rounds", "expected")
        title = "\nTime goes as x^p: p ± its standard error, range over the rounds"
        parts.append(format_table(names, [_law_line(row) for row in laws], title=title))
    parts += [f"{row['axis']} {row['x']:,}, {row['what']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join(parts)


def _law_line(row: Mapping[str, object]) -> list[str]:
    error = f" ± {row['exponent_error']}" if row["exponent_error"] else ""
    ends = [f"{int(str(row[key])):,}" for key in ("x_from", "x_to")]
    spread = f"{row['exponent_low']} to {row['exponent_high']}"
    return [
        str(row["axis"]),
        str(row["what"]),
        *ends,
        str(row["points"]),
        f"{row['exponent']}{error}",
        spread,
        str(row["expected"]),
    ]
