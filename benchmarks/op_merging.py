"""Merging new entries into a sorted index list with its state, against sorting, and against a search, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.gate import Mismatch
from benchmarks.harness import Contender
from benchmarks.op_problem import NONE, Made, Problem, flat_positions
from selective_kernels import SparseIndex, merge_

ARRAYS = 4  # of each entry: two moments, the value and the step at its selection
SORT, SEARCH = "torch.cat + sort", "torch.searchsorted"


def made(problem: Problem) -> Made:
    """Ours works in place, so each run gets the list as it was before; PyTorch's ways make new lists."""
    old, new = problem.index, problem.fresh
    total = old.count + new.count
    before = [_numbers(old.count, i, problem.device) for i in range(ARRAYS)]
    fresh = [_numbers(new.count, ARRAYS + i, problem.device) for i in range(ARRAYS)]
    offsets = torch.empty(total, dtype=torch.int32, device=problem.device)
    arrays = [torch.empty(total, device=problem.device) for _ in range(ARRAYS)]
    index = SparseIndex(offsets, list(old.starts))
    where, added = problem.flat, flat_positions(new, problem.params)
    found: list[Tensor] = []

    def restore(_: int) -> None:
        index.starts[:] = old.starts
        offsets[: old.count] = old.valid
        for array, values in zip(arrays, before, strict=True):
            array[: old.count] = values

    def ours() -> None:
        merge_(index, new, list(zip(arrays, fresh, strict=True)), backend=problem.backend)

    ways: dict[str, Callable[[], list[Tensor]]] = {}
    if problem.rivals != NONE:
        ways[SORT] = lambda: by_sorting(where, added, before, fresh)
        ways[SEARCH] = lambda: by_searching(where, added, before, fresh)

    def check() -> None:
        restore(0)
        ours()
        mine = [flat_positions(index, problem.params), *(array.clone() for array in arrays)]
        restore(0)
        merge_(index, new, list(zip(arrays, fresh, strict=True)), backend="reference")
        expected = [flat_positions(index, problem.params), *arrays]
        for name, found in {"ours": mine, **{name: way() for name, way in ways.items()}}.items():
            if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
                raise Mismatch(f"merge, {name}: not the list and arrays of the reference")

    def kept(way: Callable[[], list[Tensor]]) -> Callable[[], None]:
        def run() -> None:
            found[:] = way()

        return run

    rivals = [Contender(name, kept(way)) for name, way in ways.items()]
    return Made([Contender("ours", ours, restore), *rivals], 2 * 4 * (1 + ARRAYS) * total, "copy", check)


def by_sorting(old: Tensor, new: Tensor, before: Sequence[Tensor], fresh: Sequence[Tensor]) -> list[Tensor]:
    """Sorted positions, and the values of both lists in their order."""
    positions, order = torch.cat([old, new]).sort()
    return [positions, *(torch.cat(pair)[order] for pair in zip(before, fresh, strict=True))]


def by_searching(old: Tensor, new: Tensor, before: Sequence[Tensor], fresh: Sequence[Tensor]) -> list[Tensor]:
    """The same of lists that are sorted already: where each new entry goes, and the old ones around them."""
    places = torch.searchsorted(old, new) + torch.arange(len(new), device=new.device)
    stays = torch.ones(len(old) + len(new), dtype=torch.bool, device=new.device)
    stays[places] = False

    def merged(first: Tensor, second: Tensor) -> Tensor:
        out = torch.empty(len(stays), dtype=first.dtype, device=first.device)
        out[places] = second
        out[stays] = first
        return out

    return [merged(old, new), *(merged(a, b) for a, b in zip(before, fresh, strict=True))]


def _numbers(count: int, seed: int, device: torch.device) -> Tensor:
    return torch.randn(count, generator=torch.Generator(device).manual_seed(seed), device=device)
