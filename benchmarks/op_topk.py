"""Scan and top-k, against torch.topk and torch.sort on scores that are made for all scalars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.gate import Mismatch
from benchmarks.harness import Contender
from benchmarks.masking import write_scores
from benchmarks.masking_tuned import Pieces, score_in_place
from benchmarks.op_problem import ALL, NONE, SCORE, Made, Problem, flat_positions
from benchmarks.rivals import ARRAYS_READ
from selective_kernels import SparseIndex, scan
from selective_kernels.score import score_ref

TOPK, SORT, BY_TENSOR = "torch.topk, all scores", "torch.sort, all scores", "torch.topk per tensor, merged"
PIECES = "torch.topk by pieces in the cache, merged"
ROUNDS = {TOPK: 3, BY_TENSOR: 3, PIECES: 5, SORT: 1}  # they take hundreds of times longer
LARGEST_SORT = 1 << 25  # scalars


def made(problem: Problem) -> Made:
    """Ours scores in the pass that finds the best; the rivals write all scores first."""
    params, grads, index, k = problem.params, problem.grads, problem.index, problem.k
    numbers = range(len(params))
    sizes = [param.numel() for param in params]
    scores = torch.empty(sum(sizes), device=problem.device)
    views = [view.view_as(param) for view, param in zip(torch.split(scores, sizes), params, strict=True)]

    def ours() -> SparseIndex:
        running = scan(problem.table, index, k, SCORE, backend=problem.backend)
        running.add(numbers, grads)
        return running.finalize()

    def scored() -> Tensor:
        for param, grad, view in zip(params, grads, views, strict=True):
            write_scores(param, grad, view)
        return scores.index_fill_(0, problem.flat, 0.0)

    rivals: dict[str, Callable[[], Tensor]] = {}
    if problem.rivals != NONE:
        rivals[TOPK] = lambda: scored().topk(k, sorted=False).indices.sort().values
        rivals[BY_TENSOR] = lambda: best_by_tensor(scored(), sizes, k)
        pieces, masked = Pieces(score_in_place, problem.device), torch.zeros_like(scores, dtype=torch.bool)
        parts = _parts(params, grads, masked.index_fill_(0, problem.flat, True))
        rivals[PIECES] = lambda: pieces.best(parts, k).sort().values
    if problem.rivals == ALL and len(scores) <= LARGEST_SORT:
        rivals[SORT] = lambda: torch.sort(scored(), descending=True, stable=True).indices[:k].sort().values

    def check() -> None:
        found = flat_positions(ours(), params)
        exact = torch.cat([score_ref(g, p, SCORE).reshape(-1) for g, p in zip(grads, params, strict=True)])
        exact[problem.flat] = 0.0
        verify(found, exact, k)
        for name, rival in rivals.items():
            check_rival(name, rival(), exact, exact[found])

    arrays = ARRAYS_READ[problem.device.type]
    nbytes = arrays * sum(sizes) * params[0].element_size() + 4 * index.count
    others = [Contender(name, run, rounds=ROUNDS[name]) for name, run in rivals.items()]
    return Made([Contender("ours", ours), *others], nbytes, "read", check)


def _parts(params: Sequence[Tensor], grads: Sequence[Tensor], mask: Tensor) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Of each tensor where it begins, and parameters, gradients and mask as vectors."""
    found, begin = [], 0
    for param, grad in zip(params, grads, strict=True):
        end = begin + param.numel()
        found.append((begin, param.reshape(-1), grad.reshape(-1), mask[begin:end]))
        begin = end
    return found


def best_by_tensor(scores: Tensor, sizes: Sequence[int], k: int) -> Tensor:
    """Sorted positions of the k best scores: the best of each tensor first, then the best among those."""
    values, positions = [], []
    begin = 0
    for part in torch.split(scores, list(sizes)):
        found = part.topk(min(k, len(part)), sorted=False)
        values.append(found.values)
        positions.append(found.indices + begin)
        begin += len(part)
    return torch.cat(positions)[torch.cat(values).topk(k, sorted=False).indices].sort().values


def verify(found: Tensor, scores: Tensor, k: int) -> None:
    """That positions are the k best by (score descending, position ascending), without sorting anything.

    Args:
        found: sorted int64 positions.
        scores: float32, of all scalars; 0 where nothing may be selected.
        k: how many were wanted.

    Raises:
        Mismatch: they are not.
    """
    wanted = min(k, int((scores > 0.0).sum()))
    if len(found) != wanted or bool((found.diff() <= 0).any()):
        raise Mismatch(f"scan+topk: expected {wanted} ascending positions, got {len(found)}")
    if not wanted:
        return
    lowest = scores[found].min()
    above, level = (scores > lowest).nonzero().reshape(-1), (scores == lowest).nonzero().reshape(-1)
    expected = torch.cat([above, level[: max(0, wanted - len(above))]]).sort().values
    if not bool(lowest > 0.0) or not torch.equal(found, expected):
        raise Mismatch(f"scan+topk: the {wanted} positions are not those of the best scores")


def check_rival(name: str, found: Tensor, scores: Tensor, best: Tensor) -> None:
    """That a rival finds as good scores, to rounding; which of equal ones torch.topk takes is not promised.

    Raises:
        Mismatch: it does not, or takes a position twice.
    """
    if len(torch.unique(found)) != len(best):
        raise Mismatch(f"{name}: expected {len(best)} positions, got {len(torch.unique(found))}")
    mine, theirs = (each.sort().values for each in (best, scores[found]))
    try:
        torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=0.0)
    except AssertionError as error:
        raise Mismatch(f"{name}: {error}") from error
