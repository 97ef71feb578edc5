"""Exact top-k on the compiled CPU kernels."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from selective_kernels import _native
from selective_kernels._cpu.indexing import gather_grads
from selective_kernels.checks import (
    check_added_once,
    check_entries,
    check_gathers,
    check_index,
    check_keys,
    check_numbers,
    check_sources,
)
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
        self._added: list[tuple[Sequence[int], Sequence[Tensor]]] = []  # finalize may read the gradients again
        self._numbers: set[int] = set()
        self._found = SparseIndex.empty(len(table), device=table.device)

    @ranged("scan")
    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        check_added_once(tensors, self._numbers)
        check_numbers(tensors, len(self._table))
        check_sources(self._score, grads, grads_out)
        out = 0
        if grads is None:
            rows = self._table.rows(self._index, tensors)
        elif self._score.family == "given":
            keys = check_keys(grads, [self._table.params[i] for i in tensors])
            rows = self._table.rows(self._index, tensors, keys)
            rows[3::COLUMNS] = array("q", [DTYPE_CODES[torch.float32]] * len(tensors))
        else:
            checked = self._table.check_grads(tensors, grads)
            if grads_out is not None:
                check_entries(grads_out, torch.float32, self._index.count, self._table.device, "grads_out")
                out = grads_out.data_ptr()
            self._added.append((tensors, checked))
            rows = self._table.rows(self._index, tensors, checked)
        self._numbers.update(tensors)
        self._scan.add(rows, out)

    @property
    def nonfinite(self) -> bool:
        """See `Scan.nonfinite`."""
        return bool(self._scan.nonfinite)

    @ranged("finalize")
    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        count = self._scan.finalize()
        owners = torch.empty(count, dtype=torch.int32)
        offsets = torch.empty(count, dtype=torch.int32)
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
        check_gathers(self._score)
        check_index(index, self._table.numels, self._table.device)
        check_entries(out, torch.float32, index.count, self._table.device, "out")
        for tensors, grads in self._added:
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
