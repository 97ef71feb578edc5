"""Exact top-k of scores over a list of tensors, leaving out what is selected already (C3, C4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels._spread.parts import is_divided
from selective_kernels._spread.topk import Pieces, SpreadScan
from selective_kernels.additions import Additions
from selective_kernels.checks import check_index, check_k, check_score
from selective_kernels.fetched import Fetched, fetch
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import gather_grads_ref
from selective_kernels.per_tensor import PerTensorScan
from selective_kernels.ranges import ranged
from selective_kernels.score import Score, score_ref
from selective_kernels.table import Table, as_table


class Scan(Protocol):
    """One exact top-k in progress. What `add` is given must stay alive and unmodified until `finalize`."""

    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """Reads some of the tensors once; each tensor may be added once, in ascending order within a call.

        Args:
            tensors: numbers of the tensors.
            grads: their gradients, of the parameters' dtype and size; None for a score that needs none. For
                Score(family="given") the scores themselves, float32; these need not be kept until `finalize`.
            grads_out: float32, shape (index.count,) or longer; receives the gradients of the selected entries
                of these tensors, each at its place in the index. None where gradients are not read.
        """

    @property
    def nonfinite(self) -> bool:
        """Whether any gradient read so far is inf or NaN; False where gradients are not read."""

    def finalize(self) -> SparseIndex:
        """The min(k, selectable) best entries by (score descending, tensor ascending, offset ascending)."""

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """Gathers the gradients of all added tensors at another index into `out`, float32, shape (index.count,).

        Raises:
            ValueError: the scan has not read gradients.
        """

    def fetch(self) -> Fetched:
        """After finalize: gradients and parameters as they stood then at the entries that it gave.

        Nothing may be written between the two.
        """

    @property
    def threshold(self) -> float:
        """After finalize: the lowest selected score, 0.0 if nothing was selected."""

    @property
    def passes(self) -> int:
        """How many times sets of tensors were read, repairs included."""


def scan(
    params: Sequence[Tensor] | Table,
    index: SparseIndex,
    k: int | Sequence[int],
    score: Score,
    *,
    hint: float | None = None,
    backend: str = "auto",
) -> Scan:
    """Begins an exact top-k over `params` that leaves out the entries of `index`.

    Args:
        params: tensors of any shape; float32, bfloat16 or float16, contiguous.
        index: entries selected already, sorted; stays unmodified until finalize.
        k: how many entries are wanted over all tensors; or one number per tensor, for a top-k within each.
        score: what ranks the entries.
        hint: a guess of the k-th best score, used instead of a sample. Any value gives the same result; a bad one
            costs a second read. Ignored where the tensors lie on several devices.
        backend: "auto" or a backend's name; see `dispatch`.

    Raises:
        TypeError, ValueError: an argument is out of range; see `checks`.
        RuntimeError: the backend is not available.
    """
    table = as_table(params)
    check_score(score)
    check_k(k, len(table))
    check_index(index, table.numels, table.device)
    begin = _beginner(table, index, score, hint, backend)
    return PerTensorScan(begin, table, k, score, backend) if isinstance(k, Sequence) else begin(k)


def _beginner(
    table: Table, index: SparseIndex, score: Score, hint: float | None, backend: str
) -> Callable[[int], Scan]:
    """What begins a scan for a number of entries."""
    if is_divided(table, backend):
        pieces = Pieces(table, index, backend)
        return lambda k: SpreadScan(pieces, k, score)
    implementation = dispatch.implementation("scan", table.device, backend)
    return lambda k: cast(Scan, implementation(table, index, k, score, hint))


def topk(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    k: int | Sequence[int],
    score: Score,
    index: SparseIndex | None = None,
    *,
    hint: float | None = None,
    backend: str = "auto",
) -> SparseIndex:
    """The min(k, selectable) entries with the best score; arguments and errors as in `scan`.

    Selectable: not in `index`, score finite and > 0. A tensor whose gradient is None scores nothing, unless the score
    needs no gradients.
    """
    if len(grads) != len(params):
        raise ValueError(f"grads: expected {len(params)} gradients or None, one per tensor, got {len(grads)}")
    table = Table(params)
    index = SparseIndex.empty(len(table), device=table.device) if index is None else index
    running = scan(table, index, k, score, hint=hint, backend=backend)
    if score.needs_grad:
        running.add([i for i, grad in enumerate(grads) if grad is not None], [g for g in grads if g is not None])
    else:
        running.add(range(len(table)), None)
    return running.finalize()


class ReferenceScan:
    """The same in plain PyTorch: all scores of a tensor at once, stable sorts; neither one read nor O(k) memory."""

    def __init__(self, table: Table, index: SparseIndex, k: int, score: Score, hint: float | None = None) -> None:
        self._table, self._index, self._k, self._score = table, index, k, score
        self._additions = Additions(table, index, score)
        self._found = SparseIndex.empty(len(table), device=table.device)
        self._best: dict[int, tuple[Tensor, Tensor]] = {}  # per tensor: its best k as (keys, offsets), on the CPU
        self.nonfinite = False
        self.threshold = 0.0
        self.passes = 0

    @ranged("scan")
    def add(self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None = None) -> None:
        """See `Scan.add`."""
        taken = self._additions.take(tensors, grads, grads_out)
        sources: Sequence[Tensor | None] = [None] * len(tensors) if taken is None else taken
        if taken is not None and self._score.family != "given":
            self.nonfinite |= any(not bool(torch.isfinite(grad).all()) for grad in taken)
            if grads_out is not None:
                gather_grads_ref(self._table, self._index, tensors, taken, grads_out)
        self.passes += 1
        for i, source in zip(tensors, sources, strict=True):
            key = score_ref(source, self._table.params[i], self._score, self._table.ids[i]).reshape(-1).cpu().clone()
            key[self._index.of(i).long().cpu()] = 0.0
            selectable = (key.isfinite() & (key > 0.0)).nonzero().reshape(-1)
            best = torch.sort(key[selectable], descending=True, stable=True).indices[: self._k].sort().values
            self._best[i] = (key[selectable][best], selectable[best])

    def gather(self, index: SparseIndex, out: Tensor) -> None:
        """See `Scan.gather`."""
        self._additions.check_gather(index, out)
        for tensors, grads in self._additions.grads:
            gather_grads_ref(self._table, index, tensors, grads, out)

    @ranged("finalize")
    def finalize(self) -> SparseIndex:
        """See `Scan.finalize`."""
        found = [(*self._best[i], i) for i in sorted(self._best)]
        key = torch.cat([torch.empty(0, dtype=torch.float32, device="cpu"), *(keys for keys, _, _ in found)])
        offset = torch.cat([torch.empty(0, dtype=torch.int64, device="cpu"), *(offsets for _, offsets, _ in found)])
        owner = torch.tensor([i for keys, _, i in found for _ in range(len(keys))], dtype=torch.int64, device="cpu")
        best = torch.sort(key, descending=True, stable=True).indices[: self._k]
        self.threshold = float(key[best[-1]]) if len(best) else 0.0
        best = best.sort().values
        lists = [offset[best][owner[best] == i] for i in range(len(self._table))]
        new = SparseIndex.from_lists(lists)
        self._found = SparseIndex(new.offsets.to(self._index.offsets.device), new.starts, self._table.numels)
        return self._found

    def fetch(self) -> Fetched:
        """See `Scan.fetch`."""
        return fetch(self._table, self._found, self._score, self.gather, "reference")


scan_ref = ReferenceScan


def topk_ref(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    k: int | Sequence[int],
    score: Score,
    index: SparseIndex | None = None,
) -> SparseIndex:
    """`topk` in plain PyTorch."""
    return topk(params, grads, k, score, index, backend="reference")
