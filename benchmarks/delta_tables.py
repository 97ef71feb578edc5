"""The tables of docs/deltas.md: what deltas cost in live models, on disk, and on checkpoint folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.report import format_bytes

Row = Mapping[str, str]
Load = Callable[[str], list[dict[str, str]]]
Markdown = Callable[[Sequence[str], Sequence[Sequence[str]]], str]

FORMS = {
    "delta, plain": "plain",
    "delta, compact": "`compact=True`",
    "delta, compact, no originals": "`compact=True, originals=False`",
    "whole model": "whole model",
}
CALLS = {
    "from_optimizer": "`SparseDelta.from_optimizer`",
    "save": "`save`",
    "save, compact": "`save(compact=True)`",
    "load": "`load`",
    "load, compact": "`load` of a compact one",
    "apply_": "`apply_`",
    "apply_, unchecked": "`apply_(check=False)`",
    "revert_": "`revert_`",
    "swap_": "`swap_`",
    "swap_, unchecked": "`swap_(check=False)`",
    "whole: load_state_dict": "whole model: `load_state_dict`",
    "whole: save_file": "whole model: `save_file`",
    "whole: load_file": "whole model: `load_file`",
}
CASES = {
    "cp": "`cp` of the folder",
    "cp, synced": "`cp`, until it is on the disk",
    "load, patch, save": "load each file, patch, save",
    "apply": "`apply`",
    "apply without checks": "`apply --no-check`",
    "revert": "`revert`",
    "diff": "`diff`",
}


POSITIONS = {
    "gap codes (encode_gaps)": "`compact=True`",
    "gaps in LEB128, numpy": "gaps in LEB128",
    "int32, copied": "plain: int32",
    "int32 row and column (SHiRA)": "int32 row and column (SHiRA)",
}


def positions_table(load: Load, markdown: Markdown) -> str:
    """Bytes per position, from gaps.csv."""
    rows = load("gaps.csv")
    cases = list(dict.fromkeys((row["lists"], row["share"]) for row in rows if "joined" not in row["lists"]))
    found = {(row["lists"], row["share"], row["code"]): row for row in rows}
    lines = []
    for code, label in POSITIONS.items():
        cells = [found[case[0], case[1], code]["bytes_per_offset"] for case in cases]
        lines.append([label, *(f"{float(cell):.2f}" for cell in cells)])
    title = "Bytes per position, by the share of the scalars that is taken"
    title += " (`make bench-all`, `benchmarks/results/gaps.csv`):"
    header = [f"{lists}, {100 * float(share):g} %" for lists, share in cases]
    return f"{title}\n\n" + markdown(("", *header), lines)


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["dtype"]), []).append(row)
    return found


def sizes_table(load: Load, markdown: Markdown) -> str:
    """Bytes on disk, from deltas.csv."""
    groups = _groups(load("deltas.csv"))
    by_form = {key: {row["what"]: row for row in rows if row["bytes"]} for key, rows in groups.items()}
    lines = [
        [label, *(_size(found[form]) for found in by_form.values() if form in found)] for form, label in FORMS.items()
    ]
    first = next(iter(groups.values()))[0]
    title = (
        f"On disk, of what ID3 changes ({100 * float(first['share']):g} % of all scalars, here by random gradients; "
        "`benchmarks/results/deltas.csv`):"
    )
    return f"{title}\n\n" + markdown(("", *(f"{model}, {dtype}" for model, dtype in groups)), lines)


def _size(row: Row) -> str:
    share = 100 * float(row["of_rival"])
    return format_bytes(float(row["bytes"])) + (f" ({share:.2f} %)" if share < 100 else "")


def times_table(load: Load, markdown: Markdown) -> str:
    """Milliseconds of each call, from deltas.csv."""
    groups = _groups(load("deltas.csv"))
    by_call = {key: {row["what"]: row for row in rows if row["ms_median"]} for key, rows in groups.items()}
    lines = [
        [label, *(f"{float(found[call]['ms_median']):.1f}" for found in by_call.values())]
        for call, label in CALLS.items()
    ]
    first = next(iter(groups.values()))[0]
    title = (
        f"In a live model, milliseconds; {first['cpu']}, {first['threads']} threads, files in the page cache "
        "(`python -m benchmarks.deltas`, `benchmarks/results/deltas.csv`):"
    )
    return f"{title}\n\n" + markdown(("", *(f"{model}, {dtype}" for model, dtype in groups)), lines)


def files_table(load: Load, markdown: Markdown) -> str:
    """Seconds and memory on checkpoint folders, from delta_files.csv."""
    rows = load("delta_files.csv")
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    found = {(row["what"], row["dtype"]): row for row in rows}
    lines = []
    for case, label in CASES.items():
        cells = [label]
        for dtype in dtypes:
            row = found[(case, dtype)]
            cells += [f"{float(row['seconds']):.1f}", format_bytes(float(row["extra_bytes"] or "nan"))]
        lines.append([cell.replace("nan B", "") for cell in cells])
    first = rows[0]
    title = (
        f"A checkpoint of {format_bytes(float(first['bytes']))} in {first['files']} files, "
        f"{100 * float(first['changed']):g} % of it changed: seconds, and memory beyond the delta's own (the largest "
        f"tensor has {format_bytes(float(first['largest_tensor_bytes']))} in {first['dtype']}); fastest of several "
        "runs (`python -m benchmarks.delta_files`, `benchmarks/results/delta_files.csv`):"
    )
    header = [cell for dtype in dtypes for cell in (f"{dtype}: s", "memory")]
    return f"{title}\n\n" + markdown(("", *header), lines)
