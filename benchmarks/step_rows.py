"""Rows, screens and bars of the step suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.bars import Bar
from benchmarks.report import format_table
from benchmarks.shapes import MODELS
from benchmarks.step_cases import (
    COMPILED,
    FOREACH,
    FUSED,
    IN_PLACE,
    MASKING,
    MASKINGS,
    OURS,
    PHASES,
    READ,
    RIVALS,
    TOOLKIT,
    TOTAL_STEPS,
    Case,
    budgets_of,
    moved,
)
from benchmarks.step_measure import Measured

Row = dict[str, object]
LEAST_SCALARS = 20_000_000  # bars are held against larger models
# Largest ratio of a selecting step to the read, by (dtype, number of the budget); None: of any model.
READ_BARS = {
    ("float32", 0, None): 1.2,
    ("bfloat16", 0, "bert-base"): 1.4,
    ("float32", 1, "bert-base"): 1.5,
}
SPEEDUP_BARS = {FUSED: 2.0, **dict.fromkeys(MASKINGS, 20.0), TOOLKIT: 90.0}  # least, in float32, of any model
SHORT = {
    FUSED: "fused",
    FOREACH: "foreach",
    MASKING: "masking",
    IN_PLACE: "in place",
    COMPILED: "compiled",
    TOOLKIT: "toolkit",
}  # for screens


def column(rival: str) -> str:
    """Column with the speed-up of ours over a rival."""
    return f"speedup_over_{rival.lower().replace(' ', '_')}"


def rows_of(case: Case, found: Measured, stamp: Mapping[str, str]) -> list[Row]:
    """CSV rows, also for who has no time; times in milliseconds, ratios are medians of ratios taken within a round.

    `bytes_moved` is what a step must read and write; `gb_per_s` and `percent_of_read_bandwidth` follow from it, the
    latter against the read in the same rounds.
    """
    return [{**_row(case, found, name), **stamp} for name in (READ, *OURS, *RIVALS)]


def _row(case: Case, found: Measured, name: str) -> Row:
    timing, to_read, count = found.timing(name), found.ratio(name, READ), moved(case, name)
    row: Row = {
        "model": case.model,
        "scalars": case.scalars,
        "tensors": len(MODELS[case.model]),
        "dtype": case.dtype,
        "budget": case.budget,
        "total_steps": TOTAL_STEPS,
        "what": f"ours, {name}" if name in OURS else name,
        "rounds": len(timing.seconds) if timing else 0,
        "ms_median": f"{1e3 * timing.median:.3f}" if timing else "",
        "ms_min": f"{1e3 * timing.low:.3f}" if timing else "",
        "ms_max": f"{1e3 * timing.high:.3f}" if timing else "",
        "ratio_to_read": "" if to_read is None else f"{to_read:.3f}",
        "bytes_moved": count or "",
        "gb_per_s": f"{count / timing.median / 1e9:.2f}" if timing and count else "",
        "percent_of_read_bandwidth": f"{100 * count / moved(case, READ) / to_read:.1f}" if to_read and count else "",
    }
    for rival in RIVALS:
        speedup = found.ratio(rival, name) if name in OURS else None
        row[column(rival)] = "" if speedup is None else f"{speedup:.2f}"
    return {**row, "note": found.notes.get(name, "")}


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one case as a table; in the last columns by how much ours is faster than each rival."""
    names = [f"x {SHORT[rival]}" for rival in RIVALS]
    header = ("", "ms", "min - max", "rounds", "x read", "GB/s", "% of read", *names)
    lines, notes = [], []
    for row in rows:
        if row["note"]:
            notes.append(f"{row['what']}: {row['note']}")
        if not row["rounds"]:
            continue
        spread = f"{float(str(row['ms_min'])):.2f} - {float(str(row['ms_max'])):.2f}"
        keys = ("rounds", "ratio_to_read", "gb_per_s", "percent_of_read_bandwidth", *map(column, RIVALS))
        cells = [str(row[key]) for key in keys]
        lines.append([str(row["what"]), f"{float(str(row['ms_median'])):.2f}", spread, *cells])
    return "\n".join([format_table(header, lines), *notes])


def bars(rows: Sequence[Mapping[str, object]]) -> list[Bar]:
    """What rows are held against, each model and budget at that of our selecting steps which does worst."""
    cases: dict[tuple[str, str, int], list[Mapping[str, object]]] = {}
    selecting = {f"ours, {phase}" for phase in PHASES}
    for row in rows:
        if row["what"] in selecting and row["ms_median"] and int(str(row["scalars"])) >= LEAST_SCALARS:
            key = str(row["model"]), str(row["dtype"]), int(str(row["budget"]))
            cases.setdefault(key, []).append(row)
    notes = {(str(row["model"]), str(row["dtype"]), str(row["what"])): str(row["note"]) for row in reversed(rows)}
    return [bar for key, mine in cases.items() for bar in _bars_of(*key, mine, notes)]


def _bars_of(
    model: str,
    dtype: str,
    budget: int,
    rows: Sequence[Mapping[str, object]],
    notes: Mapping[tuple[str, str, str], str],
) -> Iterator[Bar]:
    budgets = budgets_of(model)
    number = budgets.index(budget) if budget in budgets else None
    title = f"{model}, {dtype}, {budget:,}"
    for (of, which, only), limit in READ_BARS.items():
        if (of, which) == (dtype, number) and only in (None, model):
            phase, ratio = _extreme(rows, "ratio_to_read", max)
            yield Bar(f"{title}, {phase}: one read", ratio, limit, unit=" x")
    if (dtype, number) != ("float32", 0):
        return
    for rival, least in SPEEDUP_BARS.items():
        if all(row[column(rival)] for row in rows):
            phase, speedup = _extreme(rows, column(rival), min)
            yield Bar(f"{title}, {phase}: faster than {rival}", speedup, least, least=True, unit=" x")
        else:
            why = notes.get((model, dtype, rival)) or "no row"
            yield Bar(f"{title}: faster than {rival}", math.nan, least, least=True, unit=" x", missing=why)


def _extreme(
    rows: Sequence[Mapping[str, object]], key: str, choose: Callable[..., tuple[str, float]]
) -> tuple[str, float]:
    """Name of a selecting step, and its number."""
    numbers = [(str(row["what"]).removeprefix("ours, "), float(str(row[key]))) for row in rows]
    return choose(numbers, key=lambda each: each[1])
