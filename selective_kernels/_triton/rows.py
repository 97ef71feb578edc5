"""The table of tensors on the device, and how kernels find, read and write single entries through it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from selective_kernels.hostcopy import to_device
from selective_kernels.index import SparseIndex
from selective_kernels.table import COLUMNS, Table

# Columns of the device table, int64, each n_rows + 1 long: those of csrc/selective.h, then the running count of blocks
# of BLOCK entries of the index list (blocks never straddle tensors), whose last item is the number of all blocks.
PARAM = tl.constexpr(0)
GRAD = tl.constexpr(1)
NUMEL = tl.constexpr(2)
DTYPE = tl.constexpr(3)
ID = tl.constexpr(4)
BEGIN = tl.constexpr(5)
END = tl.constexpr(6)
BLOCKS = tl.constexpr(7)
N_COLUMNS = 8
BLOCK = 1024  # entries of an index list that one program handles
# Contraction into fused multiply-adds would give other bits than every other backend (C2).
OPTIONS = {"enable_fp_fusion": False}


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels are launched on the current device: makes it the tensors' one for a block."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Rows:
    """A table of tensors for the kernels that work on an index list, block by block.

    Args:
        table, index: all tensors and the entries.
        tensors, grads: as for `Table.rows`.
        extra: further int64 columns, each n_rows long; or all of them, shape (n_columns, n_rows).
        dtype_code: instead of the parameters' own, if what stands in the gradients' place has another dtype.
        block: entries per program.

    Attributes:
        data: int64, on the device, shape (N_COLUMNS + len(extra), n_rows + 1).
        n_rows: number of tensors.
        n_blocks: number of programs that the entries need.
        longest: entries of the tensor that has most of them.
    """

    def __init__(
        self,
        table: Table,
        index: SparseIndex,
        tensors: Sequence[int] | None = None,
        grads: Sequence[Tensor] | None = None,
        extra: Sequence[Tensor] | Tensor = (),
        dtype_code: int | None = None,
        block: int = BLOCK,
    ) -> None:
        rows = table.rows(index, tensors, grads)
        if dtype_code is not None:
            rows[DTYPE.value :: COLUMNS] = array("q", [dtype_code]) * (len(rows) // COLUMNS)
        self.n_rows, self.longest = len(rows) // COLUMNS, 0
        columns = torch.zeros(N_COLUMNS + len(extra), self.n_rows + 1, dtype=torch.int64, device="cpu")
        if self.n_rows:
            columns[:COLUMNS, :-1] = torch.frombuffer(rows, dtype=torch.int64).view(-1, COLUMNS).t()
            entries = columns[END.value] - columns[BEGIN.value]
            self.longest = int(entries.max())
            columns[BLOCKS.value, 1:] = (entries[:-1] + (block - 1)).div_(block, rounding_mode="floor").cumsum(0)
        if isinstance(extra, Tensor):
            columns[N_COLUMNS:, :-1] = extra
        else:
            for i, column in enumerate(extra):  # some have one item for all rows
                columns[N_COLUMNS + i, :-1] = column
        self.n_blocks = int(columns[BLOCKS.value, -1])
        self.data = to_device(columns, table.device)


@triton.jit
def column(rows, n_rows, row, which: tl.constexpr):
    """One item of the device table, or one of each of several rows."""
    return tl.load(rows + which * (n_rows + 1) + row)


@triton.jit
def find_row(starts, n_rows, value):
    """The last row whose start is at most `value`; starts ascend."""
    low = 0
    high = n_rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) <= value:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def lower_bounds(ascending, low, high, values, steps):
    """The first places in [low, high) whose item is at least its value; `steps` is the bit length of the longest."""
    for _ in range(steps):
        open_ = low < high
        middle = (low + high) // 2
        less = tl.load(ascending + middle, mask=open_, other=0) < values
        low = tl.where(open_ & less, middle + 1, low)
        high = tl.where(open_ & (less == 0), middle, high)
    return low


@triton.jit
def block_entries(rows, n_rows, BLOCK: tl.constexpr):
    """What this program of a kernel over index lists handles: (row, places in the list, which of them are there)."""
    program = tl.program_id(0)
    row = find_row(rows + BLOCKS * (n_rows + 1), n_rows, program)
    block = program - column(rows, n_rows, row, BLOCKS)
    entries = column(rows, n_rows, row, BEGIN) + block * BLOCK + tl.arange(0, BLOCK)
    return row, entries, entries < column(rows, n_rows, row, END)


@triton.jit
def load_brain(pointers, mask):
    """bfloat16 at pointers to uint16, widened to float32 by its bits: the interpreter's cast loses subnormals."""
    bits = tl.load(pointers, mask=mask, other=0).to(tl.uint32)
    return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def load_float(address, offsets, mask, dtype):
    """Entries of a tensor at `address` (int64), widened to float32; `dtype` is a code of `table.DTYPE_CODES`."""
    if dtype == 0:
        values = tl.load(address.to(tl.pointer_type(tl.float32)) + offsets, mask=mask, other=0.0)
    elif dtype == 1:
        values = load_brain(address.to(tl.pointer_type(tl.uint16)) + offsets, mask)
    else:
        values = tl.load(address.to(tl.pointer_type(tl.float16)) + offsets, mask=mask, other=0.0).to(tl.float32)
    return values


@triton.jit
def load_bits(address, offsets, mask, dtype):
    """Raw bits of entries of a tensor, zero-extended to int32."""
    if dtype == 0:
        bits = tl.load(address.to(tl.pointer_type(tl.int32)) + offsets, mask=mask, other=0)
    else:
        bits = tl.load(address.to(tl.pointer_type(tl.uint16)) + offsets, mask=mask, other=0).to(tl.int32)
    return bits


@triton.jit
def brain_bits(values):
    """float32 values as bits of bfloat16 (int32), rounded to nearest even as in csrc/convert.h; NaN stays NaN."""
    bits = values.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return tl.where(nan, (bits >> 16) | 0x0040, rounded).to(tl.int32)


@triton.jit
def narrow_bits(values, dtype):
    """Raw bits (int32) of float32 values, rounded to the dtype of a code."""
    if dtype == 0:
        bits = values.to(tl.int32, bitcast=True)
    elif dtype == 1:
        bits = brain_bits(values)
    else:
        bits = values.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.int32)
    return bits


@triton.jit
def widen_bits(bits, dtype):
    """float32 values of raw bits (int32)."""
    if dtype == 0:
        values = bits.to(tl.float32, bitcast=True)
    elif dtype == 1:
        values = (bits << 16).to(tl.float32, bitcast=True)
    else:
        values = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return values


@triton.jit
def store_bits(address, offsets, bits, mask, dtype):
    """Writes raw bits (int32) to entries of a tensor."""
    if dtype == 0:
        tl.store(address.to(tl.pointer_type(tl.int32)) + offsets, bits, mask=mask)
    else:
        tl.store(address.to(tl.pointer_type(tl.uint16)) + offsets, bits.to(tl.uint16), mask=mask)


@triton.jit
def store_float(address, offsets, values, mask, dtype):
    """Writes float32 values to entries of a tensor, rounded to its dtype."""
    store_bits(address, offsets, narrow_bits(values, dtype), mask, dtype)


@triton.jit
def load_mixed(address, offsets, mask, dtype):
    """`load_float` from several tensors at once: each entry has its own address and dtype."""
    full = address.to(tl.pointer_type(tl.float32)) + offsets
    brain = address.to(tl.pointer_type(tl.uint16)) + offsets
    half = address.to(tl.pointer_type(tl.float16)) + offsets
    # chosen, not added up: a sum would lose the sign of zero
    values = tl.load(full, mask=mask & (dtype == 0), other=0.0)
    values = tl.where(dtype == 1, load_brain(brain, mask & (dtype == 1)), values)
    return tl.where(dtype == 2, tl.load(half, mask=mask & (dtype == 2), other=0.0).to(tl.float32), values)


@triton.jit
def load_mixed_bits(address, offsets, mask, dtype):
    """`load_bits` from several tensors at once."""
    words = address.to(tl.pointer_type(tl.int32)) + offsets
    halves = address.to(tl.pointer_type(tl.uint16)) + offsets
    bits = tl.load(words, mask=mask & (dtype == 0), other=0)
    return bits | tl.load(halves, mask=mask & (dtype != 0), other=0).to(tl.int32)
