"""Fills tables of README and docs from the result files: `python -m benchmarks.tables` (`--check` only compares)."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks import ROOT, delta_tables, quality_tables, suite_tables
from benchmarks.report import RESULTS, format_bytes

Row = dict[str, str]
GPU_MODELS = {
    "deberta-v3-base": "DeBERTa-v3-base, fp32",
    "qwen2.5-1.5b": "Qwen2.5-1.5B, bf16",
    "qwen2.5-7b": "Qwen2.5-7B, bf16",
}
STEP_ROWS = {  # what of step.csv: how README calls it
    "ours, early": "SelectiveAdamW, after 10 % of the steps",
    "ours, middle": "SelectiveAdamW, after 50 %",
    "ours, last": "SelectiveAdamW, last steps",
    "ours, no selection": "SelectiveAdamW, budget spent",
    "AdamW fused": "torch AdamW(fused=True), dense",
    "AdamW foreach": "torch AdamW(foreach=True), dense",
    "dense masking in place": "dense masks, at their best",
    "dense masking compiled": "the same, compiled",
    "dense masking": "dense masks, the obvious way",
    "selective-optimizers": "selective-optimizers 0.4, AdamW id3",
    "read": "only reading parameters and gradients",
}
BUDGET = "320000"


def load(name: str) -> list[Row]:
    """Rows of a result file."""
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def step_table() -> str:
    """Time of a step, from step.csv."""
    rows = [row for row in load("step.csv") if row["model"] == "bert-base" and row["budget"] == BUDGET]
    found = {(row["what"], row["dtype"]): row for row in rows}
    lines = []
    for what, label in STEP_ROWS.items():
        cells = [label]
        for dtype in ("float32", "bfloat16"):
            row = found.get((what, dtype))
            if row is not None and row["ms_median"]:
                cells += [f"{float(row['ms_median']):.1f}", f"{float(row['ratio_to_read']):.2f}"]
            else:
                cells += ["", ""]
        if any(cells[1:]):
            lines.append(cells)
    first = rows[0]
    title = (
        f"One step on BERT-base shapes ({int(first['scalars']):,} scalars in {first['tensors']} tensors), budget "
        f"{int(BUDGET):,} over {int(first['total_steps']):,} steps; {first['cpu']}, {first['threads']} threads, "
        f"torch {first['torch']} (`make bench`, `benchmarks/results/step.csv`):"
    )
    return f"{title}\n\n" + markdown(("", "fp32 ms", "x read", "bf16 ms", "x read"), lines)


def gpu_table() -> str:
    """Time of a step on a GPU, from gpu.csv."""
    rows = [row for row in load("gpu.csv") if row["budget"] in (BUDGET, "") and row["ms_median"]]
    found = {(row["model"], row["method"], row["step"]): row for row in rows}
    models = [model for model in GPU_MODELS if any(model == row["model"] for row in rows)]
    labels = {
        ("ours", "early"): STEP_ROWS["ours, early"],
        ("ours", "middle"): STEP_ROWS["ours, middle"],
        ("ours", "last"): STEP_ROWS["ours, last"],
        ("ours", "budget spent"): STEP_ROWS["ours, no selection"],
        ("AdamW fused", ""): STEP_ROWS["AdamW fused"],
        ("dense masking", "middle"): "dense mask, torch.topk and fused AdamW",
        ("selective-optimizers", "early"): STEP_ROWS["selective-optimizers"],
    }
    lines = []
    for key, label in labels.items():
        cells = [found.get((model, *key)) for model in models]
        numbers = [
            [f"{float(row['ms_median']):.2f}", f"{float(row['ratio_to_read']):.2f}"] if row else ["", ""]
            for row in cells
        ]
        if any(cells):
            lines.append([label, *(number for pair in numbers for number in pair)])
    reads = [next(row for row in rows if row["model"] == model) for model in models]
    numbers = [[f"{float(row['read_ms']):.2f}", "1.00"] for row in reads]
    lines.append([STEP_ROWS["read"], *(number for pair in numbers for number in pair)])
    first = rows[0]
    title = (
        f"The same on a GPU, shapes of larger models, budget {int(BUDGET):,}; {first['gpu']}, torch {first['torch']}, "
        f'triton {first["triton"]}; "x read" is against parameters and gradients at the measured '
        f"{float(first['read_gb_per_s']):,.0f} GB/s (`make gpu-check`, `benchmarks/results/gpu.csv`):"
    )
    header = [cell for model in models for cell in (f"{GPU_MODELS[model]}: ms", "x read")]
    return f"{title}\n\n" + markdown(("", *header), lines)


def memory_table() -> str:
    """State and extra memory of a step, from memory.csv."""
    rows = [row for row in load("memory.csv") if row["model"] == "bert-base"]
    kept = [row for row in rows if row["budget"] == BUDGET and row["dtype"] == "float32"]
    names = {
        "ours, last": "SelectiveAdamW, last steps",
        "AdamW fused": STEP_ROWS["AdamW fused"],
        "selective-optimizers": STEP_ROWS["selective-optimizers"],
    }
    lines = [
        [label, *(format_bytes(float(row[column])) for column in ("state_bytes", "extra_bytes"))]
        for what, label in names.items()
        for row in kept
        if row["what"] == what
    ]
    size = format_bytes(4 * float(kept[0]["scalars"]))
    title = f"Memory for the same ({size} of parameters, float32; `benchmarks/results/memory.csv`):"
    return f"{title}\n\n" + markdown(("", "state between steps", "peak beyond it in a step"), lines)


def _with_range(row: Mapping[str, str]) -> str:
    """The ratio of the update times, and its range over the repeats."""
    middle, low, high = (f"{float(row[f'update_ratio{end}']):.2f}" for end in ("", "_min", "_max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def updates_table() -> str:
    """Scalar updates and their time over a whole run, from updates.csv."""
    rows = load("updates.csv")
    names = {"static": "all in the first step (static)", "increment": "step by step (ID3)"}
    lines = [
        [
            f"{int(row['budget']):,}, {names[row['strategy']]}",
            f"{int(row['updates']):,}",
            f"{float(row['updates_ratio']):.3f}",
            f"{1e3 * float(row['update_seconds']):.0f}",
            _with_range(row),
            f"{1e3 * float(row['optimizer_seconds']):.0f}",
        ]
        for row in rows
    ]
    first = rows[0]
    title = (
        f"A whole run of {int(first['total_steps']):,} steps on the same shapes, float32, by budget; of each step "
        f"the median of {first['repeats']} runs; {first['cpu']}, {first['threads']} threads (`make bench-all`, "
        "`benchmarks/results/updates.csv`):"
    )
    header = ("budget", "scalar updates", "of static", "update kernel ms", "of static", "whole optimizer ms")
    return f"{title}\n\n" + markdown(header, lines)


TABLES: dict[str, Callable[[], str]] = {
    "step": step_table,
    "training": lambda: suite_tables.training_table(load, markdown),
    "memory": memory_table,
    "updates": updates_table,
    "quality": lambda: quality_tables.readme_table(load, markdown),
}
OPTIONAL = {"gpu": gpu_table}  # stand in README only if there is a result file: not everybody has a GPU
DELTAS = {
    "positions": delta_tables.positions_table,
    "sizes": delta_tables.sizes_table,
    "times": delta_tables.times_table,
    "files": delta_tables.files_table,
}


def _bound(tables: Mapping[str, Callable[..., str]]) -> dict[str, Callable[[], str]]:
    return {name: lambda make=make: make(load, markdown) for name, make in tables.items()}  # type: ignore[misc]


PAGES: dict[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {**TABLES, **OPTIONAL},
    "docs/deltas.md": _bound(DELTAS),
    "docs/benchmarks.md": _bound(suite_tables.TABLES),
    "docs/quality.md": _bound(quality_tables.TABLES),
    "docs/choosing.md": _bound(quality_tables.CHOOSING),
}


def filled(text: str, page: str = "README.md") -> str:
    """A page's text with what stands between each pair of markers replaced; by nothing, if there is no result file.

    Raises:
        ValueError: a pair of markers is not there exactly once, although there is something to fill in.
    """
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        empty = name in OPTIONAL and not (RESULTS / f"{name}.csv").exists()
        if empty and begin not in text:
            continue
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page}: expected {begin.strip()!r} and {end!r} once each")
        head, _, rest = text.partition(begin)
        table = "" if empty else make() + "\n"
        text = f"{head}{begin}{table}{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    """Exit code: 0, or 1 if a page differs from the result files and was only to be checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    code = 0
    for page in PAGES:
        before = (ROOT / page).read_text(encoding="utf-8")
        after = filled(before, page)
        if options.check and before != after:
            print(f"{page} differs from benchmarks/results; run: python -m benchmarks.tables", file=sys.stderr)
            code = 1
        elif before != after:
            (ROOT / page).write_text(after, encoding="utf-8")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
