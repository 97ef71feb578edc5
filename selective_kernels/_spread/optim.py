"""Sparse optimizer updates over several devices.

The optimizer's state is on the home device, so all entries are updated there, in one go: those of tensors elsewhere as
short vectors of their raw bits, which are brought home and written back. Nobody has to wait for that, and an update
that is skipped writes back what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels._spread.parts import Piece, parts_of, pieces_of
from selective_kernels.hostcopy import moved
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table

if TYPE_CHECKING:
    from selective_kernels.optim import AdamGroup, SgdGroup, Update


class Visitors:
    """The entries of a piece on the home device, as tensors that an update can work on.

    All tensors of a dtype share one vector, as long as the piece: an entry's offset in it is its place in the piece.
    """

    def __init__(self, piece: Piece, home: torch.device) -> None:
        self._piece, self._home = piece, home
        table = piece.part.table
        bits: Tensor = piece.part.function("gather_bits")(table, piece.index)
        self._bits = moved(bits, home)
        self._halves = None if table.float32_only else self._bits.to(torch.int16)
        self.offsets = torch.arange(piece.index.count, dtype=torch.int32, device=home)

    def vector(self, dtype: torch.dtype) -> Tensor:
        """The vector of the tensors of a dtype."""
        bits = self._bits if dtype is torch.float32 else self._halves
        assert bits is not None
        return bits.view(dtype)

    def go_back(self) -> None:
        """Writes what the vectors hold now to the entries."""
        piece = self._piece
        table = piece.part.table
        for is_whole, run in groupby(range(len(table)), key=lambda i: table.dtypes[i] is torch.float32):
            if self._halves is not None and not is_whole:
                numbers = list(run)
                mine = slice(piece.index.starts[numbers[0]], piece.index.starts[numbers[-1] + 1])
                self._bits[mine] = self._halves[mine]
        piece.part.function("swap_")(table, piece.index, moved(self._bits, table.device))


def _at_home(update: Update, backend: str) -> tuple[Update, list[Visitors]]:
    """The update on the home device, and what has to go back after it."""
    table, index = update.table, update.index
    others = parts_of(table, backend)[1:]
    params, offsets = list(table.params), index.valid.clone()
    visitors = []
    nothing = {dtype: torch.empty(0, dtype=dtype, device=table.device) for dtype in table.dtypes}
    for part in others:
        for number in part.table.ids:
            params[number] = nothing[table.dtypes[number]]
    for piece in pieces_of(others, index):
        visitors.append(Visitors(piece, table.device))
        piece.put(visitors[-1].offsets, offsets)
        for number in piece.part.table.ids:
            params[number] = visitors[-1].vector(table.dtypes[number])
    compact = Table(params, table.names)
    return replace(update, table=compact, index=SparseIndex(offsets, index.starts, compact.numels)), visitors


def adam_(update: Update, exp_avg: Tensor, exp_avg_sq: Tensor, groups: Sequence[AdamGroup], *, backend: str) -> None:
    """See `selective_kernels.optim.adam_`."""
    mine, visitors = _at_home(update, backend)
    dispatch.implementation("adam_", update.table.device, backend)(mine, exp_avg, exp_avg_sq, groups)
    for each in visitors:
        each.go_back()


def sgd_(update: Update, momentum_buffer: Tensor | None, groups: Sequence[SgdGroup], *, backend: str) -> None:
    """See `selective_kernels.optim.sgd_`."""
    mine, visitors = _at_home(update, backend)
    dispatch.implementation("sgd_", update.table.device, backend)(mine, momentum_buffer, groups)
    for each in visitors:
        each.go_back()
