"""What tests and benchmarks share: instruction-set paths, bitwise comparison, the read bandwidth probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from selective_kernels import _native
from selective_kernels import table as tables
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table

# Updates agree with torch's dense optimizers to a few roundings of float32 per step; 16-bit ones to one unit in the
# last place of the stored parameter, since both sides round a nearly equal float32 value.
TOLERANCES = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-7},
    torch.bfloat16: {"rtol": 2.0**-7, "atol": 1e-6},
    torch.float16: {"rtol": 2.0**-10, "atol": 1e-6},
}


def isa_paths() -> list[str]:
    """Instruction sets of the CPU kernels that run on this machine, fastest first."""
    return list(_native.cpu().available_isas())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Runs the CPU kernels of one instruction set for the duration of a block.

    Raises:
        ValueError: this machine or build lacks it.
    """
    module = _native.cpu()
    before = module.isa()
    if not module.use_isa(name):
        raise ValueError(f"isa: expected one of {isa_paths()}, got {name!r}")
    try:
        yield
    finally:
        module.use_isa(before)


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads, which the kernels follow, for the duration of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Which place each tensor is in, by its number modulo the length; place 0 is where it really is.
DEALS = {
    "halves": [0, 0, 0, 0, 1, 1, 1, 1],  # as model parallelism divides a model
    "in turn": [0, 1],  # neighbours are never together
    "three places": [0, 2, 1, 1, 0, 2, 2, 1],
    "home comes late": [1, 0, 0, 1, 1],
}


@contextmanager
def pretended_places(params: Sequence[Tensor], deal: Sequence[int]) -> Iterator[None]:
    """For the duration of a block tables take these tensors for lying in several places; for values of `DEALS`."""
    known = {id(param): deal[i % len(deal)] for i, param in enumerate(params)}
    before = tables.place_of
    tables.place_of = lambda param: known.get(id(param)) or before(param)
    try:
        yield
    finally:
        tables.place_of = before


def raw_bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor as integers of the same width."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(integers[tensor.element_size()])


def assert_bitwise_equal(actual: Tensor, expected: Tensor, name: str = "tensor") -> None:
    """Raises AssertionError with the first differing position if two tensors differ in any bit, shape or dtype."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"{name}: expected {expected.dtype} {tuple(expected.shape)}, got {actual.dtype} {tuple(actual.shape)}"
        )
    different = (raw_bits(actual) != raw_bits(expected)).reshape(-1).nonzero().reshape(-1)
    if len(different):
        first = int(different[0])
        a, b = actual.reshape(-1)[first], expected.reshape(-1)[first]
        raise AssertionError(f"{name}: {len(different)} entries differ, first at {first}: {a.item()} != {b.item()}")


def assert_same_index(actual: SparseIndex, expected: SparseIndex) -> None:
    """Raises AssertionError unless two indices hold the same entries."""
    if actual.starts != expected.starts or not torch.equal(actual.valid.cpu(), expected.valid.cpu()):
        raise AssertionError(f"indices differ: {actual} {actual.valid} != {expected} {expected.valid}")


def read_once(tensors: Sequence[Tensor]) -> int:
    """Reads every byte of the tensors once with torch.get_num_threads() threads; returns the xor of their words."""
    table = tensors if isinstance(tensors, Table) else Table(tensors)
    return int(_native.cpu().read(table.rows(SparseIndex.empty(len(table))), torch.get_num_threads()))
