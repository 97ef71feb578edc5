"""Sparse optimizer updates on Triton kernels: one launch for all tensors and groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from selective_kernels._triton.rows import BLOCK, N_COLUMNS, OPTIONS, Rows, on_device
from selective_kernels._triton.updates import (
    AGES,
    LAST_AGE,
    MISSED,
    MISSED_END,
    NUMBERS,
    adam_kernel,
    sgd_kernel,
    square_kernel,
)
from selective_kernels.ages import corrections_of
from selective_kernels.hostcopy import to_device
from selective_kernels.index import SparseIndex
from selective_kernels.optim import NORM_BLOCK, AdamGroup, Ages, SgdGroup, Update
from selective_kernels.table import Table

NUM_WARPS = 8  # four entries per thread: more would take registers that loads in flight need
Numbers = list[float]  # in the order of the columns of `updates`, from LR on


def _columns(update: Update, numbers_of: Callable[[int, int], Numbers]) -> Tensor:
    """The columns of `updates`, int64, shape (n_columns, n_rows).

    Args:
        update: which tensors.
        numbers_of: the numbers of a group after so many updates of a tensor; asked once for all tensors alike. With
            ages a tensor's updates do not matter, and it is asked for 0.
    """
    kinds: dict[tuple[int, int], int] = {}
    steps = update.steps if update.ages is None else [0] * len(update.steps)
    which = [kinds.setdefault((update.group_of[i], steps[i]), len(kinds)) for i in update.tensors]
    numbers = torch.tensor([numbers_of(*kind) for kind in kinds], dtype=torch.float64, device="cpu").float()
    integers = torch.zeros(NUMBERS - N_COLUMNS, len(which), dtype=torch.int64, device="cpu")
    return torch.cat([integers, numbers.view(torch.int32).long()[torch.tensor(which, device="cpu")].t()])


def _missed(update: Update, ages: Ages, columns: Tensor) -> Tensor:
    """All missed steps, int32; writes into the columns where each tensor's are."""
    missed = [ages.missed.get(i, ()) for i in update.tensors]
    ends = torch.tensor([len(steps) for steps in missed], device="cpu").cumsum(0)
    columns[MISSED.value - N_COLUMNS, 1:] = ends[:-1]
    columns[MISSED_END.value - N_COLUMNS] = ends
    return torch.tensor([step for steps in missed for step in steps], dtype=torch.int32, device="cpu")


def _aged(update: Update, columns: Tensor) -> dict[str, Any]:
    """What both kernels are told about ages; what they do not read is some tensor."""
    ages, anything = update.ages, update.index.offsets
    if ages is None:
        return {"chosen": anything, "missed": anything, "now": 0, "steps": 0, "AGED": False}
    missed = _missed(update, ages, columns)
    longest = int((columns[MISSED_END.value - N_COLUMNS] - columns[MISSED.value - N_COLUMNS]).max())
    there = to_device(missed, update.table.device) if longest else anything
    return {"chosen": ages.chosen, "missed": there, "now": ages.now, "steps": longest.bit_length(), "AGED": True}


def _launch(kernel: Any, update: Update, columns: Tensor, state: Sequence[Tensor], **more: Any) -> None:
    """Runs an update's kernel over all entries of its tensors, if there are any; `state` comes after the gradients."""
    aged = _aged(update, columns)
    rows = Rows(update.table, update.index, update.tensors, extra=columns)
    if not rows.n_blocks:
        return
    with on_device(update.table.device):
        kernel[(rows.n_blocks,)](
            rows.data,
            rows.n_rows,
            update.index.offsets,
            update.grads,
            *state,
            update.grads if update.master is None else update.master,
            clip=update.clip if isinstance(update.clip, Tensor) else float(update.clip),
            skip=update.index.offsets if update.skip is None else update.skip,
            CLIP_ON_DEVICE=isinstance(update.clip, Tensor),
            HAS_SKIP=update.skip is not None,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            **aged,
            **more,
            **OPTIONS,
        )


def _adam_numbers(group: AdamGroup, step: int) -> Numbers:
    """Without a step those that depend on it are left out: they come by age."""
    step_size = group.lr / (1.0 - group.beta1**step) if step else 0.0
    correction2 = math.sqrt(1.0 - group.beta2**step) if step else 1.0
    moments = [1.0 - group.beta1, group.beta2, 1.0 - group.beta2, group.eps]
    return [group.lr, group.l2, step_size, correction2, *moments, 1.0 - group.lr * group.decay]


def adam_(update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup]) -> None:
    """See `selective_kernels.optim.adam_`."""
    if not update.tensors or not update.index.count:
        return
    columns = _columns(update, lambda group, step: _adam_numbers(groups[group], step))
    first = second = update.grads
    if update.ages is not None:
        betas = [(group.beta1, group.beta2) for group in groups]
        first, second, places = corrections_of(betas, update.ages.now + 1, update.table.device)
        of_group = torch.tensor([places[pair] for pair in betas], device="cpu")
        mine = torch.tensor([update.group_of[i] for i in update.tensors], device="cpu")
        columns[AGES.value - N_COLUMNS], columns[LAST_AGE.value - N_COLUMNS] = of_group[mine].unbind(1)
    _launch(adam_kernel, update, columns, [exp_avg, exp_avg_sq], corrections1=first, corrections2=second)


def _sgd_numbers(group: SgdGroup, step: int) -> Numbers:
    momentum = [float(step == 1), group.momentum, 1.0 - group.dampening, float(group.nesterov)]
    return [group.lr, group.weight_decay, *momentum]


def sgd_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup]) -> None:
    """See `selective_kernels.optim.sgd_`."""
    if not update.tensors or not update.index.count:
        return
    columns = _columns(update, lambda group, step: _sgd_numbers(groups[group], step))
    buffer = update.grads if momentum_buffer is None else momentum_buffer
    has_buffer = any(groups[update.group_of[i]].momentum for i in update.tensors)
    _launch(sgd_kernel, update, columns, [buffer], HAS_BUFFER=has_buffer)


def square_sum(table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> Tensor:
    """See `selective_kernels.optim.square_sum`."""
    rows = Rows(table, index, tensors, block=NORM_BLOCK)
    sums = torch.empty(rows.n_blocks, dtype=torch.float64, device=table.device)
    if rows.n_blocks:
        with on_device(table.device):
            square_kernel[(rows.n_blocks,)](rows.data, rows.n_rows, grads, sums, NORM_BLOCK=NORM_BLOCK, **OPTIONS)
    return sums.sum()
