"""Putting deltas into live models, in place, and taking them out again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from selective_kernels import SparseIndex, Table, gather_bits, swap_
from selective_kernels.checks import check_param
from selective_peft.changes import Change
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import check_has_values, state_of
from selective_peft.rawbytes import bits, digest, same_bits
from selective_peft.undisturbed import Undisturbed

Changes = Mapping[str, Change]


class Targets:
    """The tensors of a model that changes are for, and the places in them.

    Args:
        model: its tensors by name, see `making_deltas.state_of`.
        changes: by name.

    Raises:
        DeltaError: the model lacks one, or has it with another shape, dtype or layout.
    """

    def __init__(self, model: Mapping[str, Tensor], changes: Changes) -> None:
        missing = [name for name in changes if name not in model]
        if missing:
            raise DeltaError(f"model: expected a tensor {missing[0]!r}, it has none ({len(missing)} are missing)")
        self.tensors = {name: model[name].detach() for name in changes}
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
        offsets = torch.cat(lists) if lists else torch.empty(0, dtype=torch.int32, device="cpu")
        self.index = SparseIndex(offsets.to(self.table.device), [0, *accumulate(len(each) for each in lists)])

    def differing(self, values: Mapping[str, Tensor]) -> str | None:
        """The name of a tensor with others than these values at its changes' places; None if there is none.

        Args:
            values: by name, of the tensors that are changed in part, and of whole ones as far as they are to be looked
                at.
        """
        found, expected = gather_bits(self.table, self.index).cpu(), self._packed(values)
        if not torch.equal(found, expected):
            at = int((found != expected).int().argmax())
            return self.sparse[bisect_right(self.index.starts, at) - 1]
        whole = (name for name in self.whole if name in values)
        return next((name for name in whole if not same_bits(self.tensors[name].cpu(), values[name])), None)

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Puts values, by name, into the changes' places; all of them, or none if that fails."""
        before = {name: self.tensors[name].clone() for name in self.whole}
        packed = self._packed(values).to(self.table.device)
        with Undisturbed():
            swap_(self.table, self.index, packed)
            try:
                for name in self.whole:
                    self.tensors[name].copy_(values[name])
            except BaseException:
                swap_(self.table, self.index, packed)
                for name, tensor in before.items():
                    self.tensors[name].copy_(tensor)
                raise

    def _packed(self, values: Mapping[str, Tensor]) -> Tensor:
        """The raw bits of the values in the index's order, as the kernels have them: int32, 16-bit ones zero-extended.

        All tensors in one: single ones are short, and there are hundreds of them.
        """
        parts = [bits(values[name]) for name in self.sparse]
        if not self.table.float32_only:
            parts = [part if part.dtype == torch.int32 else part.int().bitwise_and_(0xFFFF) for part in parts]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32, device="cpu")


def in_model(changes: Changes, state: Mapping[str, Tensor]) -> dict[str, Change]:
    """The changes of a model's tensors: where it has apart what the tuned model tied, each of these gets the change.

    Args:
        changes: by name.
        state: of the model, see `making_deltas.state_of`.
    """
    copies = {other: change for change in changes.values() for other in change.tied or () if other in state}
    return {**copies, **changes}


def check_fits(name: str, change: Change, tensor: Tensor) -> None:
    """Raises DeltaError unless the tensor is of the change's shape and dtype, and has values."""
    check_has_values(name, tensor)
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
    state = state_of(model)
    changes = in_model(changes, state)
    targets = Targets(state, changes)
    if check:
        check_base(targets, changes)
    targets.write(values_of(changes))


def check_base(targets: Targets, changes: Changes) -> None:
    """Raises DeltaError unless the tensors that are changed in part are the base's."""
    for name in targets.sparse:
        if digest(targets.tensors[name]) != changes[name].digest:
            one = {name: changes[name]}
            applied = Targets(targets.tensors, one).differing(values_of(one)) is None
            raise already_applied(name) if applied else not_the_base(name)


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
    state = state_of(model)
    changes = in_model(changes, state)
    originals = originals_of(changes)
    targets = Targets(state, changes)
    if check:
        check_applied(targets, changes)
        for name in targets.sparse:
            if digest(changes[name].substituted(targets.tensors[name], originals[name])) != changes[name].digest:
                raise not_undone(name)
    targets.write(originals)


def check_applied(targets: Targets, changes: Changes) -> None:
    """Raises DeltaError unless the changes' values stand at their places."""
    other = targets.differing(values_of(changes))
    if other is not None:
        raise not_applied(other)
