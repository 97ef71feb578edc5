"""A selection that is made in one native call with the update that follows it."""

from __future__ import annotations

import warnings
from array import array
from typing import Any, NamedTuple

from torch import Tensor

from selective_kernels._cuda import native
from selective_kernels._cuda.place import address
from selective_kernels._cuda.plan import plan_of
from selective_kernels._cuda.read import first_sample
from selective_kernels.optim import Update
from selective_kernels.prelude import Choosing, Chosen, Source
from selective_kernels.sampling import capacity_for, float_of
from selective_kernels.score import FAMILIES

SOURCES = {"bits": 1, "values": 2, "grads": 3}  # enum Source of csrc/cuda/bindings.h; 0: a number for all
COMPLETE, NONFINITE, INCOMPLETE = range(3)  # enum Outcome of csrc/cuda/choosing.h


class NativeChoosing(NamedTuple):
    """A selection as a native call takes it.

    Attributes:
        call: the native view.
        room: bytes that it needs beside those of its tables, the merge included.
        n_rows: rows that its tables count for.
        most: new entries, at most.
    """

    call: Any
    room: int
    n_rows: int
    most: int


def _native_array(data: Tensor, source: Source) -> tuple[int, int, int]:
    if isinstance(source, int):
        return data.data_ptr(), 0, source & 0xFFFFFFFF
    return data.data_ptr(), SOURCES[source], 0


def native_choosing(update: Update, choosing: Choosing) -> NativeChoosing:
    """What an update is told of a selection that precedes it; some of its tensors have entries."""
    module: Any = native()
    table, index, score = update.table, update.index, choosing.score
    plan = plan_of(table, update.tensors)
    most = min(choosing.k, plan.numel)
    sample, fixed = first_sample(most, plan.n_lines, plan.numel, None)
    capacity = capacity_for(sample, plan.numel)
    arrays = [_native_array(data, source) for data, source in choosing.arrays]
    arrays.append((update.grads.data_ptr(), SOURCES["grads"], 0))
    call = module.Choosing(
        plan.for_native(),
        plan.slots,
        (FAMILIES.index(score.family), score.exponent, score.eps, score.seed),
        (sample.lines, sample.stride, sample.rank, fixed),
        capacity,
        most,
        address(choosing.flag),
        array("q", update.tensors),
        index.starts,
        arrays,
    )
    merging = 4 * (len(arrays) + 1) * (index.count + most)
    room = module.choosing_room(len(update.tensors), plan.n_slots, capacity, most) + merging
    return NativeChoosing(call, room, len(table) + len(arrays) + 2, most)


def take_chosen(choosing: Choosing, found: tuple[int, int, int]) -> bool:
    """Takes over what a native call says of its selection; False, and nothing has changed, if it could not find all.

    The index has its new starts already: an interrupt between the call and this would part them from the offsets.
    """
    outcome, lowest, n_new = found
    if outcome == INCOMPLETE:
        return False
    if outcome == NONFINITE:
        choosing.chosen = Chosen(False, 0, 0.0)
        return True
    choosing.chosen = Chosen(True, n_new, float_of(lowest))
    return True


def warn_of_memory_for_one_call() -> None:
    """Says that a step is made in several calls; the result is the same."""
    warnings.warn("out of memory for a selection and its update in one call: making several", stacklevel=2)
