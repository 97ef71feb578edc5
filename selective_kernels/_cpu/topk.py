"""Exact top-k on the compiled CPU kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from selective_kernels import _native
from selective_kernels._cpu.indexing import gather_grads
from selective_kernels.additions import Additions
from selective_kernels.fetched import Fetched, fetch
from selective_kernels.index import SparseIndex
from selective_kernels.ranges import ranged
from selective_kernels.score import FAMILIES, Score
from selective_kernels.table import COLUMNS, DTYPE_CODES, Table


class CpuScan:
    """See `selective_kernels.topk.Scan`."""

    def __init__(self, table: Table, index: SparseIndex, k: int, score: Score, hint: float | None = None) -> None:
        self._table, self._index, self._score = table, index, score
        self._scan = _native.cpu().Scan(
            FAMILIES.index(score.family),
            score.exponent,
            score.eps,
            score.seed,
            min(k, sum(table.numels)),
            float("nan") if hint is None else hint,
            index.offsets.data_ptr(),
            torch.get_num_threads(),
        )
        self._additions = Additions(table, index, score)
        self._found = SparseIndex.empty(len(table), device=table.device)

    @ranged("scan")
    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        sources = self._additions.take(tensors, grads, grads_out)  # maybe copies, which live until they are read
        rows = self._table.rows(self._index, tensors, sources)
        if self._score.family == "given":
            rows[3::COLUMNS] = array("q", [DTYPE_CODES[torch.float32]] * len(tensors))
        self._scan.add(rows, 0 if grads_out is None else grads_out.data_ptr())

    @property
    def nonfinite(self) -> bool:
        """See `Scan.nonfinite`."""
        return bool(self._scan.nonfinite)

    @ranged("finalize")
    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        count = self._scan.finalize()
        owners = torch.empty(count, dtype=torch.int32, device="cpu")
        offsets = torch.empty(count, dtype=torch.int32, device="cpu")
        self._scan.result(owners.data_ptr(), offsets.data_ptr())
        ids = self._table.ids
        counts = torch.bincount(owners, minlength=ids[-1] + 1 if ids else 0)
        if len(counts) > len(ids):  # the tensors are some of a larger table
            counts = counts[ids]
        self._found = SparseIndex(offsets, [0, *accumulate(counts.tolist())], self._table.numels)
        return self._found

    def fetch(self) -> Fetched:
        """See `Scan.fetch`."""
        return fetch(self._table, self._found, self._score, self.gather, "cpu")

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        self._additions.check_gather(index, out)
        for tensors, grads in self._additions.grads:
            gather_grads(self._table, index, tensors, grads, out)

    @property
    def threshold(self) -> float:
        """See `Scan.threshold`."""
        return float(self._scan.threshold)

    @property
    def passes(self) -> int:
        """See `Scan.passes`."""
        return int(self._scan.passes)


scan = CpuScan
