"""Single scalars by flat position on Triton kernels: one launch each, whatever the number of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from selective_kernels._triton.merging import merge_ as merge_
from selective_kernels._triton.rows import (
    BLOCK,
    DTYPE,
    GRAD,
    OPTIONS,
    PARAM,
    Rows,
    block_entries,
    column,
    load_bits,
    load_float,
    on_device,
    store_bits,
    store_float,
)
from selective_kernels.hostcopy import HostCopy
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table

VALUES = tl.constexpr(0)  # float32 values of the parameters
BITS = tl.constexpr(1)  # their raw bits
GRADS = tl.constexpr(2)  # float32 values of the gradients, with a flag for inf and NaN


@triton.jit(do_not_specialize=["n_rows"])
def gather_kernel(rows, n_rows, offsets, out, flag, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = what stands at entry i of the index list `offsets`; `flag` (int32) is set for gradients only."""
    row, entries, there = block_entries(rows, n_rows, BLOCK)
    offset = tl.load(offsets + entries, mask=there, other=0)
    dtype = column(rows, n_rows, row, DTYPE)
    if WHAT == GRADS:
        values = load_float(column(rows, n_rows, row, GRAD), offset, there, dtype)
        tl.store(out + entries, values, mask=there)
        finite = tl.abs(values) < float("inf")
        if tl.min(finite.to(tl.int32), 0) == 0:
            tl.store(flag, 1)
    elif WHAT == BITS:
        tl.store(out + entries, load_bits(column(rows, n_rows, row, PARAM), offset, there, dtype), mask=there)
    else:
        tl.store(out + entries, load_float(column(rows, n_rows, row, PARAM), offset, there, dtype), mask=there)


@triton.jit(do_not_specialize=["n_rows"])
def scatter_kernel(rows, n_rows, offsets, values, EXCHANGING: tl.constexpr, BLOCK: tl.constexpr):
    """Writes `values` (float32) to the entries; EXCHANGING: exchanges raw bits with `values` (int32)."""
    row, entries, there = block_entries(rows, n_rows, BLOCK)
    offset = tl.load(offsets + entries, mask=there, other=0)
    dtype, param = column(rows, n_rows, row, DTYPE), column(rows, n_rows, row, PARAM)
    given = tl.load(values + entries, mask=there, other=0)
    if EXCHANGING:
        before = load_bits(param, offset, there, dtype)
        store_bits(param, offset, given, there, dtype)
        tl.store(values + entries, before, mask=there)
    else:
        store_float(param, offset, given, there, dtype)


def _gather(rows: Rows, index: SparseIndex, out: Tensor, flag: Tensor | None, what: int) -> None:
    if rows.n_blocks:
        with on_device(out.device):
            gather_kernel[(rows.n_blocks,)](
                rows.data,
                rows.n_rows,
                index.offsets,
                out,
                out if flag is None else flag,
                WHAT=what,
                BLOCK=BLOCK,
                **OPTIONS,
            )


def gather(table: Table, index: SparseIndex, *, out: Tensor) -> None:
    """See `selective_kernels.indexing.gather`."""
    _gather(Rows(table, index), index, out, None, VALUES.value)


def gather_bits(table: Table, index: SparseIndex) -> Tensor:
    """See `selective_kernels.indexing.gather_bits`."""
    out = torch.empty(index.count, dtype=torch.int32, device=table.device)
    _gather(Rows(table, index), index, out, None, BITS.value)
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
    _gather(Rows(table, index, tensors, grads), index, out, mine, GRADS.value)
    return flag is not None or int(HostCopy(mine).wait()) == 0


def _scatter(table: Table, index: SparseIndex, values: Tensor, *, exchanging: bool) -> None:
    rows = Rows(table, index)
    if rows.n_blocks:
        with on_device(table.device):
            scatter_kernel[(rows.n_blocks,)](
                rows.data, rows.n_rows, index.offsets, values, EXCHANGING=exchanging, BLOCK=BLOCK, **OPTIONS
            )


def scatter_(table: Table, index: SparseIndex, values: Tensor) -> None:
    """See `selective_kernels.indexing.scatter_`."""
    _scatter(table, index, values, exchanging=False)


def swap_(table: Table, index: SparseIndex, bits: Tensor) -> None:
    """See `selective_kernels.indexing.swap_`."""
    _scatter(table, index, bits, exchanging=True)
