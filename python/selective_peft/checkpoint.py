"""The selective part of a state dict: packing, and checking one before anything is overwritten (C11)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from selective_kernels import SparseIndex, Table
from selective_peft.selection import Selection

VERSION = 3
INT32 = torch.int32
INT64 = torch.int64


def pack(
    selection: Selection,
    table: Table,
    names: Sequence[str],
    described: Mapping[str, Any],
    schedule: Tensor,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Tensors and primitives only, copied, so that later steps do not change what was packed.

    Args:
        selection, table, names: what to pack.
        described: settings that must agree when it is loaded.
        schedule: cumulative targets.
        extra: further state of the optimizer, not shared with it.
    """
    count = selection.count
    missed = sorted(selection.missed.items())
    return {
        "version": VERSION,
        **described,
        "names": list(names),
        "sizes": list(table.numels),
        "dtypes": [str(dtype) for dtype in table.dtypes],
        "step": selection.step,
        "skipped_steps": selection.skipped,
        "warmup_done": selection.warmup,
        "threshold": selection.threshold,
        "schedule": schedule.clone(),
        "tensor_steps": torch.tensor(selection.tensor_steps, dtype=INT64, device="cpu"),
        "missed_tensors": torch.tensor([i for i, steps in missed for _ in steps], dtype=INT64, device="cpu"),
        "missed_steps": torch.tensor([step for _, steps in missed for step in steps], dtype=INT64, device="cpu"),
        "starts": torch.tensor(selection.index.starts, dtype=INT64, device="cpu"),
        "offsets": selection.index.valid.clone(),
        "arrays": {name: array[:count].clone() for name, array in selection.arrays.items()},
        "extra": dict(extra),
    }


def pack_nothing() -> dict[str, Any]:
    """What stands for a selection before the first step.

    Not nothing at all: what reads a checkpoint into the items that a new optimizer's state dict has, and into no others
    (torch.distributed.checkpoint), then leaves a trace of the steps whose selection it has lost.
    """
    return {"version": VERSION, "step": 0, "skipped_steps": 0, "warmup_done": 0}


def is_nothing(packed: object) -> bool:
    """Whether it is what `pack_nothing` gave."""
    return isinstance(packed, Mapping) and dict(packed) == pack_nothing()


def _equal(what: str, expected: object, given: object) -> None:
    if expected != given:
        raise ValueError(f"state_dict: {what}: expected {expected!r}, got {given!r}")


def _vector(packed: Mapping[str, Any], name: str, dtype: torch.dtype, length: int | None) -> Tensor:
    value = packed[name]
    if not isinstance(value, Tensor) or value.dtype != dtype or value.dim() != 1:
        given = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"state_dict: {name}: expected a vector of {dtype}, got {given}")
    if length is not None and len(value) != length:
        raise ValueError(f"state_dict: {name}: expected {length} items, got {len(value)} (truncated?)")
    return value


def check_halves(state_dict: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the item, unless "state" and "param_groups" are there."""
    for half in ("state", "param_groups"):
        if half not in state_dict:
            raise ValueError(f"state_dict: expected the item {half!r}, which is missing (truncated?)")


def check_groups(saved: Sequence[Any], groups: Sequence[Mapping[str, Any]], options: Collection[str]) -> None:
    """Raises ValueError, naming the item, unless packed groups are like this optimizer's.

    Args:
        saved: the "param_groups" of a state dict.
        groups: this optimizer's groups.
        options: names of hyper-parameters; a packed group must have those that its counterpart has.
    """
    _equal("number of param_groups", len(groups), len(saved))
    for i, (theirs, mine) in enumerate(zip(saved, groups, strict=True)):
        missing = sorted({"params", *options} & set(mine) - set(theirs))
        if missing:
            raise ValueError(
                f"state_dict: param_groups[{i}]: expected the items {missing}, which are missing (truncated, or of "
                "another optimizer?)"
            )
        _equal(f"number of parameters in param_groups[{i}]", len(mine["params"]), len(theirs["params"]))
        _equal(f"param_groups[{i}]['selective']", mine["selective"], theirs["selective"])


def check_items(packed: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the item, unless everything is there, of this version and with these settings.

    Args:
        packed: what `pack` gave, possibly from elsewhere.
        described: settings that must agree.
    """
    if not isinstance(packed, Mapping):
        raise ValueError(f"state_dict: selective: expected a dict, got {type(packed).__name__}")
    _equal("version", VERSION, packed.get("version"))
    wanted = {*described, "names", "sizes", "dtypes", "step", "skipped_steps", "schedule", "tensor_steps"}
    wanted |= {"missed_tensors", "missed_steps", "starts", "offsets", "arrays", "warmup_done", "extra"}
    wanted |= {"total_steps", "threshold"}
    missing = sorted(wanted - set(packed))
    if missing:
        raise ValueError(
            f"state_dict: selective: expected the items {missing}, which are missing (truncated, or read into a new "
            "optimizer's state by torch.distributed.checkpoint?)"
        )
    for what, expected in described.items():
        _equal(what, expected, packed[what])


def budget_of(packed: Mapping[str, Any]) -> int:
    """The budget in scalars: the schedule's last target."""
    schedule = _vector(packed, "schedule", INT64, None)
    if len(schedule) == 0:
        raise ValueError("state_dict: schedule: expected at least one item, got 0 (truncated?)")
    return int(schedule[-1])


def total_steps_of(packed: Mapping[str, Any]) -> int:
    """The number of steps over which the budget is spent: the schedule has so many targets."""
    steps = packed["total_steps"]
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"state_dict: total_steps: expected an integer >= 1, got {steps!r}")
    _vector(packed, "schedule", INT64, steps)
    return steps


def check_values(
    packed: Mapping[str, Any],
    table: Table,
    names: Sequence[str],
    schedule: Tensor,
    array_dtypes: Mapping[str, torch.dtype],
) -> None:
    """Raises ValueError, naming the item, if a packed state does not fit this model or is damaged.

    Args:
        packed: what passed `check_items`.
        table: this optimizer's tensors.
        names: their names; empty if the parameters came without names.
        schedule: this optimizer's targets.
        array_dtypes: per-entry arrays that must be there.
    """
    if names and packed["names"]:
        _equal("names", list(names), packed["names"])
    _equal("sizes", list(table.numels), packed["sizes"])
    _equal("dtypes", [str(dtype) for dtype in table.dtypes], packed["dtypes"])
    for what in ("step", "skipped_steps", "warmup_done"):
        if not isinstance(packed[what], int) or packed[what] < 0:
            raise ValueError(f"state_dict: {what}: expected an integer >= 0, got {packed[what]!r}")
    if not isinstance(packed["threshold"], float | None):
        raise ValueError(f"state_dict: threshold: expected a number or None, got {packed['threshold']!r}")
    if not torch.equal(_vector(packed, "schedule", INT64, len(schedule)).cpu(), schedule):
        raise ValueError("state_dict: schedule: expected the targets of this optimizer's schedule, got others")
    done = packed["step"]
    _check_range("tensor_steps", _vector(packed, "tensor_steps", INT64, len(table)), done + 1)
    missed_tensors = _vector(packed, "missed_tensors", INT64, None)
    missed_steps = _vector(packed, "missed_steps", INT64, len(missed_tensors))
    _check_range("missed_tensors", missed_tensors, len(table))
    _check_range("missed_steps", missed_steps, done)
    if bool(((missed_tensors.diff() < 0) | ((missed_tensors.diff() == 0) & (missed_steps.diff() <= 0))).any()):
        raise ValueError("state_dict: missed_steps: expected ascending steps for ascending tensors")
    _check_positions(packed, table, int(schedule[-1]))
    if not isinstance(packed["arrays"], Mapping):
        raise ValueError(f"state_dict: arrays: expected a dict, got {type(packed['arrays']).__name__}")
    _equal("arrays", sorted(array_dtypes), sorted(packed["arrays"]))
    for name, dtype in array_dtypes.items():
        _vector(packed["arrays"], name, dtype, len(packed["offsets"]))
    _check_range("chosen", packed["arrays"]["chosen"], max(done, int(packed["warmup_done"] > 0)))


def _check_range(name: str, values: Tensor, end: int) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < end:
        raise ValueError(
            f"state_dict: {name}: expected numbers in [0, {end}), got {int(values.min())} to {int(values.max())}"
        )


def _check_positions(packed: Mapping[str, Any], table: Table, budget: int) -> None:
    starts = _vector(packed, "starts", INT64, len(table) + 1).cpu()
    offsets = _vector(packed, "offsets", INT32, None).cpu().long()
    if int(starts[0]) != 0 or int(starts[-1]) != len(offsets) or bool((starts.diff() < 0).any()):
        raise ValueError(f"state_dict: starts: expected ascending from 0 to {len(offsets)} (truncated?)")
    if len(offsets) > budget:
        raise ValueError(f"state_dict: offsets: expected at most {budget} (the budget), got {len(offsets)}")
    owners = torch.repeat_interleave(torch.arange(len(table), device="cpu"), starts.diff())
    sizes = torch.tensor(table.numels, dtype=INT64, device="cpu")
    inside = bool(((offsets >= 0) & (offsets < sizes[owners])).all())
    if not inside or bool(((owners.diff() == 0) & (offsets.diff() <= 0)).any()):
        raise ValueError("state_dict: offsets: expected ascending positions inside their tensors")


def unpack_(packed: Mapping[str, Any], selection: Selection) -> None:
    """Overwrites a fresh selection with a checked packed state, copied and moved to its device."""
    count = len(packed["offsets"])
    selection.index = SparseIndex(selection.index.offsets, packed["starts"].tolist())
    selection.index.offsets[:count] = packed["offsets"]
    for name, array in selection.arrays.items():
        array[:count] = packed["arrays"][name]
    selection.tensor_steps = packed["tensor_steps"].tolist()
    selection.missed = {}
    pairs = zip(packed["missed_tensors"].tolist(), packed["missed_steps"].tolist(), strict=True)
    for tensor, step in pairs:
        selection.missed.setdefault(tensor, []).append(step)
    selection.step = packed["step"]
    selection.skipped = packed["skipped_steps"]
    selection.warmup = packed["warmup_done"]
    selection.threshold = packed["threshold"]
