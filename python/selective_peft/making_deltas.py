"""Deltas of training runs and of pairs of models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selective_kernels import gather_bits
from selective_kernels.checks import MAX_NUMEL
from selective_peft.about import About, describe_model, plain
from selective_peft.changes import Change
from selective_peft.differing import Differing, differing, pieces
from selective_peft.errors import DeltaError
from selective_peft.naming import is_count, named_params, named_saved_buffers, tied_names, unwrapped
from selective_peft.optimizer import SelectiveOptimizer
from selective_peft.rawbytes import BITS, digest, from_bits, raw, same_bits
from selective_peft.weight_patches import known_selection, names_in, selected_parts, trained_whole


def bare_optimizer(optimizer: Optimizer) -> SelectiveOptimizer:
    """The optimizer itself, without the wrapper that Accelerate puts around it.

    Raises:
        ValueError: no selective one.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, SelectiveOptimizer):
        raise ValueError(f"optimizer: expected a selective optimizer, got {type(inner).__name__}")
    return inner


def _selective(optimizer: Optimizer) -> SelectiveOptimizer:
    """The bare optimizer. Raises ValueError if it is no selective one, or its changes are not known."""
    inner = bare_optimizer(optimizer)
    known_selection(inner)
    return inner


def changes_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Change]:
    """See `SparseDelta.from_optimizer`."""
    inner = _selective(optimizer)
    names = names_in(model, inner)
    _warn_of_statistics(model)
    found = {names[id(param)]: change for param, change in (*_selected(inner), *_dense(inner))}
    return with_ties({name: found[name] for name in names.values() if name in found}, model)


def with_ties(changes: dict[str, Change], model: nn.Module) -> dict[str, Change]:
    """The changes with what the model's tensors are called besides."""
    ties = tied_names(model)
    return {name: replace(change, tied=ties.get(name, ())) for name, change in changes.items()}


def _selected(optimizer: SelectiveOptimizer) -> Iterator[tuple[Tensor, Change]]:
    table, selection = optimizer._bind()  # the model may be on another device by now
    if not selection.count:
        return
    now, before = gather_bits(table, selection.index).cpu(), selection.arrays["original"].cpu()
    offsets = selection.index.valid.cpu()
    for param, entries in selected_parts(table, selection):
        yield param, _sparse(
            param, offsets[entries].clone(), from_bits(now[entries], param.dtype).clone(),
            from_bits(before[entries], param.dtype).clone(),
        )  # fmt: skip


def _sparse(tensor: Tensor, indices: Tensor, values: Tensor, originals: Tensor) -> Change:
    """The change of a tuned tensor."""
    base = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    base.view(-1)[indices.long()] = originals
    return Change(tuple(tensor.shape), tensor.dtype, indices, values, originals, digest(base))


def _dense(optimizer: SelectiveOptimizer) -> Iterator[tuple[Tensor, Change]]:
    for param in trained_whole(optimizer):
        yield param, Change.whole(_copy(param), _copy(optimizer.state[param]["original"]))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _warn_of_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None and module.training:
            warnings.warn(
                f"model: the running statistics of {name or 'it'} change in training and are not in the delta; "
                "SparseDelta.from_models takes them, but for their counts of batches",
                stacklevel=4,
            )
            return


def about_run(optimizer: Optimizer, model: nn.Module, base_model: str | None, base_revision: str | None) -> About:
    """Base, method and hyper-parameters of a run that has made a step."""
    inner = bare_optimizer(optimizer)
    described = inner._described()
    options = {name: value for name, value in inner.param_groups[0].items() if name in inner.defaults}
    options.pop("selective", None)
    if "initial_lr" in inner.param_groups[0]:  # of a schedule, at whose end there is little left of it
        options["lr"] = inner.param_groups[0]["initial_lr"]
    assert inner._selection is not None
    hyperparameters = plain({**described, **options, "steps": inner._selection.step, "selected": inner.num_selected})
    where = describe_model(unwrapped(model), base_model, base_revision)
    return About(method=inner._settings.method, hyperparameters=hyperparameters, **where)


def about_difference(
    tuned: nn.Module | Mapping[str, Tensor], base_model: str | None, base_revision: str | None
) -> About:
    """Base of a comparison."""
    if isinstance(tuned, nn.Module):
        return About(method="diff", **describe_model(unwrapped(tuned), base_model, base_revision))
    return About(base_model or "", base_revision or "", "diff")


def differences(
    base: nn.Module | Mapping[str, Tensor], tuned: nn.Module | Mapping[str, Tensor], whole_above: float
) -> dict[str, Change]:
    """See `SparseDelta.from_models`."""
    check_whole_above(whole_above)
    old, new = state_of(base), state_of(tuned)
    check_none_lost(sorted(set(old) - set(new if isinstance(tuned, nn.Module) else tuned)))
    if not isinstance(tuned, nn.Module):
        new = {name: tuned[name] for name, first in _first_names(tuned).items() if _apart(old, name, first)}
    found = {name: difference(name, old.get(name), tensor, whole_above) for name, tensor in new.items()}
    changes = {name: change for name, change in found.items() if change is not None}
    return with_ties(changes, tuned) if isinstance(tuned, nn.Module) else changes


def check_whole_above(share: float) -> None:
    """Raises ValueError unless it is a share."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"whole_above: expected a share in [0, 1], got {share}")


def check_none_lost(names: Sequence[str]) -> None:
    """Raises DeltaError if there are any tensors that only the base has."""
    if names:
        raise DeltaError(f"tuned: expected all tensors of the base, {names[0]} is missing ({len(names)} in all)")


def state_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's parameters and saved buffers, or a state dict's tensors; tied ones once, by their first name."""
    if isinstance(model, nn.Module):
        return {**named_params(model), **named_saved_buffers(model)}
    return {name: model[name] for name in dict.fromkeys(_first_names(model).values())}


def _first_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By name, the first one that the same tensor has."""
    first: dict[object, str] = {}
    found = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        found[name] = first.setdefault(place if tensor.numel() else name, name)
    return found


def _apart(base: Mapping[str, Tensor], name: str, first: str) -> bool:
    """Whether a tuned tensor has to be looked at under this name: as its first one, or because the base's differ."""
    if name == first or name not in base:
        return name == first
    if first not in base or base[name].dtype != base[first].dtype:
        return True
    a, b = (base[each].detach().cpu().contiguous() for each in (name, first))
    return raw(a) != raw(b)


def difference(name: str, base: Tensor | None, tuned: Tensor, whole_above: float) -> Change | None:
    """The change from one tensor to another; None if their bits are equal, or both are counts of batches.

    Args:
        name: for messages.
        base: None if there is none.
        tuned: the other one.
        whole_above: see `SparseDelta.from_models`.

    Raises:
        DeltaError: another shape or dtype, a dtype that no delta holds, no values (on meta), or inf or NaN.
    """
    if base is not None and is_count(name) and base.dtype == tuned.dtype == torch.int64:
        return None
    try:
        return _difference(base, tuned, whole_above)
    except DeltaError as error:
        raise DeltaError(f"{name}: {error}") from error


def check_has_values(name: str, tensor: Tensor) -> None:
    """Raises DeltaError for a tensor on meta."""
    if tensor.is_meta:
        raise DeltaError(f"{name}: expected a tensor with values, got one on meta (offloaded?)")


def _difference(base: Tensor | None, tuned: Tensor, whole_above: float) -> Change | None:
    for name, tensor in (("base", base), ("tuned", tuned)):
        if tensor is not None:
            check_has_values(name, tensor)
    tuned = tuned.detach().cpu().contiguous()
    if base is None:
        return Change.whole(tuned.clone(), None)
    base = base.detach().cpu().contiguous()
    if base.shape != tuned.shape or base.dtype != tuned.dtype:
        raise DeltaError(f"tuned: expected {base.dtype} {list(base.shape)}, got {tuned.dtype} {list(tuned.shape)}")
    if tuned.dtype not in BITS or tuned.numel() >= MAX_NUMEL:
        if raw(base) == raw(tuned):
            return None
        raise DeltaError(
            f"tuned: expected equal tensors unless they are float32, bfloat16 or float16 with fewer than 2^31 "
            f"scalars, got different ones of {tuned.dtype} {list(tuned.shape)}"
        )
    if same_bits(base, tuned):
        return None
    found = differing(pieces(base.view(-1), tuned.view(-1)), whole_above * tuned.numel())
    return Change.whole(tuned.clone(), base.clone()) if found is None else sparse_change(tuned.shape, found)


def sparse_change(shape: Sequence[int], found: Differing) -> Change:
    """Of a tensor that differs in single scalars."""
    return Change(tuple(shape), found.values.dtype, found.indices, found.values, found.originals, found.digest)
