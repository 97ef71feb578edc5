"""Sparse optimizer updates on the compiled CPU kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selective_kernels import _native
from selective_kernels.index import SparseIndex
from selective_kernels.optim import AdamGroup, Ages, SgdGroup, Update, skipped
from selective_kernels.table import Table


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _ages(ages: Ages | None, n_tensors: int) -> tuple[Any, tuple[Tensor, ...]]:
    """The native view of the ages, and what must stay alive while it is used."""
    if ages is None:
        return None, ()
    missed = [ages.missed.get(i, ()) for i in range(n_tensors)]
    starts = torch.tensor([0, *(len(steps) for steps in missed)], device="cpu").cumsum(0)
    steps = torch.tensor([step for each in missed for step in each], dtype=torch.int32, device="cpu")
    view = _native.cpu().Ages(ages.chosen.data_ptr(), starts.data_ptr(), steps.data_ptr(), ages.now)
    return view, (starts, steps)


def _run(
    kernel: Any,
    update: Update,
    groups: Sequence[Sequence[float]],
    first: Tensor | None,
    second: Tensor | None,
) -> None:
    """Calls a native step; `first` and `second` are the optimizer's per-entry state."""
    if skipped(update):
        return
    ages, alive = _ages(update.ages, len(update.table))
    arrays = [update.index.offsets, update.grads, first, second, update.master]
    kernel(
        update.table.rows(update.index, update.tensors),
        array("q", [update.group_of[i] for i in update.tensors]),
        array("q", [update.steps[i] for i in update.tensors]),
        array("d", [value for group in groups for value in group]),
        [_address(each) for each in arrays],
        ages,
        float(update.clip),
        torch.get_num_threads(),
    )
    del alive


def adam_(update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup]) -> None:
    """See `selective_kernels.optim.adam_`."""
    _run(_native.cpu().adam, update, groups, exp_avg, exp_avg_sq)


def sgd_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup]) -> None:
    """See `selective_kernels.optim.sgd_`."""
    _run(_native.cpu().sgd, update, groups, momentum_buffer, None)


def square_sum(table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> Tensor:
    """See `selective_kernels.optim.square_sum`."""
    total = _native.cpu().square_sum(table.rows(index, tensors), grads.data_ptr(), torch.get_num_threads())
    return torch.tensor(total, dtype=torch.float64, device="cpu")
