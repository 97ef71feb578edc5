"""The most memory that fine-tuning takes, by method, and what it consists of; and that of an optimizer's step alone.

Each method trains in a process of its own; see `peaks` for what is counted as what, and `step_memory` for the rows of
BERT-base shapes, where only the optimizer runs. Bytes that a process held before the model was loaded do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import pictures, step_memory, table9, workloads
from benchmarks.apart import Apart, Died
from benchmarks.bars import Bar, format_bars
from benchmarks.finetuning import OURS, OURS_RARELY, add_methods, method_stamp, methods_for
from benchmarks.gate import Mismatch
from benchmarks.report import describe, environment, format_bytes, format_table
from benchmarks.resident import RETURN_FREED_MEMORY, can_measure
from benchmarks.reviews import MissingData
from benchmarks.suites import CannotRun
from benchmarks.workloads import Workload

LINE = "peak memory of fine-tuning by method: weights, gradients, optimizer state, activations, temporaries"
SHAPES = "bert-base"  # a name for `--models`, too: the rows of `step_memory`
SHAPES_BUDGET = "320000"  # of the rows that are drawn
MODELS = {"small": ["tiny-bert", "tiny-llama"], "full": ["minilm-l6", "smollm2-135m", SHAPES]}
STATE_LIMIT = 0.01  # of full AdamW's optimizer state, float32
PARTS = {  # of a peak: columns, as a picture calls them
    "weights_bytes": "weights",
    "gradient_bytes": "gradients",
    "peak_state_bytes": "optimizer state",
    "activation_bytes": "activations",
    "temporary_bytes": "temporaries",
}
STEP_COLUMNS = ("extra_bytes", "extra_limit_bytes", "state_bytes", "state_limit_bytes", "state_bytes_per_selected")
COLUMNS = (
    "model", "scalars", "dtype", "budget", "what", "selected", *STEP_COLUMNS, "held_bytes", "within_limits", "device",
    "sequences", "tokens", *PARTS, "peak_bytes", "peak_of_full", "state_of_full", "note",
)  # fmt: skip
Rows = list[dict[str, object]]
Tick = Callable[[], object]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which methods, and where to find times for the paper's Table 9."""
    add_methods(parser)
    table9.add_option(parser, "end2end")


def run(options: argparse.Namespace) -> Rows:
    """Measures, prints tables and bars.

    Raises:
        CannotRun: a model or method is unknown, data is missing, or the peak cannot be measured here.
        Mismatch: a method trains more scalars than it should, or fewer.
    """
    names = options.models or MODELS[options.preset]
    if options.device == "cpu" and not can_measure():
        raise CannotRun("the peak cannot be measured: /proc/self/clear_refs is not writable (Linux only)")
    stamp = environment() | method_stamp(torch.device(options.device))
    print(describe(stamp), flush=True)
    try:
        works = workloads.find([name for name in names if name != SHAPES])
        for work in works:
            workloads.ready(work)
    except MissingData as error:
        raise CannotRun(str(error)) from error
    methods = methods_for(options.device, options.methods)
    rows: Rows = []
    cases = [(work, dtype) for work in works for dtype in options.dtype or ["float32"]]
    with_shapes = SHAPES in names and options.device == "cpu"
    try:
        with tqdm(total=len(cases) * len(methods) + with_shapes * len(step_memory.CASES), leave=False) as bar:
            if cases:
                with Apart("benchmarks.peaks", RETURN_FREED_MEMORY) as apart:
                    for work, dtype in cases:
                        rows += _training(apart, work, dtype, options.device, methods, bar.update)
            shapes = _shapes(bar.update) if with_shapes else []
    except Died as error:
        raise CannotRun(str(error)) from error
    print(screen(rows))
    if shapes:
        print(f"\nOnly the optimizer's step, shapes of {SHAPES}:\n{step_memory.screen(shapes)}")
    print(table9.screen(table9.other(options, "end2end"), rows))
    if judged := bars(rows):
        print(f"\n{format_bars(judged)}")
    return [{**row, **stamp} for row in (*rows, *shapes)]


def _training(apart: Apart, work: Workload, dtype: str, device: str, methods: Sequence[str], tick: Tick) -> Rows:
    """Rows of one model, the first of full AdamW."""
    rows: Rows = []
    for method in methods:
        try:
            found = apart.call(
                model=work.name, method=method, dtype=dtype, device=device, threads=torch.get_num_threads()
            )
        except Died as error:
            if error.status is None or error.status >= 0:
                raise
            found = {"note": f"the process was killed by signal {-error.status}; is there enough memory?"}
        if found.get("first") != found.get("expected"):
            raise Mismatch(f"{method}: expected {found['expected']} trained scalars, got {found['first']}")
        rows.append(row_of(work, dtype, device, method, found, rows[0] if rows else None))
        tick()
    return rows


def row_of(
    work: Workload, dtype: str, device: str, method: str, found: Mapping[str, Any], full: Mapping[str, object] | None
) -> dict[str, object]:
    """A CSV row; bytes. Without a measurement there is only a note.

    Args:
        work, dtype, device, method: what was measured.
        found: what `peaks.measured` returned.
        full: the row of full AdamW; None if this is that one.
    """
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    row |= {"model": work.name, "dtype": dtype, "what": method, "device": device}
    row |= {"sequences": work.sequences, "tokens": work.tokens, "note": found.get("note", "")}
    if "peak" not in found:
        return row
    names = ("weights", "gradients", "state", "activations", "temporaries")
    row |= {column: found[name] for column, name in zip(PARTS, names, strict=True)}
    row |= {"scalars": found["scalars"], "budget": found["budget"], "selected": found["trained"]}
    row |= {"peak_bytes": found["peak"], "state_bytes": found["held"]}
    full = row if full is None else full
    if full["peak_bytes"]:
        for column, of in (("peak_bytes", "peak_of_full"), ("state_bytes", "state_of_full")):
            row[of] = f"{float(str(row[column])) / float(str(full[column])):.4f}"
    return row


def _shapes(tick: Tick) -> Rows:
    """Rows of BERT-base shapes, filled up to the columns of the others."""
    rows: Rows = []
    with Apart("benchmarks.step_memory", RETURN_FREED_MEMORY) as apart:
        for number, case in enumerate(step_memory.CASES):
            found = apart.call(number=number, model=SHAPES, threads=torch.get_num_threads())
            row: dict[str, object] = dict.fromkeys(COLUMNS, "")
            rows.append(row | step_memory.row_of(case, SHAPES, found) | {"device": "cpu"})
            tick()
    return rows


def bars(rows: Sequence[Mapping[str, object]]) -> list[Bar]:
    """What must hold of our state on real models, in float32."""
    return [
        Bar(
            f"{row['model']}, {row['what']}: optimizer state of full AdamW's",
            float(str(row["state_of_full"])),
            STATE_LIMIT,
        )
        for row in rows
        if row["what"] in (OURS, OURS_RARELY)
        and row["dtype"] == "float32"
        and row["state_of_full"]
        and workloads.is_real(row["model"])
    ]


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """A table for each model and dtype."""
    header = ("", "trained", "peak", "of full", *PARTS.values(), "state held", "of full", "")
    tables = []
    for key in dict.fromkeys((row["model"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["dtype"]) == key]
        lines = [
            [
                str(row["what"]),
                f"{row['selected']:,}" if row["selected"] else "",
                _size(row["peak_bytes"]),
                str(row["peak_of_full"]),
                *(_size(row[column]) for column in PARTS),
                _size(row["state_bytes"]),
                str(row["state_of_full"]),
                str(row["note"]),
            ]
            for row in mine
        ]
        first = mine[0]
        title = f"\n{key[0]}, {key[1]}, batches of {first['sequences']} x {first['tokens']} tokens: bytes at the peak"
        tables.append(format_table(header, lines, title))
    return "\n".join(tables)


def _size(value: object) -> str:
    return format_bytes(float(str(value))) if value != "" else ""


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """A stacked bar for each method, a panel for each model and dtype; what could not be run is left out."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        if row.get("peak_bytes"):
            shape = f"{row['sequences']} x {row['tokens']} tokens"
            title = f"{row['model']} ({int(row['scalars']):,} scalars), {row['dtype']}, {shape}"
            stack = {name: float(row[column]) for column, name in PARTS.items()}
            panels.setdefault(title, {})[row["what"]] = stack
        elif row["extra_bytes"] and row["dtype"] == "float32" and row["budget"] == SHAPES_BUDGET:
            title = f"only an optimizer's step, {row['model']} ({int(row['scalars']):,} scalars), {row['dtype']}"
            stack = dict.fromkeys(PARTS.values(), 0.0)  # all parts, so that colours are those of the other panels
            stack |= {PARTS["peak_state_bytes"]: float(row["state_bytes"])}
            stack |= {PARTS["temporary_bytes"]: float(row["extra_bytes"])}
            panels.setdefault(title, {})[row["what"]] = stack
    columns = min(len(panels), 2)
    width, height = 6.5 * columns, 5.2 * -(-len(panels) // 2)
    figure = pictures.new_figure("Peak memory of fine-tuning", rows, len(panels), width, height, columns=columns)
    for axes, (title, stacks) in zip(figure.axes, panels.items(), strict=False):
        pictures.memory_bars(axes, stacks)
        pictures.set_title(axes, title)
    pictures.save(figure, path)
