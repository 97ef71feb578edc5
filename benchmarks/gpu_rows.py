"""Rows, screens and verdicts of the GPU benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.bandwidth import Bandwidth
from benchmarks.gpu_cases import (
    COMPILED,
    FOREACH,
    FUSED,
    IN_PLACE,
    MASKING,
    OURS,
    SPENT,
    TOTAL_STEPS,
    Case,
    Entry,
    ours_on,
)
from benchmarks.gpu_measure import Measured
from benchmarks.harness import Timing
from benchmarks.report import format_bytes, format_table
from benchmarks.shapes import MODELS

Row = dict[str, object]
PARAM_SHARE, PER_SCALAR = 0.02, 40  # extra memory: at most this share of the parameters' bytes + bytes per scalar
READ_TARGETS = {"deberta-v3-base": 1.3, "qwen2.5-7b": 1.1}  # largest ratio of a step to the read
FUSED_TARGETS = {"deberta-v3-base": 2.0, "qwen2.5-7b": 3.0}  # least speed-up over the fused dense AdamW
STEP_TARGETS = {("minilm-l6", "cuda"): 0.15}  # milliseconds of a whole step, host included, by model and backend
MASKING_TARGETS = {"deberta-v3-base": 100.0, "qwen2.5-1.5b": 100.0, "qwen2.5-7b": 100.0}  # and over dense masking


def rows_of(
    case: Case, everybody: Sequence[Entry], found: Measured, speed: Bandwidth, stamp: Mapping[str, str]
) -> list[Row]:
    """A CSV row for everybody, also for those without a time.

    Times are in milliseconds: `ms` behind other work of the device, `alone_ms` from an idle one, host included.
    `ratio_to_ours` compares with ours at the same budget in the middle of a run, at the first budget for a rival that
    has none. Read and copy bandwidths were measured on large buffers in the same process.
    """
    return [{**_row(case, entry, found, speed), **stamp} for entry in everybody]


def _row(case: Case, entry: Entry, found: Measured, speed: Bandwidth) -> Row:
    times, name = found.queued, entry.name
    timing, read = times.get(name), 2 * case.nbytes / speed.read
    median, alone = _milliseconds(timing), _milliseconds(found.alone.get(name))
    middle = times.get(Entry(OURS, entry.budget or case.budgets[0], "middle", 0, None).name)
    rate = entry.moved / timing.median if timing and entry.moved else None
    backend = backend_of(case, entry.method)
    ours = bool(backend)

    def speedup(rival: Entry) -> str:
        other = times.get(rival.name)
        return _number(other.ratio(timing) if ours and timing and other else None, 2)

    return {
        "model": case.model,
        "scalars": case.scalars,
        "tensors": len(MODELS[case.model]),
        "dtype": str(case.dtype).removeprefix("torch."),
        "budget": entry.budget or "",
        "total_steps": TOTAL_STEPS,
        "method": entry.method,
        "step": entry.step,
        "rounds": len(timing.seconds) if timing else 0,
        "ms_median": _number(median, 4),
        "ms_min": _number(1e3 * timing.low if timing else None, 4),
        "ms_max": _number(1e3 * timing.high if timing else None, 4),
        "alone_ms_median": _number(alone, 4),
        "ratio_to_ours": _number(timing.ratio(middle) if timing and middle else None, 3),
        "speedup_over_fused": speedup(Entry(FUSED, 0, "", 0, None)),
        "speedup_over_foreach": speedup(Entry(FOREACH, 0, "", 0, None)),
        "speedup_over_masking": speedup(Entry(MASKING, case.budgets[0], "middle", 0, None)),
        "speedup_over_masking_in_place": speedup(Entry(IN_PLACE, case.budgets[0], "middle", 0, None)),
        "speedup_over_masking_compiled": speedup(Entry(COMPILED, case.budgets[0], "middle", 0, None)),
        "read_ms": _number(1e3 * read, 4),
        "ratio_to_read": _number(timing.median / read if timing else None, 3),
        "bytes_moved": entry.moved or "",
        "gb_per_s": _number(rate and rate / 1e9, 1),
        "percent_of_read_bandwidth": _number(rate and 100 * rate / speed.read, 1),
        "percent_of_copy_bandwidth": _number(rate and 100 * rate / speed.copy, 1),
        "read_gb_per_s": _number(speed.read / 1e9, 1),
        "copy_gb_per_s": _number(speed.copy / 1e9, 1),
        "reader": speed.reader,
        "state_bytes": found.state.get(name, ""),
        "extra_bytes": found.extra.get(name, ""),
        "first_extra_bytes": found.first_extra.get(name, ""),
        "extra_limit_bytes": extra_limit(case, entry.budget) if ours else "",
        "gradient_sets": found.gradient_sets,
        "backend": backend,
        "note": found.notes.get(name, ""),
    }


def backend_of(case: Case, method: str) -> str:
    """Which backend of ours a method stands for; "" for a rival."""
    names = {ours_on(other): other for other in case.others}
    return case.backend if method == OURS else names.get(method, "")


def _milliseconds(timing: Timing | None) -> float | None:
    return 1e3 * timing.median if timing else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def extra_limit(case: Case, budget: int) -> int:
    """Most bytes that a step of ours may need beyond its state."""
    return int(PARAM_SHARE * case.nbytes + PER_SCALAR * budget)


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one case as a table."""
    header = ("", "budget", "ms", "min - max", "alone", "x read", "% of read", "x ours", "extra", "limit")
    lines = []
    for row in rows:
        label = f"{row['method']}, {row['step']}" if row["step"] else str(row["method"])
        budget = f"{row['budget']:,}" if row["budget"] else ""
        if row["note"]:
            lines.append([label, budget, str(row["note"]), *[""] * (len(header) - 3)])
            continue
        spread = f"{float(str(row['ms_min'])):.3f} - {float(str(row['ms_max'])):.3f}"
        cells = [row[key] for key in ("alone_ms_median", "ratio_to_read", "percent_of_read_bandwidth", "ratio_to_ours")]
        sizes = [_size(row[key]) for key in ("extra_bytes", "extra_limit_bytes")]
        lines.append([label, budget, f"{float(str(row['ms_median'])):.3f}", spread, *map(str, cells), *sizes])
    return format_table(header, lines)


def _size(count: object) -> str:
    return "" if count == "" else format_bytes(float(str(count)))


def verdicts(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """One line per aim, budget and step that selects: measured, wanted, met or not."""
    lines = []
    for row in rows:
        if not row["backend"] or row["note"]:
            continue
        title = f"{row['model']}, {row['budget']:,}, {row['step']}, {row['backend']}"
        whole = STEP_TARGETS.get((str(row["model"]), str(row["backend"])))
        if whole is not None and row["alone_ms_median"] != "":
            alone = float(str(row["alone_ms_median"]))
            lines.append(f"{title}: {alone:.3f} ms from an idle device, target <= {whole:g}: {_met(alone <= whole)}")
        aims = (
            ("ratio_to_read", "x read", READ_TARGETS, False),
            ("speedup_over_fused", f"x faster than {FUSED}", FUSED_TARGETS, True),
            ("speedup_over_masking", f"x faster than {MASKING}", MASKING_TARGETS, True),
        )
        for key, what, targets, at_least in aims:
            aim = targets.get(str(row["model"]))
            if aim is not None and row[key] != "" and row["step"] != SPENT:
                value = float(str(row[key]))
                good = value >= aim if at_least else value <= aim
                lines.append(f"{title}: {value:.2f} {what}, target {'>=' if at_least else '<='} {aim:g}: {_met(good)}")
        if row["extra_bytes"] != "":
            extra, limit = (int(str(row[key])) for key in ("extra_bytes", "extra_limit_bytes"))
            sizes = f"{format_bytes(extra)} beyond state, target <= {format_bytes(limit)}"
            lines.append(f"{title}: {sizes}: {_met(extra <= limit)}")
    return lines


def _met(good: bool) -> str:
    return "met" if good else "NOT MET"
