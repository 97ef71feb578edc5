"""A top-k within each tensor: one scan per tensor that wants entries, behind the interface of a single scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selective_kernels.checks import check_added_once, check_gathers
from selective_kernels.fetched import Fetched, fetch
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import gather_grads
from selective_kernels.score import Score
from selective_kernels.table import Table

if TYPE_CHECKING:
    from selective_kernels.topk import Scan


class PerTensorScan:
    """See `selective_kernels.topk.Scan`; tensor i gives its best counts[i] entries.

    Args:
        begin: makes a scan for a number of entries.
        table: all tensors.
        counts: how many entries are wanted of each.
        score, backend: what `begin` uses.
    """

    def __init__(
        self, begin: Callable[[int], Scan], table: Table, counts: Sequence[int], score: Score, backend: str
    ) -> None:
        self._table, self._begin, self._counts = table, begin, list(counts)
        self._score, self._backend = score, backend
        self._wanting: dict[int, Scan] = {}
        self._resting: list[Scan] = []  # of tensors that want nothing: their gradients are read all the same
        self._added: set[int] = set()
        self._found = SparseIndex.empty(len(table), device=table.device)
        self._grads: list[tuple[Sequence[int], Sequence[Tensor]]] = []
        self.threshold = 0.0

    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        check_added_once(tensors, self._added)
        given = [None] * len(tensors) if grads is None else list(grads)
        if grads is not None and self._score.family != "given":
            self._grads.append((tensors, grads))
        rest: list[tuple[int, Tensor | None]] = []
        for i, grad in zip(tensors, given, strict=True):
            self._added.add(i)
            if self._counts[i]:
                self._wanting[i] = self._begin(self._counts[i])
                self._wanting[i].add([i], None if grad is None else [grad], grads_out)
            else:
                rest.append((i, grad))
        if rest:
            self._resting.append(self._begin(0))
            found = [grad for _, grad in rest if grad is not None]
            self._resting[-1].add([i for i, _ in rest], None if grads is None else found, grads_out)

    @property
    def nonfinite(self) -> bool:
        """See `Scan.nonfinite`."""
        return any(each.nonfinite for each in (*self._wanting.values(), *self._resting))

    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        offsets, counts = [torch.empty(0, dtype=torch.int32, device=self._table.device)], [0] * len(self._table)
        for i in sorted(self._wanting):
            found = self._wanting[i].finalize()
            offsets.append(found.valid)
            counts[i] = found.count
        lowest = [each.threshold for each in self._wanting.values() if each.threshold > 0.0]
        self.threshold = min(lowest, default=0.0)
        self._found = SparseIndex(torch.cat(offsets), [0, *accumulate(counts)], self._table.numels)
        return self._found

    def fetch(self) -> Fetched:
        """See `Scan.fetch`."""
        return fetch(self._table, self._found, self._score, self.gather, self._backend)

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        check_gathers(self._score)
        for tensors, grads in self._grads:
            gather_grads(self._table, index, tensors, grads, out, backend=self._backend)

    @property
    def passes(self) -> int:
        """See `Scan.passes`."""
        return sum(each.passes for each in (*self._wanting.values(), *self._resting))
