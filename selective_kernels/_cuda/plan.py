"""How a scan divides a set of tensors among warps; depends on their sizes and dtypes only, so it is kept."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from selective_kernels._cuda import native
from selective_kernels.hostcopy import to_device
from selective_kernels.plans import Plans
from selective_kernels.sampling import LINE
from selective_kernels.table import DTYPE_CODES, Table

TILE = 4096  # entries: kTile of csrc/row.h
MAX_ENTRIES = 2**33 - 1  # in all tensors of a table: kFlatBits of csrc/cuda/scan.h
CHUNKS = 65536  # beyond so many a warp reads several tiles, up to MOST_TILES
MOST_TILES = 16


class Chunks(NamedTuple):
    """The work of warps.

    Attributes:
        items: int32, shape (count, 2), on the CPU: row and first tile of each; those of float32 rows first, then
            bfloat16, then float16.
        ranges: the first chunk of each of these dtypes, and their number.
        tiles: of a chunk, fewer at the end of a row.
    """

    items: torch.Tensor
    ranges: tuple[int, int, int, int]
    tiles: int


def chunks_of(numels: Sequence[int], codes: Sequence[int]) -> Chunks:
    """The chunks of rows of these sizes, with dtypes of these codes of `DTYPE_CODES`."""
    tiles = -(-torch.tensor(numels, dtype=torch.int64, device="cpu") // TILE)
    per_chunk = min(max(int(tiles.sum()) // CHUNKS, 1), MOST_TILES)
    counts = -(-tiles // per_chunk)
    kinds = torch.tensor(codes, dtype=torch.int64, device="cpu")
    order = torch.sort(kinds, stable=True).indices
    rows = torch.repeat_interleave(order, counts[order])
    before = counts[order].cumsum(0) - counts[order]
    first = (torch.arange(len(rows), device="cpu") - torch.repeat_interleave(before, counts[order])) * per_chunk
    ends = [int(counts[kinds <= code].sum()) for code in range(3)]
    return Chunks(torch.stack([rows, first], 1).to(torch.int32), (0, ends[0], ends[1], ends[2]), per_chunk)


def spots_of(numels: Sequence[int], tensors: Sequence[int]) -> torch.Tensor:
    """What stands before each of some tensors, and before their end: lines and slots of these, entries of all.

    Args:
        numels: sizes of all tensors.
        tensors: numbers of some, ascending.

    Returns:
        int64, shape (len(tensors) + 1, 3), on the CPU: struct Spot of csrc/cuda/scan.h.
    """
    sizes = torch.tensor(numels, dtype=torch.int64, device="cpu")
    chosen = torch.tensor(list(tensors), dtype=torch.int64, device="cpu")
    mine = sizes[chosen]
    spots = torch.zeros(len(chosen) + 1, 3, dtype=torch.int64, device="cpu")
    spots[1:, 0] = (-(-mine // LINE)).cumsum(0)
    spots[1:, 1] = (-(-mine // TILE) + 1).cumsum(0)
    spots[:-1, 2] = (sizes.cumsum(0) - sizes)[chosen]
    spots[-1, 2] = sizes.sum()
    return spots


class Plan:
    """The division of some tensors of a table.

    Attributes:
        numel, n_lines, n_slots, n_chunks: of all these tensors; a tensor has a slot for each tile and one more.
        slots: number of slots before each tensor, int64.
        chunks, spots: on the table's device.
    """

    def __init__(self, table: Table, tensors: Sequence[int]) -> None:
        if table.total > MAX_ENTRIES:
            raise ValueError(f"params: expected at most {MAX_ENTRIES} entries in one scan, got {table.total}")
        module: Any = native()
        assert (TILE, LINE, MAX_ENTRIES) == (module.TILE, module.LINE, module.MAX_ENTRIES)
        spots = spots_of(table.numels, tensors)
        chunks = chunks_of([table.numels[i] for i in tensors], [DTYPE_CODES[table.dtypes[i]] for i in tensors])
        self.numel = sum(table.numels[i] for i in tensors)
        self.n_lines, self.n_slots = int(spots[-1, 0]), int(spots[-1, 1])
        self.n_chunks = len(chunks.items)
        self.slots = array("q", spots[:-1, 1].tolist())
        self.chunks, self.spots = to_device(chunks.items, table.device), to_device(spots, table.device)
        self._ranges, self._tiles = chunks.ranges, chunks.tiles

    def for_native(self, *, keys: bool = False) -> tuple[int, int, tuple[int, int, int, int], int, int]:
        """What a native call gets; with `keys` all that is read has one dtype, float32."""
        ranges = (0, self.n_chunks, self.n_chunks, self.n_chunks) if keys else self._ranges
        return self.spots.data_ptr(), self.chunks.data_ptr(), ranges, self._tiles, self.n_slots


_plans = Plans(Plan)


def plan_of(table: Table, tensors: Sequence[int]) -> Plan:
    """The plan of some tensors, made once.

    Raises:
        ValueError: the table has too many entries for one scan.
    """
    return _plans.of(table, tensors)
