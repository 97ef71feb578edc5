"""Single scalars by flat position on the compiled CPU kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels import _native
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import MergeArrays, raised
from selective_kernels.table import COLUMNS, Table


def gather(table: Table, index: SparseIndex, *, out: Tensor) -> None:
    """See `selective_kernels.indexing.gather`."""
    _native.cpu().gather(table.rows(index), index.offsets.data_ptr(), out.data_ptr(), torch.get_num_threads())


def gather_bits(table: Table, index: SparseIndex) -> Tensor:
    """See `selective_kernels.indexing.gather_bits`."""
    out = torch.empty(index.count, dtype=torch.int32, device="cpu")
    _native.cpu().gather_bits(table.rows(index), index.offsets.data_ptr(), out.data_ptr(), torch.get_num_threads())
    return out


def gather_grads(
    table: Table,
    index: SparseIndex,
    tensors: Sequence[int],
    grads: Sequence[Tensor],
    out: Tensor,
    flag: Tensor | None = None,
) -> bool:
    """See `selective_kernels.indexing.gather_grads`."""
    rows = table.rows(index, tensors, grads)
    rows[0::COLUMNS] = rows[1::COLUMNS]  # what is gathered from is the row's first column
    finite = bool(_native.cpu().gather(rows, index.offsets.data_ptr(), out.data_ptr(), torch.get_num_threads()))
    return finite if flag is None else raised(flag, finite)


def scatter_(table: Table, index: SparseIndex, values: Tensor) -> None:
    """See `selective_kernels.indexing.scatter_`."""
    _native.cpu().scatter(table.rows(index), index.offsets.data_ptr(), values.data_ptr(), torch.get_num_threads())


def swap_(table: Table, index: SparseIndex, bits: Tensor) -> None:
    """See `selective_kernels.indexing.swap_`."""
    _native.cpu().swap(table.rows(index), index.offsets.data_ptr(), bits.data_ptr(), torch.get_num_threads())


def merge_(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> None:
    """See `selective_kernels.indexing.merge_`."""
    pairs = [(data.data_ptr(), 0 if fresh is None else fresh.data_ptr()) for data, fresh in arrays]
    pairs.append((index.offsets.data_ptr(), new.offsets.data_ptr()))
    _native.cpu().merge(
        index.offsets.data_ptr(),
        array("q", index.starts),
        new.offsets.data_ptr(),
        array("q", new.starts),
        pairs,
        torch.get_num_threads(),
    )
    index.starts[:] = [a + b for a, b in zip(index.starts, new.starts, strict=True)]
