"""Exact top-k over several devices: one scan per part, each for as many entries, and a merge of what they find."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import Tensor

from selective_kernels._spread.merging import Found, best_of, brought, counted, found_by_keys, found_by_score
from selective_kernels._spread.parts import Part, Piece, Share, parts_of, share_of
from selective_kernels.additions import Additions
from selective_kernels.fetched import Fetched, fetch
from selective_kernels.hostcopy import moved
from selective_kernels.index import SparseIndex
from selective_kernels.score import Score
from selective_kernels.table import Table

if TYPE_CHECKING:
    from selective_kernels.topk import Scan

PENDING = 2**18  # entries found by keys that are gone; so many more than are wanted wait until they are merged


class Pieces:
    """A table and an index over it, divided for scans; each part's piece is made once, when a scan first needs it."""

    def __init__(self, table: Table, index: SparseIndex, backend: str) -> None:
        self.table, self.index, self.backend = table, index, backend
        self.parts = parts_of(table, backend, scanned=True)
        self._pieces: dict[int, Piece] = {}

    def of(self, number: int) -> Piece:
        """The piece of a part."""
        if number not in self._pieces:
            self._pieces[number] = Piece(self.parts[number], self.index)
        return self._pieces[number]


class SpreadScan:
    """See `selective_kernels.topk.Scan`.

    With a score of family "given" each `add` finds its best entries at once, since the keys may be gone later.
    """

    def __init__(self, pieces: Pieces, k: int, score: Score) -> None:
        self._pieces, self._k, self._score = pieces, k, score
        self._table = pieces.table
        self._running: dict[int, Scan] = {}  # by number of the part
        self._added: dict[int, list[int]] = {}  # numbers of the tensors, by number of the part
        self._additions = Additions(self._table, pieces.index, score)
        self._found: list[Found] = []
        self._best: Found | None = None
        self._index = SparseIndex.empty(len(self._table), device=self._table.device)
        self._passes = 0
        self.threshold = 0.0

    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        sources = self._additions.take(tensors, grads, grads_out)
        for number, part in enumerate(self._pieces.parts):
            share = share_of(part, tensors, sources)
            if share.numbers:
                self._add(number, share, None if sources is None else share.tensors, grads_out)
        if sum(len(found.keys) for found in self._found) > self._k + PENDING:
            self._found = [best_of(self._found, self._k)]

    def _add(self, number: int, share: Share, grads: Sequence[Tensor] | None, grads_out: Tensor | None) -> None:
        """Adds a part's share of some tensors."""
        piece = self._pieces.of(number)
        if self._score.family == "given":
            assert grads is not None
            self._find_at_once(piece, share, grads)
            return
        if number not in self._running:
            self._running[number] = self._begin(piece)
            self._added[number] = []
        values = None if grads_out is None else piece.empty()
        self._running[number].add(share.mine, grads, values)
        self._added[number] += share.numbers
        if values is not None and grads_out is not None:
            piece.put(values, grads_out, share.numbers)

    def _begin(self, piece: Piece) -> Scan:
        scan: Scan = piece.part.function("scan")(piece.part.table, piece.index, self._k, self._score)
        return scan

    def _find_at_once(self, piece: Piece, share: Share, keys: Sequence[Tensor]) -> None:
        if not self._k:
            return
        scan = self._begin(piece)
        scan.add(share.mine, keys)
        self._found.append(found_by_keys(piece.part, scan.finalize(), share.mine, keys, self._table))
        self._passes += scan.passes

    @property
    def nonfinite(self) -> bool:
        """See `Scan.nonfinite`."""
        return any(scan.nonfinite for scan in self._running.values())

    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        if len(self._running) == 1:
            [(number, scan)] = self._running.items()
            self._index, self.threshold = self._widened(self._pieces.parts[number], scan.finalize()), scan.threshold
            return self._index
        found = list(self._found)
        for number, scan in sorted(self._running.items()):
            index = scan.finalize()
            found.append(found_by_score(self._pieces.parts[number], index, scan.fetch(), self._score, self._table))
        if found:
            self._best = best_of(found, self._k)
            self._index, self.threshold = counted(self._best, self._table)
        return self._index

    def _widened(self, part: Part, found: SparseIndex) -> SparseIndex:
        """An index over a part's tensors as one over all tensors."""
        counts = [0] * len(self._table)
        for i, number in enumerate(part.table.ids):
            counts[number] = found.starts[i + 1] - found.starts[i]
        return SparseIndex(moved(found.valid, self._table.device), [0, *accumulate(counts)], self._table.numels)

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        self._additions.check_gather(index, out)
        for number, scan in self._running.items():
            piece = Piece(self._pieces.parts[number], index)
            values = piece.empty()
            scan.gather(piece.index, values)
            piece.put(values, out, sorted(self._added[number]))

    def fetch(self) -> Fetched:
        """See `Scan.fetch`."""
        if len(self._running) == 1:
            [scan] = self._running.values()
            grads, bits, values = brought(scan.fetch(), self._table.device)
        elif self._best is None or self._best.bits is None:
            return fetch(self._table, self._index, self._score, self.gather, self._pieces.backend)
        else:
            grads, bits, values = self._best.grads, self._best.bits, self._best.values
        return Fetched(grads, bits, None if self._table.float32_only else values)

    @property
    def passes(self) -> int:
        """See `Scan.passes`."""
        return self._passes + sum(scan.passes for scan in self._running.values())
