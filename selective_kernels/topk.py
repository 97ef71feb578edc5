"""Exact top-k of the D3 score over a list of tensors, leaving out what is selected already (C3, C4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.checks import check_added_once, check_entries, check_index, check_k, check_score
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import gather_grads_ref
from selective_kernels.ranges import ranged
from selective_kernels.score import Score, score_ref
from selective_kernels.table import Table, as_table


class Scan(Protocol):
    """One exact top-k in progress. What `add` is given must stay alive and unmodified until `finalize`."""

    def add(self, tensors: Sequence[int], grads: Sequence[Tensor], grads_out: Tensor | None = None) -> None:
        """Reads some of the tensors once; each tensor may be added once, in ascending order within a call.

        Args:
            tensors: numbers of the tensors.
            grads: their gradients, of the parameters' dtype and size.
            grads_out: float32, shape (index.count,) or longer; receives the gradients of the selected entries
                of these tensors, each at its place in the index.
        """

    @property
    def nonfinite(self) -> bool:
        """Whether any gradient read so far is inf or NaN."""

    def finalize(self) -> SparseIndex:
        """The min(k, selectable) best entries by (score descending, tensor ascending, offset ascending)."""

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """Gathers the gradients of all added tensors at another index into `out`, float32, shape (index.count,)."""

    @property
    def threshold(self) -> float:
        """After finalize: the lowest selected score, 0.0 if nothing was selected."""

    @property
    def passes(self) -> int:
        """How many times sets of tensors were read, repairs included."""


def scan(
    params: Sequence[Tensor] | Table,
    index: SparseIndex,
    k: int,
    score: Score,
    *,
    hint: float | None = None,
    backend: str = "auto",
) -> Scan:
    """Begins an exact top-k over `params` that leaves out the entries of `index`.

    Args:
        params: tensors of any shape; float32, bfloat16 or float16, contiguous.
        index: entries selected already, sorted; stays unmodified until finalize.
        k: how many entries are wanted.
        score: exponent and eps of D3.
        hint: a guess of the k-th best score, used instead of a sample. Any value gives the same result; a bad one
            costs a second read.
        backend: "auto", "cpu" or "reference".

    Raises:
        TypeError, ValueError: an argument is out of range; see `checks`.
        RuntimeError: the backend is not available.
    """
    table = as_table(params)
    check_score(score)
    check_k(k)
    check_index(index, table.numels, table.device)
    made: Scan = dispatch.implementation("scan", table.device, backend)(table, index, k, score, hint)
    return made


def topk(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    k: int,
    score: Score,
    index: SparseIndex | None = None,
    *,
    hint: float | None = None,
    backend: str = "auto",
) -> SparseIndex:
    """The min(k, selectable) entries with the best D3 score; arguments and errors as in `scan`.

    Selectable: not in `index`, score finite and > 0. A tensor whose gradient is None scores nothing.
    """
    if len(grads) != len(params):
        raise ValueError(f"grads: expected {len(params)} gradients or None, one per tensor, got {len(grads)}")
    table = Table(params)
    index = SparseIndex.empty(len(table), device=table.device) if index is None else index
    running = scan(table, index, k, score, hint=hint, backend=backend)
    running.add([i for i, grad in enumerate(grads) if grad is not None], [g for g in grads if g is not None])
    return running.finalize()


class ReferenceScan:
    """The same in plain PyTorch: all scores, one stable sort. Not bound to one read or to O(k) memory."""

    def __init__(self, table: Table, index: SparseIndex, k: int, score: Score, hint: float | None = None) -> None:
        self._table, self._index, self._k, self._score = table, index, k, score
        self._grads: dict[int, Tensor] = {}
        self.nonfinite = False
        self.threshold = 0.0
        self.passes = 0

    @ranged("scan")
    def add(self, tensors: Sequence[int], grads: Sequence[Tensor], grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        check_added_once(tensors, self._grads)
        checked = self._table.check_grads(tensors, grads)
        self.passes += 1
        self.nonfinite |= any(not bool(torch.isfinite(grad).all()) for grad in checked)
        for i, grad in zip(tensors, checked, strict=True):
            self._grads[i] = grad
        if grads_out is not None:
            gather_grads_ref(self._table, self._index, tensors, checked, grads_out)

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        check_index(index, self._table.numels, self._table.device)
        check_entries(out, torch.float32, index.count, self._table.device, "out")
        gather_grads_ref(self._table, index, list(self._grads), list(self._grads.values()), out)

    @ranged("finalize")
    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        keys, owners, offsets = (
            [torch.empty(0)],
            [torch.empty(0, dtype=torch.int64)],
            [torch.empty(0, dtype=torch.int64)],
        )
        for i in sorted(self._grads):
            key = score_ref(self._grads[i], self._table.params[i], self._score).reshape(-1).cpu()
            key[self._index.of(i).long().cpu()] = 0.0
            selectable = (key.isfinite() & (key > 0.0)).nonzero().reshape(-1)
            keys.append(key[selectable])
            owners.append(torch.full_like(selectable, i))
            offsets.append(selectable)
        key, owner, offset = torch.cat(keys), torch.cat(owners), torch.cat(offsets)
        best = torch.sort(key, descending=True, stable=True).indices[: self._k]
        self.threshold = float(key[best[-1]]) if len(best) else 0.0
        best = best.sort().values
        lists = [offset[best][owner[best] == i] for i in range(len(self._table))]
        new = SparseIndex.from_lists(lists)
        return SparseIndex(new.offsets.to(self._index.offsets.device), new.starts, self._table.numels)


scan_ref = ReferenceScan


def topk_ref(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    k: int,
    score: Score,
    index: SparseIndex | None = None,
) -> SparseIndex:
    """`topk` in plain PyTorch."""
    return topk(params, grads, k, score, index, backend="reference")
