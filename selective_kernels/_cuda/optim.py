"""Sparse optimizer updates on CUDA kernels: one launch for all tensors and groups."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selective_kernels._cuda import native
from selective_kernels._cuda.choosing import native_choosing, take_chosen, warn_of_memory_for_one_call
from selective_kernels._cuda.indexing import native_merge
from selective_kernels._cuda.place import address, place_for
from selective_kernels.ages import Corrections, corrections_of
from selective_kernels.choosing import choose
from selective_kernels.index import SparseIndex
from selective_kernels.optim import NORM_BLOCK, AdamGroup, Ages, SgdGroup, Update
from selective_kernels.table import Table


def _ages(ages: Ages, update: Update, corrections: Corrections | None, betas: Sequence[tuple[float, float]]) -> Any:
    """The native view of the ages of an update's tensors; without corrections nobody asks for any."""
    missed = [ages.missed.get(i, ()) for i in update.tensors]
    starts = array("q", accumulate((len(steps) for steps in missed), initial=0))
    steps = array("i", [step for each in missed for step in each])
    if corrections is None:
        first, second, places = 0, 0, [(0, 0)] * len(betas)
    else:
        first, second = corrections.first.data_ptr(), corrections.second.data_ptr()
        places = [corrections.places[pair] for pair in betas]
    flat = array("q", [number for pair in places for number in pair])
    return native().Ages(ages.chosen.data_ptr(), starts, steps, ages.now, first, second, flat)


class _Native(NamedTuple):
    """What precedes an update as a native call takes it, and what the call needs for that.

    Attributes:
        call: the native view; None if nothing does.
        rows: of the update's tensors.
        room, n_rows: see `NativeMerge`.
    """

    call: Any
    rows: array[int]
    room: int
    n_rows: int


def _before(update: Update) -> _Native:
    before, n_tensors = update.before, len(update.tensors)
    if before is None:
        return _Native(None, update.table.rows(update.index, update.tensors), 0, n_tensors)
    choosing, insertion, gathering, clipping = before
    merge = chosen = grads = None
    count = update.index.count
    if choosing is not None:
        chosen, grads = native_choosing(update, choosing), choosing.grads
        count += chosen.most
    if gathering is not None:
        grads = gathering.grads
    if insertion is not None:
        merge = native_merge(insertion.into.offsets, insertion.starts, insertion.new, insertion.arrays)
    first = chosen or merge  # of the two, at most one is there
    partial = 8 * (count // NORM_BLOCK + n_tensors)
    call = native().Before(
        None if chosen is None else chosen.call,
        None if merge is None else merge.call,
        None if gathering is None else gathering.flag.data_ptr(),
        None if clipping is None else clipping.limit,
        0.0 if clipping is None else clipping.eps,
    )
    return _Native(
        call,
        update.table.rows(update.index, update.tensors, grads),
        partial + (0 if first is None else first.room),
        n_tensors + (0 if first is None else first.n_rows),
    )


def _call(
    kernel: Any,
    update: Update,
    groups: Sequence[Sequence[float]],
    state: tuple[Tensor | None, Tensor | None],
    corrections: Corrections | None,
    betas: Sequence[tuple[float, float]],
) -> Any:
    """Calls a native step; `state` is the optimizer's per-entry state."""
    ages, missed = None, 0
    if update.ages is not None:
        ages = _ages(update.ages, update, corrections, betas)
        missed = sum(len(update.ages.missed.get(i, ())) for i in update.tensors)
    clip = update.clip if isinstance(update.clip, Tensor) else None
    arrays = [update.index.offsets, update.grads, *state, update.master, clip, update.skip]
    before = _before(update)
    place = place_for(update.table.device, before.n_rows, before.room + 4 * missed)
    return kernel(
        place.where,
        before.rows,
        array("q", [update.group_of[i] for i in update.tensors]),
        array("q", [update.steps[i] for i in update.tensors]),
        array("d", [value for group in groups for value in group]),
        [address(each) for each in arrays],
        1.0 if clip is not None else float(update.clip),
        ages,
        before.call,
    )


def _run(kernel: Any, update: Update, groups: Sequence[Sequence[float]], *rest: Any) -> None:
    """The update, in one native call with what comes before it.

    If the call has no memory for a selection, or its threshold turns out to be misleading, the selection is made anew
    in calls of its own, which know what to do then.
    """
    before = update.before
    choosing = None if before is None else before.choosing
    if before is None or choosing is None:
        if update.index.count and (update.tensors or before):
            _call(kernel, update, groups, *rest)
        return
    found = None
    if any(update.table.numels[i] for i in update.tensors):
        try:
            found = _call(kernel, update, groups, *rest)
        except torch.OutOfMemoryError:
            warn_of_memory_for_one_call()
    if found is not None and take_chosen(choosing, found):
        return
    if choose(update.table, update.index, update.tensors, update.grads, choosing, backend="cuda"):
        _run(kernel, replace(update, before=before._replace(choosing=None)), groups, *rest)


def adam_(update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup]) -> None:
    """See `selective_kernels.optim.adam_`."""
    corrections, betas = None, [(group.beta1, group.beta2) for group in groups]
    if update.ages is not None:
        corrections = corrections_of(betas, update.ages.now + 1, update.table.device)
    _run(native().adam, update, groups, (exp_avg, exp_avg_sq), corrections, betas)


def sgd_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup]) -> None:
    """See `selective_kernels.optim.sgd_`."""
    _run(native().sgd, update, groups, (momentum_buffer, None), None, [(0.0, 0.0)] * len(groups))


def square_sum(table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> Tensor:
    """See `selective_kernels.optim.square_sum`."""
    total = torch.zeros((), dtype=torch.float64, device=table.device)
    if tensors and index.count:
        partial = 8 * (index.count // NORM_BLOCK + len(tensors))
        place = place_for(table.device, len(tensors), partial)
        native().square_sum(place.where, table.rows(index, tensors), grads.data_ptr(), total.data_ptr())
    return total
