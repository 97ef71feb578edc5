"""Single scalars by flat position on CUDA kernels: one launch each, whatever the number of tensors."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selective_kernels._cuda import native
from selective_kernels._cuda.place import address, place_for
from selective_kernels.hostcopy import HostCopy
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import MergeArrays
from selective_kernels.table import Table


def gather(table: Table, index: SparseIndex, *, out: Tensor) -> None:
    """See `selective_kernels.indexing.gather`."""
    place = place_for(table.device, len(table))
    native().gather(place.where, table.rows(index), index.offsets.data_ptr(), out.data_ptr())


def gather_bits(table: Table, index: SparseIndex) -> Tensor:
    """See `selective_kernels.indexing.gather_bits`."""
    place = place_for(table.device, len(table))
    out = torch.empty(index.count, dtype=torch.int32, device=table.device)
    native().gather_bits(place.where, table.rows(index), index.offsets.data_ptr(), out.data_ptr())
    return out


def gather_grads(
    table: Table,
    index: SparseIndex,
    tensors: Sequence[int],
    grads: Sequence[Tensor],
    out: Tensor,
    flag: Tensor | None = None,
) -> bool:
    """See `selective_kernels.indexing.gather_grads`; without a flag it waits."""
    mine = torch.zeros(1, dtype=torch.int32, device=table.device) if flag is None else flag
    place = place_for(table.device, len(tensors))
    rows = table.rows(index, tensors, grads)
    native().gather_grads(place.where, rows, index.offsets.data_ptr(), out.data_ptr(), mine.data_ptr())
    return flag is not None or int(HostCopy(mine).wait()) == 0


def scatter_(table: Table, index: SparseIndex, values: Tensor) -> None:
    """See `selective_kernels.indexing.scatter_`."""
    place = place_for(table.device, len(table))
    native().scatter(place.where, table.rows(index), index.offsets.data_ptr(), values.data_ptr())


def swap_(table: Table, index: SparseIndex, bits: Tensor) -> None:
    """See `selective_kernels.indexing.swap_`."""
    place = place_for(table.device, len(table))
    native().swap(place.where, table.rows(index), index.offsets.data_ptr(), bits.data_ptr())


class NativeMerge(NamedTuple):
    """A merge as a native call takes it.

    Attributes:
        call: the native view.
        room: bytes that it needs beside those of its tables.
        n_rows: rows that its tables count for.
    """

    call: Any
    room: int
    n_rows: int


def native_merge(offsets: Tensor, starts: Sequence[int], new: SparseIndex, arrays: MergeArrays) -> NativeMerge:
    """The merge of new entries into a list of offsets with these starts."""
    pairs = [(data.data_ptr(), address(fresh)) for data, fresh in arrays]
    pairs.append((offsets.data_ptr(), new.offsets.data_ptr()))
    call = native().Merge(offsets.data_ptr(), array("q", starts), new.offsets.data_ptr(), array("q", new.starts), pairs)
    return NativeMerge(call, 4 * len(pairs) * (starts[-1] + new.count), len(starts) + len(pairs))


def merge_(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> None:
    """See `selective_kernels.indexing.merge_`."""
    if new.count:
        merge = native_merge(index.offsets, index.starts, new, arrays)
        place = place_for(index.offsets.device, merge.n_rows, merge.room)
        merge.call.run(place.where)
    index.starts[:] = [a + b for a, b in zip(index.starts, new.starts, strict=True)]
