"""Gather, scatter and swap of single scalars, against torch's indexing of each tensor, and of one flat tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gate import Mismatch
from benchmarks.harness import Contender
from benchmarks.op_problem import NONE, Made, Problem, line_bytes
from selective_kernels import Table, gather, scatter_, swap_
from selective_kernels.testing import assert_bitwise_equal

SELECT, INDEX, FLAT = "index_select per tensor", "indexing per tensor", "index_select, one flat tensor"
COPY, SET, FLAT_COPY = "index_copy_ per tensor", "indexing per tensor", "index_copy_, one flat tensor"


class Entries(NamedTuple):
    """Selected entries of one tensor: the tensor, flat; their int64 positions; their slice of per-entry arrays."""

    flat: Tensor
    positions: Tensor
    where: slice


class Way(NamedTuple):
    """A way to do an operation.

    Attributes:
        name: unique among those measured together.
        run: does it once.
        written: what it writes to: one tensor for each parameter, or all of them as one.
    """

    name: str
    run: Callable[[], object]
    written: list[Tensor]


def entries(problem: Problem, tensors: Sequence[Tensor]) -> list[Entries]:
    """Of the tensors that have some."""
    starts = problem.index.starts
    found = zip(tensors, problem.positions, starts, starts[1:], strict=False)
    return [Entries(each.view(-1), where, slice(a, b)) for each, where, a, b in found if a < b]


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors as one, as FSDP keeps them: no loop over tensors is needed, but nobody's model is like that."""
    return torch.cat([each.reshape(-1) for each in tensors])


def gathering(problem: Problem) -> Made:
    """Values at the selected entries, as float32."""
    index, count, device = problem.index, problem.index.count, problem.device
    stored = torch.empty(count, dtype=problem.params[0].dtype, device=device)
    mine, selected, indexed, from_flat = (torch.full((count,), torch.nan, device=device) for _ in range(4))
    flat, parts = joined(problem.params), entries(problem, problem.params)

    def select() -> None:
        for each in parts:
            torch.index_select(each.flat, 0, each.positions, out=stored[each.where])
        selected.copy_(stored)

    def by_indexing() -> None:
        for each in parts:
            indexed[each.where] = each.flat[each.positions]

    ways = [
        Way("ours", lambda: gather(problem.table, index, out=mine, backend=problem.backend), [mine]),
        Way(SELECT, select, [selected]),
        Way(INDEX, by_indexing, [indexed]),
        Way(FLAT, lambda: from_flat.copy_(flat.index_select(0, problem.flat)), [from_flat]),
    ]

    def check() -> None:
        check_ways("gather", _taking_part(ways, problem), [gather(problem.table, index, backend="reference")])

    nbytes = line_bytes(problem.params, index) + (4 + 4) * count
    return Made(_contenders(ways, problem), nbytes, "read", check)


def scattering(problem: Problem) -> Made:
    """Float32 values, rounded to the parameters' type, into the selected entries."""
    index, values, dtype = problem.index, _values(problem), problem.params[0].dtype
    mine, copied, assigned = ([param.clone() for param in problem.params] for _ in range(3))
    flat, table = joined(problem.params), Table(mine)
    for_copy, for_assignment = entries(problem, copied), entries(problem, assigned)

    def copy() -> None:
        stored = values.to(dtype)
        for each in for_copy:
            each.flat.index_copy_(0, each.positions, stored[each.where])

    def assign() -> None:
        stored = values.to(dtype)
        for each in for_assignment:
            each.flat[each.positions] = stored[each.where]

    ways = [
        Way("ours", lambda: scatter_(table, index, values, backend=problem.backend), mine),
        Way(COPY, copy, copied),
        Way(SET, assign, assigned),
        Way(FLAT_COPY, lambda: flat.index_copy_(0, problem.flat, values.to(dtype)), [flat]),
    ]

    def check() -> None:
        expected = [param.clone() for param in problem.params]
        scatter_(expected, index, values, backend="reference")
        check_ways("scatter", _taking_part(ways, problem), expected)

    nbytes = 2 * line_bytes(mine, index) + (4 + 4) * index.count
    return Made(_contenders(ways, problem), nbytes, "copy", check)


def swapping(problem: Problem) -> Made:
    """Values at the selected entries exchanged with a list of them; twice gives back what was there, bit for bit."""
    index, values = problem.index, _values(problem).to(problem.params[0].dtype)
    mine, copied, assigned = ([param.clone() for param in problem.params] for _ in range(3))
    flat, table, bits = joined(problem.params), Table(mine), as_bits(values)
    for_copy, for_assignment = entries(problem, copied), entries(problem, assigned)
    kept = [values.clone() for _ in range(3)]

    def copy() -> None:
        for each in for_copy:
            before = each.flat.index_select(0, each.positions)
            each.flat.index_copy_(0, each.positions, kept[0][each.where])
            kept[0][each.where] = before

    def assign() -> None:
        for each in for_assignment:
            before = each.flat[each.positions]
            each.flat[each.positions] = kept[1][each.where]
            kept[1][each.where] = before

    def copy_flat() -> None:
        before = flat.index_select(0, problem.flat)
        flat.index_copy_(0, problem.flat, kept[2])
        kept[2].copy_(before)

    ways = [
        Way("ours", lambda: swap_(table, index, bits, backend=problem.backend), mine),
        Way(COPY, copy, copied),
        Way(SET, assign, assigned),
        Way(FLAT_COPY, copy_flat, [flat]),
    ]

    def check() -> None:
        expected = [param.clone() for param in problem.params]
        swap_(expected, index, as_bits(values), backend="reference")
        check_ways("swap", _taking_part(ways, problem), expected)
        check_ways("swap, twice", _taking_part(ways, problem), problem.params)

    nbytes = 2 * line_bytes(mine, index) + (4 + 2 * 4) * index.count
    return Made(_contenders(ways, problem), nbytes, "copy", check)


def as_bits(values: Tensor) -> Tensor:
    """Raw bits, zero-extended to int32, in memory of their own."""
    if values.element_size() == 4:
        return values.view(torch.int32).clone()
    return values.view(torch.int16).int() & 0xFFFF


def check_ways(name: str, ways: Sequence[Way], expected: Sequence[Tensor]) -> None:
    """Runs each way once.

    Args:
        name: of the operation.
        ways: what to run.
        expected: what is to be written, for each parameter or as one tensor.

    Raises:
        Mismatch: one writes something else, in any bit.
    """
    for way in ways:
        way.run()
        wanted = expected if len(way.written) == len(expected) else [joined(expected)]
        for i, (a, b) in enumerate(zip(way.written, wanted, strict=True)):
            try:
                assert_bitwise_equal(a, b, f"{name}, {way.name}: tensor {i}")
            except AssertionError as error:
                raise Mismatch(str(error)) from error


def _taking_part(ways: list[Way], problem: Problem) -> list[Way]:
    return ways[:1] if problem.rivals == NONE else ways


def _contenders(ways: list[Way], problem: Problem) -> list[Contender]:
    return [Contender(way.name, way.run) for way in _taking_part(ways, problem)]


def _values(problem: Problem) -> Tensor:
    generator = torch.Generator(problem.device).manual_seed(5)
    return torch.randn(problem.index.count, generator=generator, device=problem.device)
