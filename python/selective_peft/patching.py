"""Putting deltas into live models, in place, and taking them out again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from selective_kernels import SparseIndex, Table, gather_bits, swap_
from selective_kernels.checks import check_param
from selective_peft.changes import Change
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import state_of
from selective_peft.rawbytes import bits, digest, from_bits, same_bits

Changes = Mapping[str, Change]


class Targets:
    """The tensors of a model that changes are for, and the places in them.

    Raises:
        DeltaError: the model lacks one, or has it with another shape, dtype or layout.
    """

    def __init__(self, model: nn.Module, changes: Changes) -> None:
        found = state_of(model)
        missing = [name for name in changes if name not in found]
        if missing:
            raise DeltaError(f"model: expected a tensor {missing[0]!r}, it has none ({len(missing)} are missing)")
        self.changes = changes
        self.tensors = {name: found[name].detach() for name in changes}
        for name, change in changes.items():
            check_fits(name, change, self.tensors[name])
        self.sparse = [name for name, change in changes.items() if change.indices is not None]
        self.whole = [name for name, change in changes.items() if change.indices is None]
        try:
            self.table = Table([self.tensors[name] for name in self.sparse], self.sparse)
            for name in self.whole:
                check_param(self.tensors[name], name)
        except (TypeError, ValueError) as error:
            raise DeltaError(f"model: {error}") from error
        lists = [change.indices for change in changes.values() if change.indices is not None]
        offsets = torch.cat(lists) if lists else torch.empty(0, dtype=torch.int32)
        self.index = SparseIndex(offsets.to(self.table.device), [0, *accumulate(len(each) for each in lists)])

    def now(self) -> dict[str, Tensor]:
        """The values that stand at the changes' places: copies on the CPU."""
        found = gather_bits(self.table, self.index).cpu()
        starts = self.index.starts
        values = {
            name: from_bits(found[starts[i] : starts[i + 1]], self.table.dtypes[i])
            for i, name in enumerate(self.sparse)
        }
        return {**values, **{name: self.tensors[name].cpu() for name in self.whole}}

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Puts values, by name, into the changes' places."""
        wide = [bits(values[name]).int() for name in self.sparse]
        joined = torch.cat(wide) if wide else torch.empty(0, dtype=torch.int32)
        swap_(self.table, self.index, joined.to(self.table.device))
        for name in self.whole:
            self.tensors[name].copy_(values[name])


def check_fits(name: str, change: Change, tensor: Tensor) -> None:
    """Raises DeltaError unless the tensor is of the change's shape and dtype."""
    if tuple(tensor.shape) != change.shape or tensor.dtype != change.dtype:
        raise DeltaError(
            f"{name}: expected {change.dtype} {list(change.shape)} as in the delta, got {tensor.dtype} "
            f"{list(tensor.shape)}"
        )


def values_of(changes: Changes) -> dict[str, Tensor]:
    """The new values."""
    return {name: change.values for name, change in changes.items()}


def originals_of(changes: Changes) -> dict[str, Tensor]:
    """The base's values.

    Raises:
        DeltaError: some were not kept.
    """
    lacking = [name for name, change in changes.items() if change.originals is None]
    if lacking:
        raise DeltaError(f"delta: expected the base's values of {lacking[0]}, they were not kept ({len(lacking)} lack)")
    return {name: change.originals for name, change in changes.items() if change.originals is not None}


def apply_(changes: Changes, model: nn.Module, *, check: bool) -> None:
    """See `SparseDelta.apply_`."""
    targets = Targets(model, changes)
    if check:
        now = targets.now()
        for name in targets.sparse:
            check_base(name, changes[name], targets.tensors[name], now[name])
    targets.write(values_of(changes))


def check_base(name: str, change: Change, tensor: Tensor, now: Tensor) -> None:
    """Raises DeltaError unless a tensor is the base's.

    Args:
        name: of the tensor.
        change: of some of its scalars.
        tensor: of the model.
        now: what stands at the change's places.
    """
    if digest(tensor) != change.digest:
        raise already_applied(name) if same_bits(now, change.values) else not_the_base(name)


def already_applied(name: str) -> DeltaError:
    """Of a tensor that has the delta's values."""
    return DeltaError(f"{name}: expected the base's values, got the delta's own: it is applied already")


def not_the_base(name: str) -> DeltaError:
    """Of a tensor whose fingerprint is another one."""
    return DeltaError(f"{name}: expected the base that the delta was made for, got a tensor with other values")


def not_applied(name: str) -> DeltaError:
    """Of a tensor that lacks the delta's values."""
    return DeltaError(f"{name}: expected the delta's values at its places, got others: it is not applied")


def not_undone(name: str) -> DeltaError:
    """Of a tensor whose fingerprint, with the originals in it, is another one."""
    return DeltaError(f"{name}: expected the base besides the delta's values, got a tensor with others")


def revert_(changes: Changes, model: nn.Module, *, check: bool) -> None:
    """See `SparseDelta.revert_`."""
    originals = originals_of(changes)
    targets = Targets(model, changes)
    if check:
        now = targets.now()
        for name, change in changes.items():
            check_tuned(name, change, now[name])
        for name in targets.sparse:
            if digest(changes[name].substituted(targets.tensors[name], originals[name])) != changes[name].digest:
                raise not_undone(name)
    targets.write(originals)


def check_tuned(name: str, change: Change, now: Tensor) -> None:
    """Raises DeltaError unless the delta's values stand at its places."""
    if not same_bits(now, change.values):
        raise not_applied(name)


def names_of(parts: Iterable[Changes]) -> list[str]:
    """All names, each once."""
    return list(dict.fromkeys(name for changes in parts for name in changes))
