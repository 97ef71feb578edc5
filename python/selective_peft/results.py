"""What a training run leaves: metrics, a delta, and where its budget went."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selective_peft import SelectiveAdamW, SparseDelta
from selective_peft.changes import Change
from selective_peft.errors import DeltaError, first_line
from selective_peft.making_deltas import about_run, difference
from selective_peft.naming import count_by_place, named_params, places

PEFT_PREFIX = "base_model.model."  # before the names of a model inside a PEFT model


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, see `to_json`."""
    path.write_text(to_json(content) + "\n", encoding="utf-8")


def to_json(content: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """Readable JSON; numbers that JSON does not have become null."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=ascii_only)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def selective(model: nn.Module, optimizer: SelectiveAdamW) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Each parameter that is selected from: its name, itself, its selected offsets (int64, ascending)."""
    known = {id(param) for group in optimizer.param_groups if group["selective"] for param in group["params"]}
    for name, param in model.named_parameters():
        if id(param) in known:
            yield name, param, optimizer.selected_indices(param)


def trained_delta(
    model: nn.Module,
    optimizer: SelectiveAdamW,
    whole: frozenset[str],
    new: frozenset[str],
    first: Mapping[str, Tensor] | None,
    more: Mapping[str, Any],
) -> SparseDelta:
    """What training has changed so far.

    Args:
        model: the trained model.
        optimizer: which trained it.
        whole: names of the parameters outside the budget.
        new: names of those among them that the base's checkpoint lacks.
        first: values before training, by name, of all that is trained, for a method that also changed scalars which
            are not selected any more; else None.
        more: what its hyper-parameters are to say besides those of the optimizer.

    Raises:
        RuntimeError: training made a scalar inf or NaN.
    """
    try:
        if first is None:
            delta = SparseDelta.from_optimizer(optimizer, model)
        else:
            delta = SparseDelta(_changes_since(first, model, whole), about_run(optimizer, model, None, None))
    except DeltaError as error:
        raise RuntimeError(f"training ended with values that no delta holds: {first_line(error)}") from error
    changes = {name: replace(each, digest="") if name in new else each for name, each in delta.changes.items()}
    about = replace(delta.about, hyperparameters={**delta.about.hyperparameters, **more})
    return SparseDelta(changes, about)


def _changes_since(first: Mapping[str, Tensor], model: nn.Module, whole: frozenset[str]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for name, param in named_params(model).items():
        if name in whole:
            found[name] = Change.whole(param.detach().cpu().clone(), first[name].cpu())
        elif name in first and (change := difference(name, first[name], param, whole_above=1.0)) is not None:
            found[name] = change
    return found


def where(model: nn.Module, optimizer: SelectiveAdamW) -> dict[str, dict[str, int]]:
    """Where the budget went: module -> layer -> selected scalars; all that is trained if nothing is selected from.

    See `naming.places` for what module and layer are.
    """
    counts = {name: len(indices) for name, _, indices in selective(model, optimizer)}
    if not counts:
        known = {id(param) for group in optimizer.param_groups for param in group["params"]}
        counts = {name: param.numel() for name, param in model.named_parameters() if id(param) in known}
    wrapped = PEFT_PREFIX if all(name.startswith(PEFT_PREFIX) for name in counts) else ""
    prefix = f"{wrapped}{getattr(model, 'base_model_prefix', '')}."  # of transformers: what all names begin with
    return count_by_place(places(counts, prefix), list(counts.values()))
