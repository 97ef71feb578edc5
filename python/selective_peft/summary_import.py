"""A summary of the package `selective-optimizers` 0.4 as a delta of its base.

A summary has no names: it lists what was chosen by position among `model.parameters()`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selective_peft.about import About, describe_model
from selective_peft.changes import Change
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import difference, state_of, with_ties
from selective_peft.naming import named_params, unwrapped
from selective_peft.rawbytes import BITS, digest
from selective_peft.torch_archive import Object, StoredTensor, TorchArchive

CLASS = "selective_optimizers.load_store SelectivePeftSummary"
FIELDS = ("values", "pointers", "shapes", "bn_metadata", "budget_used")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # whose statistics a summary has


def import_summary(
    path: str | Path,
    model: nn.Module,
    *,
    new: Collection[str] = (),
    base_model: str | None = None,
    base_revision: str | None = None,
) -> SparseDelta:
    """The delta of what a summary sets in a model. The file's pickle is not run: see `torch_archive`.

    A tensor of which all scalars were chosen (`choose_all`) is in the delta whole; so are running statistics of batch
    normalisation that differ, but for their count of batches, an integer that no delta holds and that evaluation does
    not use.

    Args:
        path: what `write_summary_to_disk` of that version wrote.
        model: the base, of the class that was trained; not modified.
        new: names of tensors that the base lacks, and that were drawn for this model (a head).
        base_model, base_revision: what the base is called; without, what the model's configuration says.

    Raises:
        DeltaError: it is damaged, holds something else, or is not one of this model.
        OSError: it cannot be read.
    """
    bare, where = unwrapped(model), str(path)
    with TorchArchive(Path(path), CLASS) as archive:
        fields = _fields(archive.content, where)
        try:
            changes = dict(_chosen(archive, fields, named_params(bare), frozenset(new)))
            changes |= _statistics(archive, fields["bn_metadata"], bare)
        except DeltaError as error:
            raise DeltaError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error
    about = About(method="selective-optimizers", **describe_model(bare, base_model, base_revision))
    ordered = {name: changes[name] for name in state_of(bare) if name in changes}
    return SparseDelta(with_ties(ordered, bare), about)


def _fields(content: Any, where: str) -> Mapping[str, Any]:
    state = content.state if isinstance(content, Object) else None
    if state is None or set(state) != set(FIELDS) or not all(isinstance(state[name], list) for name in FIELDS[:4]):
        raise DeltaError(f"{where}: expected a SelectivePeftSummary of selective-optimizers 0.4, got something else")
    if not len(state["values"]) == len(state["pointers"]) == len(state["shapes"]):
        raise DeltaError(f"{where}: expected values, pointers and a shape for each parameter, got unequal numbers")
    return state


def _chosen(
    archive: TorchArchive, fields: Mapping[str, Any], params: Mapping[str, nn.Parameter], new: frozenset[str]
) -> Iterator[tuple[str, Change]]:
    if len(fields["values"]) != len(params):
        raise DeltaError(f"expected {len(params)} parameters as the model has, got {len(fields['values'])}")
    for (name, param), values, places, shape in zip(
        params.items(), fields["values"], fields["pointers"], fields["shapes"], strict=True
    ):
        if values is None and places is None:
            if name in new:
                raise DeltaError(f"{name}: expected values for what the base lacks, got none")
            continue
        if shape != tuple(param.shape) or param.dtype not in BITS:
            raise DeltaError(f"{name}: expected the shape {list(param.shape)}, got another")
        found = _flat(archive, name, param, values, places)
        change = _change(name, param, *found, name in new) if len(found[0]) or name in new else None
        if change is not None:
            yield name, change


def _flat(archive: TorchArchive, name: str, param: Tensor, values: Any, places: Any) -> tuple[Tensor, Tensor]:
    """Positions, int64, flat and ascending, and their values."""
    for stored, dtype, dimensions in ((values, param.dtype, 1), (places, torch.int64, 2)):
        if not isinstance(stored, StoredTensor) or stored.dtype != dtype or len(stored.shape) != dimensions:
            raise DeltaError(f"{name}: expected values of {param.dtype} and their positions, got something else")
    if values.numel > param.numel() or places.shape != (values.numel, param.dim()):
        raise DeltaError(f"{name}: expected one position for each value, each once, got {list(places.shape)}")
    positions, found = archive.read(places), archive.read(values)
    sizes = torch.tensor(param.shape, dtype=torch.int64, device="cpu")
    if bool(((positions < 0) | (positions >= sizes)).any()):
        raise DeltaError(f"{name}: expected positions within {list(param.shape)}, got others")
    steps = [math.prod(param.shape[i + 1 :]) for i in range(param.dim())]
    flat = (positions * torch.tensor(steps, dtype=torch.int64, device="cpu")).sum(1)
    if bool((flat[1:] <= flat[:-1]).any()):
        raise DeltaError(f"{name}: expected ascending positions, each once, got others")
    return flat, found


def _change(name: str, param: Tensor, flat: Tensor, values: Tensor, new: bool) -> Change:
    base = param.detach().cpu().contiguous()
    shape = tuple(param.shape)
    try:
        if len(flat) == param.numel():
            return Change.whole(values.view(shape), None if new else base.clone())
        if new:
            raise DeltaError(f"expected values for all of what the base lacks, got {len(flat)} of {param.numel()}")
        originals = base.view(-1)[flat].clone()
        return Change(shape, param.dtype, flat.to(torch.int32), values, originals, digest(base))
    except DeltaError as error:
        raise DeltaError(f"{name}: {error}") from error


def _statistics(archive: TorchArchive, given: list[Any], model: nn.Module) -> dict[str, Change]:
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    if len(given) != len(norms):
        raise DeltaError(f"expected statistics of {len(norms)} batch normalisations, got {len(given)}")
    changes = {}
    for (prefix, module), each in zip(norms.items(), given, strict=True):
        for last in ("running_mean", "running_var"):
            name, base = f"{prefix}.{last}".removeprefix("."), getattr(module, last)
            stored = each.get(last) if isinstance(each, dict) else None
            if base is None or not isinstance(stored, StoredTensor) or stored.numel != base.numel():
                raise DeltaError(f"{name}: expected statistics of {len(base) if base is not None else 0} channels")
            change = difference(name, base, archive.read(stored), whole_above=0.0)
            if change is not None:
                changes[name] = change
    return changes
