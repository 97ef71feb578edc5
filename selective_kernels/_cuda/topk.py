"""Exact top-k on CUDA kernels.

The scan's threshold is a guess, its counts are not: from them the host sees, in the one wait of a scan, whether all
candidates that matter are there. If not, the best k are searched for among all entries, which takes more reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels._cuda.indexing import gather_grads
from selective_kernels._cuda.read import Read, repair
from selective_kernels._cuda.winners import Report, Winners
from selective_kernels.additions import Additions
from selective_kernels.fetched import Fetched
from selective_kernels.index import SparseIndex
from selective_kernels.ranges import ranged
from selective_kernels.sampling import float_of
from selective_kernels.score import Score
from selective_kernels.table import Table


class CudaScan:
    """See `selective_kernels.topk.Scan`. `nonfinite` and `finalize` wait once together, if all is added before.

    With a score of family "given", `add` waits, too: the keys may be gone later.
    """

    def __init__(self, table: Table, index: SparseIndex, k: int, score: Score, hint: float | None = None) -> None:
        self._table, self._index, self._score, self._hint = table, index, score, hint
        self._k = min(k, sum(table.numels))
        self._reads: list[Read] = []
        self._repaired: list[Tensor] = []  # memory of candidates
        self._additions = Additions(table, index, score)
        self._empty = 0  # adds of tensors without entries
        self._winners: Winners | None = None
        self._report = Report(0, [0] * (len(table) + 1), [])

    @ranged("scan")
    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        sources = self._additions.take(tensors, grads, grads_out)
        if not self._k and not self._score.reads_gradients:
            return
        if not any(self._table.numels[i] for i in tensors):
            self._empty += 1
            return
        self._winners = None
        read = Read(self._table, self._index, tensors, sources, self._score, self._k, self._hint, grads_out)
        self._reads.append(read)
        if self._score.family == "given":
            self._complete([read])
            read.sources = self._winners = None  # what stands at the best of all is fetched at the end

    def _grads(self) -> dict[int, Tensor]:
        """The gradients of all tensors that were added, by number."""
        return {i: grad for added in self._additions.grads for i, grad in zip(*added, strict=True)}

    def _select(self) -> Report:
        """What the best k of all candidates are; waits."""
        gradients = self._grads() if self._score.reads_gradients else None
        self._winners = Winners(self._table, self._reads, gradients, self._k)
        self._report = self._winners.wait()
        return self._report

    def _complete(self, reads: list[Read]) -> None:
        """Selects, and repairs some reads first if their best k may not all be there."""
        report = self._select()
        if not all(self._is_complete(read, report) for read in reads):
            self._repaired.append(repair(reads, self._k, self._table.device))
            self._select()

    def _is_complete(self, read: Read, report: Report) -> bool:
        """Whether no better candidate can be missing: all had room, and what is not there scores less than the k-th."""
        if read.exact or not read.selects:
            return True
        reading = report.readings[self._reads.index(read)]
        lowest = report.lowest if report.starts[-1] == self._k else 1
        return reading.found <= read.capacity and reading.threshold <= lowest

    def _result(self) -> Report:
        if self._winners is None and self._reads:
            self._complete(self._reads)
        return self._report

    @property
    def nonfinite(self) -> bool:
        """See `Scan.nonfinite`."""
        return self._score.reads_gradients and any(each.nonfinite for each in self._result().readings)

    @ranged("finalize")
    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        starts = self._result().starts
        if self._winners is None:
            return SparseIndex.empty(len(self._table), device=self._table.device)
        return self._winners.index(list(starts))

    def fetch(self) -> Fetched:
        """See `Scan.fetch`."""
        count = self._result().starts[-1]
        if self._winners is not None:
            return self._winners.fetched(count)
        nothing = torch.empty(0, device=self._table.device, dtype=torch.float32)
        grads = nothing if self._score.reads_gradients else None
        return Fetched(grads, nothing.to(torch.int32), None if self._table.float32_only else nothing)

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        self._additions.check_gather(index, out)
        if grads := self._grads():
            unused = torch.zeros(1, dtype=torch.int32, device=self._table.device)
            gather_grads(self._table, index, sorted(grads), [grads[i] for i in sorted(grads)], out, unused)

    @property
    def threshold(self) -> float:
        """See `Scan.threshold`."""
        return float_of(self._result().lowest)

    @property
    def passes(self) -> int:
        """See `Scan.passes`."""
        return self._empty + sum(1 + each.repairs for each in self._result().readings)


scan = CudaScan
