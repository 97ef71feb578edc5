"""Inserting new entries into an index list and its arrays: two launches, whatever the number of arrays and tensors.

First every entry of both lists goes to its place in a temporary copy of all arrays: its own place plus the number of
entries of the other list that come before it in their tensor. Then the copy is written back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from selective_kernels._triton.rows import BLOCK, OPTIONS, find_row, lower_bounds, on_device
from selective_kernels.hostcopy import to_device
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import MergeArrays

# Columns of the table of starts, int64, each n_tensors + 1 long.
OLD = tl.constexpr(0)  # where a tensor's entries begin in the old list
NEW = tl.constexpr(1)  # and in the new one
OLD_BLOCKS = tl.constexpr(2)  # running counts of blocks of BLOCK entries, per tensor
NEW_BLOCKS = tl.constexpr(3)


@triton.jit
def move_block(
    starts, n_tensors, block, mine, others, addresses, merged, total, steps, n_arrays,
    MINE: tl.constexpr, OTHER: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Brings a block of entries of the list `mine` to their merged places in all arrays, which are at `addresses`."""
    stride = n_tensors + 1
    tensor = find_row(starts + BLOCKS * stride, n_tensors, block)
    first = (block - tl.load(starts + BLOCKS * stride + tensor)) * BLOCK
    begin, end = tl.load(starts + MINE * stride + tensor), tl.load(starts + MINE * stride + tensor + 1)
    low, high = tl.load(starts + OTHER * stride + tensor), tl.load(starts + OTHER * stride + tensor + 1)
    entries = begin + first + tl.arange(0, BLOCK)
    there = entries < end
    offset = tl.load(mine + entries, mask=there, other=0)
    place = entries + lower_bounds(others, low + tl.zeros_like(entries), high + tl.zeros_like(entries), offset, steps)
    for i in range(n_arrays):
        address = tl.load(addresses + i)
        values = tl.zeros([BLOCK], tl.int32)
        if address != 0:
            values = tl.load(address.to(tl.pointer_type(tl.int32)) + entries, mask=there, other=0)
        tl.store(merged + place, values, mask=there)
        place += total


@triton.jit(do_not_specialize=["n_tensors", "n_old_blocks", "total", "steps", "n_arrays"])
def merge_kernel(
    starts, n_tensors, old, new, old_addresses, new_addresses, merged, total, steps, n_old_blocks, n_arrays,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Merges all arrays into `merged` (int32, n_arrays rows of `total`)."""
    program = tl.program_id(0)
    if program < n_old_blocks:
        move_block(
            starts, n_tensors, program, old, new, old_addresses, merged, total, steps, n_arrays,
            OLD, NEW, OLD_BLOCKS, BLOCK,
        )  # fmt: skip
    else:
        move_block(
            starts, n_tensors, program - n_old_blocks, new, old, new_addresses, merged, total, steps, n_arrays,
            NEW, OLD, NEW_BLOCKS, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["total", "n_arrays"])
def copy_kernel(merged, addresses, total, n_arrays, BLOCK: tl.constexpr):
    """Writes the rows of `merged` (int32) back into the arrays."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < total
    source = place
    for i in range(n_arrays):
        values = tl.load(merged + source, mask=there, other=0)
        tl.store(tl.load(addresses + i).to(tl.pointer_type(tl.int32)) + place, values, mask=there)
        source += total


def _blocks(starts: Tensor) -> Tensor:
    counts = (starts.diff() + (BLOCK - 1)).div_(BLOCK, rounding_mode="floor")
    return torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), counts.cumsum(0)])


def _table(index: SparseIndex, new: SparseIndex, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, ...]:
    """The starts and the addresses, on the CPU: columns of starts, then addresses of old and of new arrays."""
    starts = torch.tensor([index.starts, new.starts], dtype=torch.int64, device="cpu")
    blocks = torch.stack([_blocks(starts[0]), _blocks(starts[1])])
    old = [data.data_ptr() for data, _ in pairs]
    fresh = [0 if values is None else values.data_ptr() for _, values in pairs]
    return torch.cat([starts, blocks]), torch.tensor([old, fresh], dtype=torch.int64, device="cpu")


def merge_(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> None:
    """See `selective_kernels.indexing.merge_`."""
    device, total = index.offsets.device, index.count + new.count
    if new.count:
        pairs = [*arrays, (index.offsets, new.offsets)]
        starts, addresses = _table(index, new, pairs)
        n_blocks = starts[OLD_BLOCKS.value :, -1].tolist()
        lengths = starts[: OLD_BLOCKS.value].diff()
        packed = to_device(torch.cat([starts.reshape(-1), addresses.reshape(-1)]), device)
        on = packed[starts.numel() :].view(2, -1)
        merged = torch.empty(len(pairs), total, dtype=torch.int32, device=device)
        with on_device(device):
            merge_kernel[(sum(n_blocks),)](
                packed,
                index.n_tensors,
                index.offsets,
                new.offsets,
                on[0],
                on[1],
                merged,
                total,
                int(lengths.max()).bit_length(),
                n_blocks[0],
                len(pairs),
                BLOCK=BLOCK,
                **OPTIONS,
            )
            copy_kernel[(-(-total // BLOCK),)](merged, on[0], total, len(pairs), BLOCK=BLOCK, **OPTIONS)
    index.starts[:] = [a + b for a, b in zip(index.starts, new.starts, strict=True)]
