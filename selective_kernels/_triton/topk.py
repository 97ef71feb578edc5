"""Exact top-k on Triton kernels.

The scan's threshold is a guess, its counts are not: from them the host sees, in the one wait of a scan, whether all
candidates that matter are there. If not, the bounds of the best k are counted out, which takes more reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels._triton import layout
from selective_kernels._triton.indexing import gather_grads
from selective_kernels._triton.read import Read
from selective_kernels._triton.repairing import smallest
from selective_kernels._triton.winners import Report, Winners
from selective_kernels.additions import Additions
from selective_kernels.fetched import Fetched
from selective_kernels.index import SparseIndex
from selective_kernels.ranges import ranged
from selective_kernels.sampling import float_of, warn_of_memory
from selective_kernels.score import Score
from selective_kernels.table import Table


class TritonScan:
    """See `selective_kernels.topk.Scan`. `nonfinite` and `finalize` wait once together, if all is added before.

    With a score of family "given", `add` waits, too: the keys may be gone later.
    """

    def __init__(self, table: Table, index: SparseIndex, k: int, score: Score, hint: float | None = None) -> None:
        self._table, self._index, self._score, self._hint = table, index, score, hint
        self._k = min(k, sum(table.numels))
        self._reads: list[Read] = []
        self._additions = Additions(table, index, score)
        self._best = torch.empty(0, dtype=torch.int64, device=table.device)  # of keys that are gone, best first
        self._winners: Winners | None = None
        self._report: Report | None = None
        self.passes = 0

    @ranged("scan")
    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        sources = self._additions.take(tensors, grads, grads_out)
        self._winners = self._report = None
        if not self._k and not self._score.reads_gradients:
            return
        read = Read(self._table, self._index, tensors, sources, self._score, self._k, self._hint, grads_out)
        self.passes += 1
        self._reads.append(read)
        if self._score.family == "given":
            ordered = self._settle([read])
            self._best = torch.sort(torch.cat([self._best, ordered])).values[: self._k]
            self._reads.clear()
            self._winners = self._report = None

    def _settle(self, reads: list[Read]) -> Tensor:
        """The exact best k of some reads, best first; waits once, and more often only to repair."""
        ordered = self._ordered(reads)
        if ordered is not None:
            self._winners = Winners(self._table, self._sources(), ordered, [read.control for read in reads])
            self._report = self._winners.wait()
            if self._is_complete(reads, self._report):
                return ordered
        self._winners = self._report = None
        ordered, passes = smallest(reads, self._k)
        self.passes += passes
        return ordered

    def _ordered(self, reads: list[Read]) -> Tensor | None:
        """The best k of the candidates there are, without waiting; None if there is no memory to sort them."""
        found = [read.candidates for read in reads if read.candidates is not None]
        if not found:
            return torch.empty(0, dtype=torch.int64, device=self._table.device)
        try:
            return torch.sort(found[0] if len(found) == 1 else torch.cat(found)).values[: self._k]
        except torch.OutOfMemoryError:
            warn_of_memory(sum(map(len, found)))
            for read in reads:
                read.candidates = None
            return None

    def _is_complete(self, reads: list[Read], report: Report) -> bool:
        """Whether no better candidate can be missing: all had room, and what is not there scores less than the k-th."""
        selecting = [(read, control) for read, control in zip(reads, report.controls, strict=True) if read.selects]
        full = report.starts[-1] == self._k
        lowest = report.lowest if full else 1
        return all(
            read.candidates is not None
            and control[layout.COUNT.value] <= len(read.candidates)
            and control[layout.LIMIT.value] <= lowest
            for read, control in selecting
        )

    def _sources(self) -> list[int] | None:
        if not self._score.reads_gradients:
            return None
        addresses = [0] * len(self._table)
        for tensors, grads in self._additions.grads:
            for i, grad in zip(tensors, grads, strict=True):
                addresses[i] = grad.data_ptr()
        return addresses

    def _result(self) -> tuple[Winners, Report]:
        if self._winners is None or self._report is None:
            given = self._score.family == "given"
            ordered = self._best if given else self._settle(self._reads)
            if self._winners is None or self._report is None:
                controls = [read.control for read in self._reads]
                self._winners = Winners(self._table, self._sources(), ordered, controls)
                self._report = self._winners.wait()
        return self._winners, self._report

    @property
    def nonfinite(self) -> bool:
        """See `Scan.nonfinite`."""
        if not self._score.reads_gradients or not self._reads:
            return False
        return any(control[layout.NONFINITE.value] for control in self._result()[1].controls)

    @ranged("finalize")
    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        winners, report = self._result()
        return winners.index(report.starts)

    def fetch(self) -> Fetched:
        """See `Scan.fetch`."""
        winners, report = self._result()
        return winners.fetched(report.starts[-1])

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        self._additions.check_gather(index, out)
        unused = torch.zeros(1, dtype=torch.int32, device=self._table.device)
        for tensors, grads in self._additions.grads:
            gather_grads(self._table, index, tensors, grads, out, unused)

    @property
    def threshold(self) -> float:
        """See `Scan.threshold`."""
        return float_of(self._result()[1].lowest)


scan = TritonScan
