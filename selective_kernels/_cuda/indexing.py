"""Single scalars by flat position on CUDA kernels: one launch each, whatever the number of tensors."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

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


def merge_(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> None:
    """See `selective_kernels.indexing.merge_`."""
    if new.count:
        pairs = [(data.data_ptr(), address(fresh)) for data, fresh in arrays]
        pairs.append((index.offsets.data_ptr(), new.offsets.data_ptr()))
        merged = 4 * len(pairs) * (index.count + new.count)
        place = place_for(index.offsets.device, index.n_tensors + len(pairs), merged)
        native().merge(
            place.where,
            index.offsets.data_ptr(),
            array("q", index.starts),
            new.offsets.data_ptr(),
            array("q", new.starts),
            pairs,
        )
    index.starts[:] = [a + b for a, b in zip(index.starts, new.starts, strict=True)]
