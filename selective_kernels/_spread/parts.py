"""Dividing a table of tensors, and an index over it, by device."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.hostcopy import moved
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table

# Scans on Triton pack an entry's place among all entries into 33 bits, so that a part of theirs has to be smaller.
PART_LIMIT = 2**33 - 1
LIMITED = ("triton",)


class Part(NamedTuple):
    """Tensors of a table that one backend serves.

    Attributes:
        table: of these tensors, ascending; their ids are their numbers in the whole table.
        backend: the name of the backend.
        local: place in `table` by number in the whole table.
    """

    table: Table
    backend: str
    local: dict[int, int]

    def function(self, op: str) -> Any:
        """The part's implementation of an operation."""
        return dispatch.implementation(op, self.table.device, self.backend)


_known: WeakKeyDictionary[Table, dict[tuple[object, ...], list[Part]]] = WeakKeyDictionary()


def is_divided(table: Table, backend: str) -> bool:
    """Whether a scan of a table goes by parts."""
    return table.spread or (table.total >= PART_LIMIT and dispatch.resolve(table.device, backend) in LIMITED)


def parts_of(table: Table, backend: str, *, scanned: bool = False) -> list[Part]:
    """The parts of a table, the home place first; made once.

    Args:
        table: all tensors.
        backend: "auto" or a name; see `dispatch.resolve_all` for the errors.
        scanned: parts end at `PART_LIMIT`, too, where a scan needs it.
    """
    backends = dispatch.resolve_all(table, backend)
    known = _known.setdefault(table, {})
    key = (scanned and PART_LIMIT, *backends.values())
    if key not in known:
        known[key] = [
            Part(
                Table([table.params[i] for i in numbers], [table.names[i] for i in numbers], numbers),
                backends[place],
                {number: i for i, number in enumerate(numbers)},
            )
            for place in backends
            for numbers in _by_size(table, place, limited=scanned and backends[place] in LIMITED)
        ]
    return known[key]


def _by_size(table: Table, place: Hashable, *, limited: bool) -> Iterator[list[int]]:
    """The numbers of a place's tensors, in lists whose sizes sum up to less than `PART_LIMIT` if that matters."""
    numbers: list[int] = []
    total = 0
    for i, (mine, numel) in enumerate(zip(table.places, table.numels, strict=True)):
        if mine != place:
            continue
        if limited and numbers and total + numel >= PART_LIMIT:
            yield numbers
            numbers, total = [], 0
        numbers.append(i)
        total += numel
    yield numbers


class Span(NamedTuple):
    """Entries that are neighbours both in the whole index and in a part's."""

    mine: slice  # in the part's
    whole: slice


class Piece:
    """The entries of an index that are in a part.

    Attributes:
        part: the part.
        index: over its tensors, on its device.
    """

    def __init__(self, part: Part, whole: SparseIndex) -> None:
        starts, numbers = whole.starts, part.table.ids
        self.part, self._starts = part, starts
        lengths = [starts[i + 1] - starts[i] for i in numbers]
        self.index = SparseIndex(whole.offsets, [0, *accumulate(lengths)], part.table.numels)
        self.index.offsets = self.take(whole.offsets)

    def spans(self, tensors: Sequence[int] | None = None) -> list[Span]:
        """The entries of some of the part's tensors, numbered as in the whole table and ascending; None: of all."""
        mine, whole, local = self.index.starts, self._starts, self.part.local
        spans: list[Span] = []
        for number in self.part.table.ids if tensors is None else tensors:
            i = local[number]
            if mine[i] == mine[i + 1]:
                continue
            if spans and spans[-1].mine.stop == mine[i] and spans[-1].whole.stop == whole[number]:
                first = spans.pop()
                spans.append(Span(slice(first.mine.start, mine[i + 1]), slice(first.whole.start, whole[number + 1])))
            else:
                spans.append(Span(slice(mine[i], mine[i + 1]), slice(whole[number], whole[number + 1])))
        return spans

    def take(self, values: Tensor) -> Tensor:
        """A copy, on the part's device, of what a per-entry array holds of the piece."""
        taken = [values[span.whole] for span in self.spans()]
        return moved(torch.cat(taken) if taken else values[:0].clone(), self.part.table.device)

    def put(self, values: Tensor, out: Tensor, tensors: Sequence[int] | None = None) -> None:
        """Writes the piece's values, ordered like its index, to their places in a per-entry array.

        Args:
            values: shape (index.count,), on the part's device.
            out: ordered like the whole index.
            tensors: writes those of these tensors only; see `spans`.
        """
        spans = self.spans(tensors)
        if spans:
            first = spans[0].mine.start
            here = moved(values[first : spans[-1].mine.stop], out.device)
            for span in spans:
                out[span.whole] = here[span.mine.start - first : span.mine.stop - first]

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room for a value of each entry, on the part's device."""
        return torch.empty(self.index.count, dtype=dtype, device=self.part.table.device)


def pieces_of(parts: Sequence[Part], index: SparseIndex) -> list[Piece]:
    """The index divided by parts, without parts that have no entries of it."""
    return [piece for piece in (Piece(part, index) for part in parts) if piece.index.count]


class Share(NamedTuple):
    """What a part has of some tensors: their numbers in the whole table and in the part, and what goes with them."""

    numbers: list[int]
    mine: list[int]
    tensors: list[Tensor]


def share_of(part: Part, numbers: Sequence[int], tensors: Sequence[Tensor] | None) -> Share:
    """The part's share of some tensors.

    Args:
        part: the part.
        numbers: of the tensors in the whole table.
        tensors: what goes with each of them, such as gradients; None for nothing.
    """
    places = [place for place, number in enumerate(numbers) if number in part.local]
    mine = [numbers[place] for place in places]
    return Share(mine, [part.local[i] for i in mine], [] if tensors is None else [tensors[i] for i in places])
