"""What `selective-peft inspect` finds in one delta or two, as numbers and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from selective_peft import analysis
from selective_peft.composing import Agreement
from selective_peft.container import Container
from selective_peft.delta import SparseDelta
from selective_peft.naming import top_modules
from selective_peft.showing import clean
from selective_peft.updates import Updates

POSITIONS = (".indices", ".gaps")
ORIGINALS = {  # "reverts" of `facts_of` -> words
    "models and checkpoints": "kept: it can be undone",
    "checkpoints": "kept but for new tensors: it can be undone in checkpoints",
    "nothing": "not kept: it cannot be undone without the base",
}


def updates_of(delta: SparseDelta) -> Updates | None:
    """Its updates one by one, if it has any and their originals were kept."""
    sparse = [change for change in delta.changes.values() if not change.is_whole]
    return delta.updates() if sparse and all(change.originals is not None for change in sparse) else None


def facts_of(delta: SparseDelta, file: Path) -> dict[str, Any]:
    """Numbers of one delta: what `SparseDelta.summary` says, and what its file adds.

    "encoding", "created_by", "file_bytes", "position_bytes" (of the file, for positions), "density" (scalars / of, 0
    without any), "modules" (module -> "layers", "scalars", "mean_update", most scalars first) and "whole_mean_update"
    (name -> mean). Means are of |after - before|, and null if the originals were not kept. "new" are names of whole
    tensors that the base lacks. "reverts" says where it can be undone without the base: "models and checkpoints",
    "checkpoints" (only new tensors lack originals: a checkpoint without them had none), or "nothing".
    """
    told = delta.summary()
    with Container(file) as container:
        metadata, tensors = container.metadata, container.tensors
    updates = updates_of(delta)
    means = {} if updates is None else analysis.mean_update_by_module(updates)
    where = told["where"]
    order = sorted(where, key=lambda module: -sum(where[module].values()))
    lacking = [change for change in delta.changes.values() if change.originals is None]
    reverts = "checkpoints" if all(change.is_new for change in lacking) else "nothing"
    return {
        **told,
        "new": [name for name, change in delta.changes.items() if change.is_new],
        "reverts": reverts if lacking else "models and checkpoints",
        "encoding": metadata["encoding"],
        "created_by": metadata.get("created_by", ""),
        "file_bytes": file.stat().st_size,
        "position_bytes": sum(each.nbytes for name, each in tensors.items() if name.endswith(POSITIONS)),
        "density": told["scalars"] / told["of"] if told["of"] else 0.0,
        "modules": {
            module: {
                "layers": len(where[module]),
                "scalars": sum(where[module].values()),
                "mean_update": means.get(module),
            }
            for module in order
        },
        "whole_mean_update": {
            name: None
            if change.originals is None or not change.numel
            else float((change.values.double() - change.originals.double()).abs().mean())
            for name, change in delta.changes.items()
            if change.is_whole
        },
    }


def rows_of(found: Mapping[str, Any]) -> dict[str, str]:
    """What stands above the table of modules."""
    scalars, whole = found["scalars"], found["whole"]
    made = ", ".join(f"{name}={value}" for name, value in found["hyperparameters"].items() if value not in (None, ""))
    positions = f"{found['encoding']} ({found['position_bytes'] / scalars:.2f} bytes a scalar)" if scalars else ""
    share = f" of {found['of']:,} in {found['tensors'] - len(whole):,} tensors ({100 * found['density']:.3g} %)"
    return {
        "base": found["base_model"] or "not named",
        "revision": found["base_revision"],
        "method": found["method"],
        "made with": made,
        "single scalars": f"{scalars:,}{share if found['of'] else ''}",
        "whole tensors": f"{len(whole):,} ({sum(whole.values()):,} scalars)" if whole else "none",
        "size on disk": f"{found['file_bytes']:,} bytes",
        "positions": positions,
        "originals": ORIGINALS[found["reverts"]],
        "fingerprint": found["fingerprint"],
        "created by": found["created_by"],
    }


def module_table(delta: SparseDelta, found: Mapping[str, Any], top: int) -> Table:
    """Counts and mean updates by module, `top` rows at most, and whole tensors."""
    grid = Table(show_header=True, header_style="bold")
    for heading in ("module", "layers", "scalars", "share", "mean |update|"):
        grid.add_column(heading, justify="left" if heading == "module" else "right", overflow="fold")
    modules = found["modules"]
    row_of = top_modules({module: each["scalars"] for module, each in modules.items()}, top)
    updates = updates_of(delta)
    means = {} if updates is None else analysis.mean_update(updates, lambda place: row_of[place.module])
    for row in dict.fromkeys(row_of.values()):
        inside = [each for module, each in modules.items() if row_of[module] == row]
        count = sum(each["scalars"] for each in inside)
        layers = f"{inside[0]['layers']:,}" if len(inside) == 1 else ""
        share = f"{100 * count / found['scalars']:.1f} %" if found["scalars"] else ""
        grid.add_row(clean(row), layers, f"{count:,}", share, _mean(means.get(row)))
    names = list(found["whole"])
    if names and modules:
        grid.add_section()
    for name in names[:top]:
        mean = _mean(found["whole_mean_update"][name])
        grid.add_row(f"{clean(name)}, whole", "", f"{found['whole'][name]:,}", "", mean)
    if len(names) > top:
        rest = sum(found["whole"][name] for name in names[top:])
        grid.add_row(f"others ({len(names) - top}), whole", "", f"{rest:,}", "", "")
    return grid


def _mean(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def agreement_table(found: Mapping[str, Agreement], top: int) -> Table:
    """Counts of two deltas by module, `top` rows at most, and all together."""
    grid = Table(show_header=True, header_style="bold")
    for heading in ("module", "first", "second", "in both", "Jaccard", "conflicts"):
        grid.add_column(heading, justify="left" if heading == "module" else "right", overflow="fold")
    modules = {module: each for module, each in found.items() if module != "all"}
    row_of = top_modules({module: each.union for module, each in modules.items()}, top)
    for row in dict.fromkeys(row_of.values()):
        inside = [each for module, each in modules.items() if row_of[module] == row]
        _add_row(grid, row, _sum(inside))
    grid.add_section()
    _add_row(grid, "all", found.get("all", Agreement(0, 0, 0)))
    return grid


def _sum(parts: list[Agreement]) -> Agreement:
    return Agreement(
        *(sum(getattr(each, name) for each in parts) for name in ("first", "second", "shared", "conflicts"))
    )


def _add_row(grid: Table, name: str, each: Agreement) -> None:
    counts = (f"{each.first:,}", f"{each.second:,}", f"{each.shared:,}", f"{each.jaccard:.3f}", f"{each.conflicts:,}")
    grid.add_row(clean(name), *counts)
