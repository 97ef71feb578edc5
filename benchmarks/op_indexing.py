"""Gather, scatter and swap of single scalars, against torch's indexing of each tensor, and of one flat tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gate import Mismatch
from benchmarks.harness import Contender
from benchmarks.op_problem import Made, Problem, line_bytes
from selective_kernels import Table, gather, scatter_, swap_
from selective_kernels.testing import assert_bitwise_equal

SELECT, INDEX, FLAT = "index_select per tensor", "indexing per tensor", "index_select, one flat tensor"
COPY, SET, FLAT_COPY = "index_copy_ per tensor", "indexing per tensor", "index_copy_, one flat tensor"


class Entries(NamedTuple):
    """Selected entries of one tensor: the tensor, flat; their int64 positions; their slice of per-entry arrays."""

    flat: Tensor
    positions: Tensor
    where: slice


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
    index, count = problem.index, problem.index.count
    mine, theirs = torch.empty(count, device=problem.device), torch.empty(count, device=problem.device)
    stored = torch.empty(count, dtype=problem.params[0].dtype, device=problem.device)
    flat, parts = joined(problem.params), entries(problem, problem.params)

    def select() -> None:
        for each in parts:
            torch.index_select(each.flat, 0, each.positions, out=stored[each.where])
        theirs.copy_(stored)

    def indexed() -> None:
        for each in parts:
            theirs[each.where] = each.flat[each.positions]

    def select_flat() -> None:
        theirs.copy_(flat.index_select(0, problem.flat))

    rivals = {SELECT: select, INDEX: indexed, FLAT: select_flat}

    def ours() -> Tensor:
        return gather(problem.table, index, out=mine, backend=problem.backend)

    def check() -> None:
        expected = gather(problem.table, index, backend="reference")
        ours()
        _same("gather, ours", [mine], [expected])
        for name, rival in rivals.items():
            theirs.fill_(float("nan"))
            rival()
            _same(f"gather, {name}", [theirs], [expected])

    nbytes = line_bytes(problem.params, index) + (4 + 4) * count
    return Made(_contenders(ours, rivals), nbytes, "read", check)


def scattering(problem: Problem) -> Made:
    """Float32 values, rounded to the parameters' type, into the selected entries."""
    index, values = problem.index, _values(problem)
    mine, per_tensor, indexed, flat, parts = _targets(problem)
    table = Table(mine)

    def ours() -> None:
        scatter_(table, index, values, backend=problem.backend)

    def copy() -> None:
        stored = values.to(flat.dtype)
        for each in parts[0]:
            each.flat.index_copy_(0, each.positions, stored[each.where])

    def assign() -> None:
        stored = values.to(flat.dtype)
        for each in parts[1]:
            each.flat[each.positions] = stored[each.where]

    def copy_flat() -> None:
        flat.index_copy_(0, problem.flat, values.to(flat.dtype))

    rivals = {COPY: copy, SET: assign, FLAT_COPY: copy_flat}

    def check() -> None:
        expected = [param.clone() for param in problem.params]
        scatter_(expected, index, values, backend="reference")
        _run_all(ours, rivals)
        _same("scatter, ours", mine, expected)
        _same_targets("scatter", (per_tensor, indexed, flat), expected)

    nbytes = 2 * line_bytes(mine, index) + (4 + 4) * index.count
    return Made(_contenders(ours, rivals), nbytes, "copy", check)


def swapping(problem: Problem) -> Made:
    """Values at the selected entries exchanged with a list of them; twice gives back what was there, bit for bit."""
    index, dtype = problem.index, problem.params[0].dtype
    mine, per_tensor, indexed, flat, parts = _targets(problem)
    table, values = Table(mine), _values(problem).to(dtype)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    bits = values.view(integers).int()
    bits = bits & 0xFFFF if dtype.itemsize == 2 else bits
    kept = [values.clone() for _ in range(3)]

    def ours() -> None:
        swap_(table, index, bits, backend=problem.backend)

    def copy() -> None:
        for each in parts[0]:
            before = each.flat.index_select(0, each.positions)
            each.flat.index_copy_(0, each.positions, kept[0][each.where])
            kept[0][each.where] = before

    def assign() -> None:
        for each in parts[1]:
            before = each.flat[each.positions]
            each.flat[each.positions] = kept[1][each.where]
            kept[1][each.where] = before

    def copy_flat() -> None:
        before = flat.index_select(0, problem.flat)
        flat.index_copy_(0, problem.flat, kept[2])
        kept[2].copy_(before)

    rivals = {COPY: copy, SET: assign, FLAT_COPY: copy_flat}

    def check() -> None:
        expected = [param.clone() for param in problem.params]
        swap_(expected, index, bits.clone(), backend="reference")
        _run_all(ours, rivals)
        _same("swap, ours", mine, expected)
        _same_targets("swap", (per_tensor, indexed, flat), expected)
        _run_all(ours, rivals)
        _same("swap, ours, twice", mine, problem.params)
        _same_targets("swap, twice", (per_tensor, indexed, flat), problem.params)

    nbytes = 2 * line_bytes(mine, index) + (4 + 2 * 4) * index.count
    return Made(_contenders(ours, rivals), nbytes, "copy", check)


Targets = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, tuple[list[Entries], list[Entries]]]


def _targets(problem: Problem) -> Targets:
    """Copies to write to: ours, of the two rivals that go by tensor, and one flat tensor; and the rivals' entries."""
    mine, per_tensor, indexed = ([param.clone() for param in problem.params] for _ in range(3))
    parts = (entries(problem, per_tensor), entries(problem, indexed))
    return mine, per_tensor, indexed, joined(problem.params), parts


def _values(problem: Problem) -> Tensor:
    generator = torch.Generator(problem.device).manual_seed(5)
    return torch.randn(problem.index.count, generator=generator, device=problem.device)


def _contenders(ours: Callable[[], object], rivals: dict[str, Callable[[], None]]) -> list[Contender]:
    return [Contender("ours", ours), *(Contender(name, run) for name, run in rivals.items())]


def _run_all(ours: Callable[[], object], rivals: dict[str, Callable[[], None]]) -> None:
    for run in (ours, *rivals.values()):
        run()


def _same(name: str, actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Raises Mismatch unless tensors are equal, bit for bit."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        try:
            assert_bitwise_equal(a, b, f"{name}: tensor {i}")
        except AssertionError as error:
            raise Mismatch(str(error)) from error


def _same_targets(name: str, rivals: tuple[list[Tensor], list[Tensor], Tensor], expected: Sequence[Tensor]) -> None:
    per_tensor, indexed, flat = rivals
    _same(f"{name}, {COPY}", per_tensor, expected)
    _same(f"{name}, {SET}", indexed, expected)
    _same(f"{name}, {FLAT_COPY}", [flat], [joined(expected)])
