"""Changed weights one tensor at a time, as inference engines take them into a running model.

Nothing is searched for: a selective optimizer knows what it has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from selective_kernels import Table, gather_bits
from selective_kernels.checks import MAX_NUMEL
from selective_peft.changes import Change
from selective_peft.errors import DeltaError
from selective_peft.naming import named_params
from selective_peft.rawbytes import BITS, from_bits

if TYPE_CHECKING:
    from selective_peft.optimizer import SelectiveOptimizer
    from selective_peft.selection import Selection

COMPILED = "_orig_mod"  # what torch.compile puts into names
PARALLEL = "module."  # what DistributedDataParallel and DataParallel put before all of them


class WeightPatch(NamedTuple):
    """New values for some scalars of one tensor, or for all of them.

    The fields are those of vLLM's CheckpointWeightPatch, in its order (vllm-project/vllm#50723):
    `CheckpointWeightPatch(*patch)` makes one. Values are absolute: a patch may be applied twice, and a later one makes
    up for those that were missed.

    Attributes:
        name: of the tensor in the checkpoint, without what wrappers add.
        shape: of the whole tensor.
        dtype: float32, bfloat16 or float16.
        values: of this dtype, shape (n,), contiguous; without indices the whole tensor, row-major.
        indices: int32, shape (n,), contiguous, flat row-major positions, strictly ascending; None for all.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Tensor
    indices: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.values.nbytes + (0 if self.indices is None else self.indices.nbytes)

    def to(self, device: torch.device | str) -> WeightPatch:
        """The patch with its tensors on a device."""
        indices = None if self.indices is None else self.indices.to(device)
        return self._replace(values=self.values.to(device), indices=indices)


def patches_of(changes: Mapping[str, Change]) -> Iterator[WeightPatch]:
    """See `SparseDelta.iter_patches`."""
    for name, change in changes.items():
        values = change.values.detach().contiguous().view(-1)
        indices = None if change.indices is None else change.indices.contiguous()
        yield WeightPatch(name, change.shape, change.dtype, values, indices)


def patches_of_optimizer(optimizer: SelectiveOptimizer, model: nn.Module | None) -> Iterator[WeightPatch]:
    """See `SelectiveOptimizer.iter_patches`. All is checked, and selected values are read, before this returns."""
    selection = known_selection(optimizer)
    names = _names_in_groups(optimizer) if model is None else names_in(model, optimizer)
    dense = list(trained_whole(optimizer))
    patches = list(_selected(optimizer, names))
    for param in dense:
        _check_kept(names[id(param)], param)
    _check_finite({**{each.name: each.values for each in patches}, **{names[id(each)]: each for each in dense}})
    order = {name: number for number, name in enumerate(names.values())}
    todo: list[WeightPatch | Tensor] = [*patches, *dense]
    todo.sort(key=lambda each: order[each.name if isinstance(each, WeightPatch) else names[id(each)]])
    return _unless_stepped(optimizer, selection, names, todo)


def _unless_stepped(
    optimizer: SelectiveOptimizer, selection: Selection, names: Mapping[int, str], todo: Iterable[WeightPatch | Tensor]
) -> Iterator[WeightPatch]:
    """Copies whole tensors when their turn comes, one at a time.

    Raises:
        RuntimeError: the optimizer has stepped since, so that the tensors would be of two steps.
    """
    made = selection.step
    for each in todo:
        if isinstance(each, WeightPatch):
            yield each
            continue
        if optimizer._settled is not selection or selection.step != made:
            raise RuntimeError(
                "iter_patches: expected to be read to its end before the optimizer's next step, got a step between"
            )
        copy = each.detach().clone(memory_format=torch.contiguous_format).view(-1)
        yield WeightPatch(names[id(each)], tuple(each.shape), each.dtype, copy)


def known_selection(optimizer: SelectiveOptimizer) -> Selection:
    """The selection of an optimizer that knows all it has changed. Raises ValueError for another one."""
    selection, settings = optimizer._selection, optimizer._settings
    if selection is None:
        raise ValueError("optimizer: expected one that has made a step, got one before its first")
    if settings.repeats:
        raise ValueError("optimizer: expected a selection that only grows, got 'repeat'; use SparseDelta.from_models")
    if selection.warmup < settings.warmup_steps:
        raise ValueError(
            f"optimizer: expected one past its {settings.warmup_steps} warm-up steps, got one after {selection.warmup}"
        )
    return selection


def names_in(model: nn.Module, optimizer: SelectiveOptimizer) -> dict[int, str]:
    """Names of a model's parameters by their identity. Raises ValueError if the optimizer has others."""
    names = {id(param): name for name, param in named_params(model).items()}
    for group in optimizer.param_groups:
        for param in group["params"]:
            if id(param) not in names:
                raise ValueError(f"model: expected all parameters of the optimizer, one of {list(param.shape)} is none")
    return names


def _names_in_groups(optimizer: SelectiveOptimizer) -> dict[int, str]:
    """What the optimizer's parameters are called in the bare model, as far as their groups say."""
    names: dict[int, str] = {}
    for group in optimizer.param_groups:
        given = group.get("param_names", [])
        if len(given) != len(group["params"]):
            raise ValueError(
                "model: expected it, since the optimizer was built without names (of model.named_parameters() or "
                "selective_param_groups(model)), got none"
            )
        for name, param in zip(given, group["params"], strict=True):
            names[id(param)] = ".".join(part for part in name.split(".") if part != COMPILED)
    if len(set(names.values())) < len(names):
        name = next(iter((Counter(names.values()) - Counter(set(names.values()))).keys()))
        raise ValueError(
            f"model: expected it, since several of the optimizer's parameters are called {name!r}, got none"
        )
    if names and all(name.startswith(PARALLEL) for name in names.values()):
        raise ValueError(
            f"model: expected it, since all names begin with {PARALLEL!r}, which may be of a wrapper, got none"
        )
    return names


def _selected(optimizer: SelectiveOptimizer, names: Mapping[int, str]) -> Iterator[WeightPatch]:
    table, selection = optimizer._bind()  # the model may be on another device by now
    if not selection.count:
        return
    now, offsets = gather_bits(table, selection.index), selection.index.valid.clone()
    for param, entries in selected_parts(table, selection):
        values = from_bits(now[entries], param.dtype)
        yield WeightPatch(names[id(param)], tuple(param.shape), param.dtype, values, offsets[entries])


def selected_parts(table: Table, selection: Selection) -> Iterator[tuple[Tensor, slice]]:
    """The parameters of which scalars are selected, and where these lie in what the selection keeps of each scalar."""
    for param, (start, stop) in zip(table.params, pairwise(selection.index.starts), strict=True):
        if start < stop:
            yield param, slice(start, stop)


def trained_whole(optimizer: SelectiveOptimizer) -> Iterator[Tensor]:
    """Parameters of `selective=False` groups; one that never had a gradient is as it was."""
    for group in optimizer._groups(selective=False):
        yield from (param for param in group["params"] if "original" in optimizer.state.get(param, {}))


def _check_kept(name: str, param: Tensor) -> None:
    if param.dtype not in BITS or param.numel() >= MAX_NUMEL:
        given = f"{param.dtype} {list(param.shape)}"
        raise DeltaError(f"{name}: expected float32, bfloat16 or float16 with fewer than 2^31 scalars, got {given}")


def _check_finite(named: Mapping[str, Tensor]) -> None:
    """Engines keep NaN as the sign of what is unchanged."""
    flags = {name: values.detach().isfinite().all() for name, values in named.items()}  # queued before the first wait
    for name, flag in flags.items():
        if not bool(flag):
            bad = int(named[name].detach().isfinite().logical_not().sum())
            raise DeltaError(f"{name}: expected finite values, got inf or NaN in {bad}")
