"""Single scalars by flat position over several devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels._spread.parts import parts_of, pieces_of, share_of
from selective_kernels.hostcopy import moved
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table


def gather(table: Table, index: SparseIndex, *, out: Tensor, backend: str) -> None:
    """See `selective_kernels.indexing.gather`."""
    for piece in pieces_of(parts_of(table, backend), index):
        values = piece.empty()
        piece.part.function("gather")(piece.part.table, piece.index, out=values)
        piece.put(values, out)


def gather_bits(table: Table, index: SparseIndex, *, backend: str) -> Tensor:
    """See `selective_kernels.indexing.gather_bits`."""
    out = torch.empty(index.count, dtype=torch.int32, device=table.device)
    for piece in pieces_of(parts_of(table, backend), index):
        piece.put(piece.part.function("gather_bits")(piece.part.table, piece.index), out)
    return out


def gather_grads(
    table: Table,
    index: SparseIndex,
    tensors: Sequence[int],
    grads: Sequence[Tensor],
    out: Tensor,
    flag: Tensor | None = None,
    *,
    backend: str,
) -> bool:
    """See `selective_kernels.indexing.gather_grads`."""
    results = []
    for piece in pieces_of(parts_of(table, backend), index):
        part, values = piece.part, piece.empty()
        share = share_of(part, tensors, grads)
        seen = None if flag is None else torch.zeros(1, dtype=torch.int32, device=part.table.device)
        results.append(part.function("gather_grads")(part.table, piece.index, share.mine, share.tensors, values, seen))
        piece.put(values, out, share.numbers)
        if flag is not None and seen is not None:
            flag |= moved(seen, flag.device)
    return all(results)


def scatter_(table: Table, index: SparseIndex, values: Tensor, *, backend: str) -> None:
    """See `selective_kernels.indexing.scatter_`."""
    for piece in pieces_of(parts_of(table, backend), index):
        piece.part.function("scatter_")(piece.part.table, piece.index, piece.take(values))


def swap_(table: Table, index: SparseIndex, bits: Tensor, *, backend: str) -> None:
    """See `selective_kernels.indexing.swap_`."""
    for piece in pieces_of(parts_of(table, backend), index):
        mine = piece.take(bits)
        piece.part.function("swap_")(piece.part.table, piece.index, mine)
        piece.put(mine, bits)
