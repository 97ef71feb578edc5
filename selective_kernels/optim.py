"""Sparse optimizer updates on index lists: Adam, AdamW and SGD on the selected scalars only (C6, C7)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.checks import check_entries, check_index, check_numbers
from selective_kernels.choosing import check_choosing, choose
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import gather_grads, insert
from selective_kernels.prelude import Before
from selective_kernels.ranges import ranged
from selective_kernels.table import Table

NORM_BLOCK = 4096  # entries per float64 partial sum, as in csrc/selective.h


class AdamGroup(NamedTuple):
    """Hyper-parameters of a group; `decay` is decoupled (AdamW), `l2` goes into the gradient (Adam)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    decay: float = 0.0
    l2: float = 0.0


class SgdGroup(NamedTuple):
    """Hyper-parameters of a group; `weight_decay` goes into the gradient, as in torch."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


class Ages(NamedTuple):
    """What "per_entry" bias correction counts ages from."""

    chosen: Tensor  # int32, shape (count,): step (from 0) in which each entry was selected, at most `now`
    missed: Mapping[int, Sequence[int]]  # per tensor number: ascending steps in which it had no gradient
    now: int  # the current step (from 0)


@dataclass(frozen=True)
class Update:
    """What every update takes: which tensors, their entries' gradients, and how far each tensor has come.

    Attributes:
        table: all tensors that `index` is over.
        index: the selected entries.
        tensors: numbers of the tensors that have a gradient now, ascending; the others are left alone.
        grads: float32, shape (count,): gradients at `index`.
        master: float32, shape (count,): fp32 copies of 16-bit parameters; None if there are none.
        group_of: group number of each tensor of the table.
        steps: updates of each tensor, this one included ("global" bias correction).
        ages: for "per_entry" bias correction; None for "global".
        clip: factor on the gradients: a number, or float32, shape (), on the tensors' device, which nobody waits for.
        skip: int32, shape (1,), on the tensors' device: unless zero when the update runs, it changes nothing. None: it
            always runs.
        before: what is done first; `index` counts what is inserted then, and `grads` holds what is gathered then. A
            selection that finds a gradient that is inf or NaN leaves it at that. None: nothing.
    """

    table: Table
    index: SparseIndex
    tensors: Sequence[int]
    grads: Tensor
    master: Tensor | None
    group_of: Sequence[int]
    steps: Sequence[int]
    ages: Ages | None = None
    clip: float | Tensor = 1.0
    skip: Tensor | None = None
    before: Before | None = None


def check_update(update: Update, arrays: Mapping[str, Tensor | None], n_groups: int) -> None:
    """Raises TypeError or ValueError if anything is of another dtype, length or range than `Update` says."""
    count, n_tensors, device = update.index.count, len(update.table), update.table.device
    check_index(update.index, update.table.numels, update.table.device)
    check_numbers(update.tensors, n_tensors)
    groups, steps = update.group_of, update.steps
    if len(groups) != n_tensors or (n_tensors and not 0 <= min(groups) <= max(groups) < n_groups):
        raise ValueError(f"group_of: expected {n_tensors} numbers below {n_groups}, got {list(update.group_of)}")
    if len(steps) != n_tensors or min(map(steps.__getitem__, update.tensors), default=1) < 1:
        raise ValueError(
            f"steps: expected {n_tensors} numbers, at least 1 for the tensors with a gradient, got {list(update.steps)}"
        )
    for name, array in {"grads": update.grads, "master": update.master, **arrays}.items():
        if array is not None:
            check_entries(array, torch.float32, count, device, name)
    table = update.table
    if update.master is None and not table.float32_only and any(table.dtypes[i].itemsize == 2 for i in update.tensors):
        raise ValueError("master: expected fp32 copies for 16-bit parameters, got None")
    if update.ages is not None:
        check_entries(update.ages.chosen, torch.int32, count, device, "ages.chosen")
    if update.skip is not None:
        check_entries(update.skip, torch.int32, 1, device, "skip")
    if isinstance(update.clip, Tensor):
        check_entries(update.clip.reshape(-1), torch.float32, 1, device, "clip")


def settled(update: Update, backend: str = "auto") -> Update | None:
    """The update with nothing left to do before it, for backends that take an update alone; None if it must not be."""
    if update.before is None:
        return update
    choosing, insertion, gathering, clipping = update.before
    clip = update.clip
    if choosing is not None and not choose(
        update.table, update.index, update.tensors, update.grads, choosing, backend=backend
    ):
        return None
    if insertion is not None:
        insert(insertion, backend=backend)
    if gathering is not None:
        grads, flag = gathering
        gather_grads(update.table, update.index, update.tensors, grads, update.grads, flag=flag, backend=backend)
    if clipping is not None:
        total = square_sum(update.table, update.index, update.tensors, update.grads, backend=backend)
        clip = (clipping.limit / (total.sqrt() + clipping.eps)).clamp(max=1.0).float()
    return replace(update, clip=clip, before=None)


def _taken(update: Update, backend: str) -> Update | None:
    """The update as its backend takes it: with what is done before, or settled."""
    if update.before is None:
        return update
    if update.before.choosing is not None:
        check_index(update.index, update.table.numels, update.table.device)
        check_choosing(update.before.choosing, update.table, update.index, update.tensors, update.grads)
    whole = dispatch.takes_whole_steps(update.table, backend) and update.index.checked_for is update.table.numels
    return update if whole else settled(update, backend)


@contextmanager
def _undone_on_failure(update: Update) -> Iterator[None]:
    """If the block fails, say for want of memory, the index does not count what was not brought in."""
    try:
        yield
    except BaseException:
        if update.before is not None and update.before.insertion is not None:
            update.before.insertion.into.starts[:] = update.before.insertion.starts
        raise


def skipped(update: Update) -> bool:
    """Whether the update's flag says that it must change nothing; waits for the flag."""
    return update.skip is not None and bool(update.skip)


@ranged("update")
def adam_(
    update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup], *, backend: str = "auto"
) -> None:
    """One Adam or AdamW step on the selected entries, in place; arithmetic as in torch.optim, in float32.

    Args:
        update: see `Update`.
        exp_avg, exp_avg_sq: float32, shape (count,): moments, updated in place.
        groups: hyper-parameters by group number.
        backend: "auto" or a backend's name; see `dispatch`.
    """
    with _undone_on_failure(update):
        taken = _taken(update, backend)
        if taken is None:
            return
        check_update(taken, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, len(groups))
        dispatch.serving("adam_", taken.table, backend)(taken, exp_avg, exp_avg_sq, groups)


@ranged("update")
def sgd_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup], *, backend: str = "auto") -> None:
    """One SGD step on the selected entries, in place; arithmetic as in torch.optim, in float32.

    Args:
        update: see `Update`.
        momentum_buffer: float32, shape (count,), updated in place; None if no group has momentum.
        groups: hyper-parameters by group number.
        backend: "auto" or a backend's name; see `dispatch`.
    """
    with _undone_on_failure(update):
        taken = _taken(update, backend)
        if taken is None:
            return
        check_update(taken, {"momentum_buffer": momentum_buffer}, len(groups))
        if momentum_buffer is None and any(group.momentum for group in groups):
            raise ValueError("momentum_buffer: expected a tensor for groups with momentum, got None")
        dispatch.serving("sgd_", taken.table, backend)(taken, momentum_buffer, groups)


def square_sum(
    table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Sum of squares of the selected gradients of some tensors, over blocks of 4096 in index order.

    Returns:
        float64, shape (), where the tensors are; on a GPU nobody has waited for it.
    """
    check_index(index, table.numels, table.device)
    check_numbers(tensors, len(table))
    check_entries(grads, torch.float32, index.count, table.device, "grads")
    total: Tensor = dispatch.implementation("square_sum", table.device, backend)(table, index, tensors, grads)
    return total


def square_sum_ref(table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> Tensor:
    """`square_sum` in plain PyTorch; within a block the order of additions is torch's."""
    total = torch.zeros((), dtype=torch.float64, device=grads.device)
    for i in tensors:
        for first in range(index.starts[i], index.starts[i + 1], NORM_BLOCK):
            block = grads[first : min(first + NORM_BLOCK, index.starts[i + 1])].double()
            total += (block * block).sum()
    return total


def _entry_ages(update: Update, tensor: int, entries: slice) -> Tensor | None:
    """Updates of each entry of a tensor, this step's included; None with "global" bias correction."""
    if update.ages is None:
        return None
    chosen = update.ages.chosen[entries].long()
    missed = torch.tensor(update.ages.missed.get(tensor, ()), dtype=torch.int64, device=chosen.device)
    ages = update.ages.now - chosen + 1 - (missed >= chosen[:, None]).sum(dim=1)
    return ages.clamp(1, update.ages.now + 1)


def _for_tensors(update: Update) -> list[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Per updated tensor: (number, its entries, flat view, int64 positions, theta in float32 as C6 reads it)."""
    found = []
    for i in update.tensors:
        entries = slice(update.index.starts[i], update.index.starts[i + 1])
        flat = update.table.params[i].detach().view(-1)
        positions = update.index.of(i).long().to(flat.device)
        stored = flat[positions]
        theta = stored.float()
        if update.master is not None and flat.dtype != torch.float32:
            master = update.master[entries].to(flat.device)
            theta = torch.where(master.to(flat.dtype) == stored, master, theta)
        found.append((i, entries, flat, positions, theta))
    return found


def _store(update: Update, entries: slice, flat: Tensor, positions: Tensor, theta: Tensor) -> None:
    flat[positions] = theta.to(flat.dtype)
    if update.master is not None and flat.dtype != torch.float32:
        update.master[entries] = theta


def adam_ref_(update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup]) -> None:
    """`adam_` in plain PyTorch."""
    if skipped(update):
        return
    for i, entries, flat, positions, theta in _for_tensors(update):
        group = groups[update.group_of[i]]
        grad = update.grads[entries] * update.clip + group.l2 * theta
        m, v = exp_avg[entries], exp_avg_sq[entries]
        m.add_(grad - m, alpha=1.0 - group.beta1)
        v.mul_(group.beta2).add_((1.0 - group.beta2) * grad * grad)
        ages = _entry_ages(update, i, entries)
        if ages is None:
            step_size = group.lr / (1.0 - group.beta1 ** update.steps[i])
            denominator = v.sqrt() / math.sqrt(1.0 - group.beta2 ** update.steps[i]) + group.eps
            change = step_size * (m / denominator)
        else:
            step_sizes = (group.lr / (1.0 - group.beta1 ** ages.double())).float()
            denominator = v.sqrt() / (1.0 - group.beta2 ** ages.double()).sqrt().float() + group.eps
            change = step_sizes * (m / denominator)
        _store(update, entries, flat, positions, theta * (1.0 - group.lr * group.decay) - change)


def sgd_ref_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup]) -> None:
    """`sgd_` in plain PyTorch."""
    if skipped(update):
        return
    for i, entries, flat, positions, theta in _for_tensors(update):
        group = groups[update.group_of[i]]
        direction = grad = update.grads[entries] * update.clip + group.weight_decay * theta
        if group.momentum:
            assert momentum_buffer is not None
            buffer = momentum_buffer[entries]
            ages = _entry_ages(update, i, entries)
            first = (ages == 1) if ages is not None else torch.full_like(grad, update.steps[i] == 1).bool()
            started = group.momentum * buffer + (1.0 - group.dampening) * grad
            buffer.copy_(torch.where(first, grad, started))
            direction = grad + group.momentum * buffer if group.nesterov else buffer
        _store(update, entries, flat, positions, theta - group.lr * direction)
