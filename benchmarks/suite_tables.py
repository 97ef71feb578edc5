"""The tables of docs/benchmarks.md, from the result files of the suites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks import end2end, memory, op_report, step_rows, table9
from benchmarks.bars import Bar
from benchmarks.report import format_bytes
from benchmarks.scaling_cases import AXES
from benchmarks.step_cases import RIVALS

Row = Mapping[str, str]
Load = Callable[[str], list[dict[str, str]]]
Markdown = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
BARS: Mapping[str, Callable[[Sequence[Mapping[str, object]]], list[Bar]]] = {
    "step": step_rows.bars,
    "end2end": end2end.bars,
    "memory": memory.bars,
    "ops": op_report.bars,
}


def machine(row: Row) -> str:
    """What a table's numbers were measured on."""
    return f"{row['cpu']}, {row['threads']} threads, torch {row['torch']}, commit {row['commit'][:7]}"


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bars_table(load: Load, markdown: Markdown) -> str:
    """Every bar of every suite, and whether it is held."""
    lines = []
    for suite, bars in BARS.items():
        for bar in bars(load(f"{suite}.csv")):
            sign = "≥" if bar.least else "≤"
            verdict = bar.missing or ("held" if bar.met else "**not met**")
            measured = "" if bar.missing else f"{bar.shown}{bar.unit}"
            lines.append([bar.what, measured, f"{sign} {bar.limit:g}{bar.unit}", verdict])
    held, missed = (sum(line[-1] == verdict for line in lines) for verdict in ("held", "**not met**"))
    title = f"{held} bars are held, {missed} missed, {len(lines) - held - missed} not measured:"
    return f"{title}\n\n" + markdown(("", "measured", "bar", ""), lines)


def models_table(load: Load, markdown: Markdown) -> str:
    """A step in the middle of a run, by model and dtype: its time, and by how much it is faster than each rival."""
    rows = [row for row in load("step.csv") if row["what"] == "ours, middle" and row["ms_median"]]
    names = [step_rows.column(rival) for rival in RIVALS]
    lines = [
        [
            f"{row['model']}, {int(row['scalars']):,}",
            row["dtype"],
            f"{int(row['budget']):,}",
            f"{float(row['ms_median']):.1f} ({float(row['ms_min']):.1f} to {float(row['ms_max']):.1f})",
            f"{float(row['ratio_to_read']):.2f}",
            f"{float(row['percent_of_read_bandwidth']):.0f}",
            *(_number(float(row[name])) if row[name] else "" for name in names),
        ]
        for row in rows
    ]
    title = "A selecting step in the middle of a run; the rivals' columns say how many times slower they are"
    title += f"; {machine(rows[0])}:"
    header = ("model, scalars", "dtype", "budget", "ms (min to max)", "x read", "% of bandwidth", *RIVALS)
    return f"{title}\n\n" + markdown(header, lines)


def ops_table(load: Load, markdown: Markdown) -> str:
    """Single operations at the base and on other models."""
    rows = [row for row in load("ops.csv") if row["axis"] in ("base", "N")]
    lines = []
    for op in dict.fromkeys(row["op"] for row in rows):
        for ours, others in op_report.points_of(rows, op):
            rivals = "; ".join(f"{_number(float(str(row['speedup'])))} {row['what']}" for row in others)
            times = f"{float(str(ours['ms_median'])):.3f}"
            limit = f"{float(str(ours['percent_of_bound'])):.0f} % of {ours['bound']}"
            lines.append([op, f"{ours['model']}, {ours['dtype']}", times, f"{ours['gb_per_s']}", limit, rivals])
    title = f"Single operations; the last column says how many times slower each rival is; {machine(rows[0])}:"
    return f"{title}\n\n" + markdown(("", "on", "ms", "GB/s", "of the limit", "rivals"), lines)


def end2end_table(load: Load, markdown: Markdown) -> str:
    """Whole training steps by method and model."""
    rows = [row for row in load("end2end.csv") if row["ms_median"]]
    lines = [
        [
            f"{row['model']}, {row['dtype']}: {row['method']}",
            f"{int(row['trained']):,}",
            f"{float(row['ms_median']):,.0f} ({float(row['ms_min']):,.0f} to {float(row['ms_max']):,.0f})",
            *(f"{float(row[part]):,.1f}" for part in end2end.PARTS),
            f"{100 * float(row['optimizer_share']):.1f}",
            f"{float(row['tokens_per_s']):,.0f}",
            f"{float(row['of_full']):.2f} ({float(row['of_full_min']):.2f} to {float(row['of_full_max']):.2f})",
        ]
        for row in rows
    ]
    left_out = [f"{row['model']}, {row['method']}: {row['note']}" for row in load("end2end.csv") if row["note"]]
    shapes = dict.fromkeys(f"{row['model']} {row['sequences']} x {row['tokens']} tokens" for row in rows)
    title = (
        f"Training steps with real text, in the middle of a run, batches of {', '.join(shapes)}; {machine(rows[0])}:"
    )
    header = (
        "",
        "trained by then",
        "ms (min to max)",
        *end2end.PARTS.values(),
        "selection + update %",
        "tokens/s",
        "of full",
    )
    return "\n".join([f"{title}\n\n" + markdown(header, lines), *(f"\n{line}." for line in left_out)])


def training_table(load: Load, markdown: Markdown) -> str:
    """The same of one model, in short, with what is trained and held at the end of a run."""
    rows = [
        row
        for row in load("end2end.csv")
        if row["ms_median"] and (row["model"], row["dtype"]) == (end2end.BAR_MODEL, "float32")
    ]
    peaks = {row["what"]: row for row in load("memory.csv") if row["model"] == end2end.BAR_MODEL and row["peak_bytes"]}
    lines = []
    for row in rows:
        optimizer = float(row["selection_ms"]) + float(row["update_ms"])
        times = [f"{float(row['ms_median']):,.0f}", f"{optimizer:.1f}", f"{float(row['of_full']):.2f}"]
        peak = peaks.get(row["method"])
        sizes = [format_bytes(float(peak[name])) for name in ("state_bytes", "peak_bytes")] if peak else ["", ""]
        lines.append([row["method"], f"{int(peak['selected']):,}" if peak else "", *times, *sizes])
    first = rows[0]
    title = (
        f"{first['model']} ({int(first['scalars']):,} scalars), float32, batches of {first['sequences']} x "
        f"{first['tokens']} tokens, budget {int(first['budget']):,}; {first['cpu']}, {first['threads']} threads "
        "(`make bench`, `benchmarks/results/end2end.csv`):"
    )
    header = ("", "scalars trained", "step ms", "of it optimizer", "of full", "optimizer state", "peak memory")
    return f"{title}\n\n" + markdown(header, lines)


def peaks_table(load: Load, markdown: Markdown) -> str:
    """Peak memory of fine-tuning by method and model."""
    rows = [row for row in load("memory.csv") if row["peak_bytes"]]
    lines = [
        [
            f"{row['model']}: {row['what']}",
            format_bytes(float(row["peak_bytes"])),
            f"{float(row['peak_of_full']):.2f}",
            *(format_bytes(float(row[part])) for part in memory.PARTS),
            format_bytes(float(row["state_bytes"])),
            f"{float(row['state_of_full']):.4f}",
        ]
        for row in rows
    ]
    title = f"Peak memory of the same runs, and what it consists of; {machine(rows[0])}:"
    header = ("", "peak", "of full", *memory.PARTS.values(), "state between steps", "of full")
    return f"{title}\n\n" + markdown(header, lines)


def paper_table(load: Load, markdown: Markdown) -> str:
    """Table 9 of the paper beside what was measured here, for each model."""
    times, sizes = load("end2end.csv"), load("memory.csv")
    tables = []
    for model in dict.fromkeys(row["model"] for row in times):
        mine, theirs = ([row for row in rows if row["model"] == model] for rows in (times, sizes))
        lines = [[f"{model}: {first}", *cells] for first, *cells in table9.lines(mine, theirs)]
        tables += lines
    title = (
        "All relative to full fine-tuning, the paper's numbers to the paper's and those measured here to those here:"
    )
    return f"{title}\n\n" + markdown(table9.HEADER, tables)


def exponents_table(load: Load, markdown: Markdown) -> str:
    """Fitted exponents."""
    rows = [row for row in load("scaling.csv") if row["kind"] == "exponent"]
    lines = [
        [
            f"{row['what']}: {AXES[row['axis']]}",
            f"{int(row['x_from']):,} to {int(row['x_to']):,}",
            row["points"],
            row["exponent"] + (f" ± {row['exponent_error']}" if row["exponent_error"] else ""),
            f"{row['exponent_low']} to {row['exponent_high']}",
            row["expected"],
        ]
        for row in rows
    ]
    title = f"Time goes as x^p; p ± its standard error; {machine(rows[0])}:"
    return f"{title}\n\n" + markdown(("", "x", "points", "p", "over the rounds", "expected"), lines)


TABLES: Mapping[str, Callable[[Load, Markdown], str]] = {
    "bars": bars_table,
    "models": models_table,
    "end2end": end2end_table,
    "paper": paper_table,
    "peaks": peaks_table,
    "ops": ops_table,
    "exponents": exponents_table,
}
