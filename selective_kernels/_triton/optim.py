"""Sparse optimizer updates on Triton kernels: one launch for all tensors and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selective_kernels._triton.ages import Corrections, corrections_of
from selective_kernels._triton.rows import BLOCK, N_COLUMNS, OPTIONS, Rows, on_device
from selective_kernels._triton.updates import (
    AGES,
    BETA2,
    CORRECTION2,
    EPS,
    FIRST,
    KEEP,
    L2,
    LAST_AGE,
    LR,
    MISSED,
    MISSED_END,
    N_EXTRA,
    ONE_MINUS_BETA1,
    ONE_MINUS_BETA2,
    adam_kernel,
    sgd_kernel,
    square_kernel,
)
from selective_kernels.hostcopy import to_device
from selective_kernels.index import SparseIndex
from selective_kernels.optim import NORM_BLOCK, AdamGroup, SgdGroup, Update
from selective_kernels.table import Table


class Launch:
    """What both updates pass to their kernel.

    Attributes:
        rows: the device table with the columns of `updates`.
        ages: keyword arguments about ages.
        clip, skip: one item each, on the device.
    """

    def __init__(self, update: Update, numbers: Tensor, integers: Tensor) -> None:
        """`numbers` (float32) and `integers` (int64), both (N_EXTRA, n_rows), are added up as columns."""
        device, missed = update.table.device, torch.zeros(0, dtype=torch.int32)
        columns = numbers.view(torch.int32).long() + integers
        if update.ages is not None:
            missed = self._missed(update, columns)
        self.rows = Rows(update.table, update.index, update.tensors, extra=list(columns))
        longest = int((columns[MISSED_END.value - N_COLUMNS] - columns[MISSED.value - N_COLUMNS]).max())
        ages = update.ages
        self.ages: dict[str, Any] = {
            "chosen": update.index.offsets if ages is None else ages.chosen,
            "missed": to_device(missed, device),
            "now": 0 if ages is None else ages.now,
            "steps": longest.bit_length(),
            "AGED": ages is not None,
        }
        clip = update.clip if isinstance(update.clip, Tensor) else torch.tensor(update.clip, dtype=torch.float32)
        self.clip = clip if clip.device == device else to_device(clip, device)
        self.skip = torch.zeros(1, dtype=torch.int32, device=device) if update.skip is None else update.skip
        self.master = update.grads if update.master is None else update.master

    @staticmethod
    def _missed(update: Update, columns: Tensor) -> Tensor:
        """All missed steps, int32; writes where each tensor's are."""
        assert update.ages is not None
        steps = [update.ages.missed.get(i, ()) for i in update.tensors]
        ends = torch.tensor([len(each) for each in steps]).cumsum(0)
        columns[MISSED.value - N_COLUMNS, 1:] = ends[:-1]
        columns[MISSED_END.value - N_COLUMNS] = ends
        return torch.tensor([step for each in steps for step in each], dtype=torch.int32)


def _put(columns: Tensor, which: Any, values: Sequence[float]) -> None:
    columns[which.value - N_COLUMNS] = torch.tensor(values, dtype=columns.dtype)


def adam_(update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup]) -> None:
    """See `selective_kernels.optim.adam_`."""
    if not update.tensors or not update.index.count:
        return
    device, mine = update.table.device, [groups[update.group_of[i]] for i in update.tensors]
    numbers = torch.zeros(N_EXTRA, len(mine))
    integers = torch.zeros(N_EXTRA, len(mine), dtype=torch.int64)
    _put(numbers, LR, [group.lr for group in mine])
    _put(numbers, ONE_MINUS_BETA1, [1.0 - group.beta1 for group in mine])
    _put(numbers, BETA2, [group.beta2 for group in mine])
    _put(numbers, ONE_MINUS_BETA2, [1.0 - group.beta2 for group in mine])
    _put(numbers, EPS, [group.eps for group in mine])
    _put(numbers, KEEP, [1.0 - group.lr * group.decay for group in mine])
    _put(numbers, L2, [group.l2 for group in mine])
    corrections = Corrections(update.grads, update.grads, {})
    if update.ages is None:
        steps = [update.steps[i] for i in update.tensors]
        pairs = list(zip(mine, steps, strict=True))
        _put(numbers, FIRST, [group.lr / (1.0 - group.beta1**step) for group, step in pairs])
        _put(numbers, CORRECTION2, [math.sqrt(1.0 - group.beta2**step) for group, step in pairs])
    else:
        betas = [(group.beta1, group.beta2) for group in mine]
        corrections = corrections_of(betas, update.ages.now + 1, device)
        _put(integers, AGES, [corrections.places[each][0] for each in betas])
        _put(integers, LAST_AGE, [corrections.places[each][1] for each in betas])
    launch = Launch(update, numbers, integers)
    if launch.rows.n_blocks:
        with on_device(device):
            adam_kernel[(launch.rows.n_blocks,)](
                launch.rows.data,
                launch.rows.n_rows,
                update.index.offsets,
                update.grads,
                exp_avg,
                exp_avg_sq,
                launch.master,
                corrections1=corrections.first,
                corrections2=corrections.second,
                clip=launch.clip,
                skip=launch.skip,
                BLOCK=BLOCK,
                **launch.ages,
                **OPTIONS,
            )


def sgd_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup]) -> None:
    """See `selective_kernels.optim.sgd_`."""
    if not update.tensors or not update.index.count:
        return
    device, mine = update.table.device, [groups[update.group_of[i]] for i in update.tensors]
    numbers = torch.zeros(N_EXTRA, len(mine))
    integers = torch.zeros(N_EXTRA, len(mine), dtype=torch.int64)
    _put(numbers, LR, [group.lr for group in mine])
    _put(numbers, ONE_MINUS_BETA1, [group.momentum for group in mine])
    _put(numbers, BETA2, [1.0 - group.dampening for group in mine])
    _put(numbers, L2, [group.weight_decay for group in mine])
    _put(integers, ONE_MINUS_BETA2, [int(group.nesterov) for group in mine])
    _put(integers, FIRST, [int(update.steps[i] == 1) for i in update.tensors])
    launch = Launch(update, numbers, integers)
    has_buffer = momentum_buffer is not None and any(group.momentum for group in mine)
    if launch.rows.n_blocks:
        with on_device(device):
            sgd_kernel[(launch.rows.n_blocks,)](
                launch.rows.data,
                launch.rows.n_rows,
                update.index.offsets,
                update.grads,
                update.grads if momentum_buffer is None else momentum_buffer,
                launch.master,
                clip=launch.clip,
                skip=launch.skip,
                HAS_BUFFER=has_buffer,
                BLOCK=BLOCK,
                **launch.ages,
                **OPTIONS,
            )


def square_sum(table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> Tensor:
    """See `selective_kernels.optim.square_sum`."""
    rows = Rows(table, index, tensors, block=NORM_BLOCK)
    sums = torch.zeros(rows.n_blocks, dtype=torch.float64, device=table.device)
    if rows.n_blocks:
        with on_device(table.device):
            square_kernel[(rows.n_blocks,)](rows.data, rows.n_rows, grads, sums, NORM_BLOCK=NORM_BLOCK, **OPTIONS)
    return sums.sum()
