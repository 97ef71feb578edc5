"""How a scan divides a set of tensors into programs and samples; depends on their sizes only, so it is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels._triton.layout import MAX_ENTRIES, TILE
from selective_kernels.hostcopy import to_device
from selective_kernels.plans import Plans
from selective_kernels.sampling import LINE, Sample, sample_for
from selective_kernels.score import tensor_salt
from selective_kernels.table import DTYPE_CODES, Table

PROGRAMS = 8192  # beyond so many a program reads several tiles, up to MOST_TILES
MOST_TILES = 16


class Plan:
    """The programs of a scan over some tensors of a table.

    Attributes:
        numel, n_lines, n_slots, n_chunks: of all these tensors; see `layout`.
        tiles_per_chunk: what a program reads.
        chunk_rows: int32, on the device: the row of each chunk.
        columns: the fixed columns of `layout`, without the salts: int64, on the CPU.
        dtype_code: of all tensors, or -1.
    """

    def __init__(self, table: Table, tensors: Sequence[int]) -> None:
        numels = torch.tensor(table.numels, dtype=torch.int64, device="cpu")
        flat = numels.cumsum(0) - numels
        if int(numels.sum()) >= MAX_ENTRIES:
            raise ValueError(f"params: expected fewer than {MAX_ENTRIES} entries in one scan, got {int(numels.sum())}")
        chosen = torch.tensor(list(tensors), dtype=torch.int64, device="cpu")
        mine = numels[chosen]
        self.numel = int(mine.sum())
        lines, tiles = -(-mine // LINE), -(-mine // TILE)
        self.tiles_per_chunk = min(max(int(tiles.sum()) // PROGRAMS, 1), MOST_TILES)
        chunks = -(-tiles // self.tiles_per_chunk)
        counts = [lines, tiles + 1, chunks]
        self.columns = [flat[chosen], *(count.cumsum(0) - count for count in counts)]
        self.n_lines, self.n_slots, self.n_chunks = (int(count.sum()) for count in counts)
        rows = torch.repeat_interleave(torch.arange(len(chosen), dtype=torch.int32, device="cpu"), chunks)
        self.chunk_rows = to_device(rows, table.device)
        codes = {DTYPE_CODES[table.dtypes[i]] for i in tensors}
        self.dtype_code = codes.pop() if len(codes) == 1 else -1

    def sample(self, k: int) -> Sample:
        """The sample for the best k."""
        return sample_for(k, self.n_lines, self.numel)


_plans = Plans(Plan)


def plan_of(table: Table, tensors: Sequence[int]) -> Plan:
    """The plan of some tensors, made once.

    Raises:
        ValueError: the table has too many entries for one scan.
    """
    return _plans.of(table, tensors)


def salts(seed: int, ids: Sequence[int]) -> Tensor:
    """The salts of the random score of tensors with these ids, int64 with the bits of the unsigned numbers."""
    found = [tensor_salt(seed, i) for i in ids]
    return torch.tensor([salt - 2**64 if salt >= 2**63 else salt for salt in found], dtype=torch.int64, device="cpu")
