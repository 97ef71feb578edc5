"""Reading, writing and exchanging single scalars: bit for bit as plain torch indexing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tritontests import INTERPRETED, placed, shifted

from selective_kernels import SparseIndex, Table, gather, gather_bits, gather_grads, scatter_, swap_
from selective_kernels.testing import assert_bitwise_equal, raw_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]

# Of a tensor's entries: none, few, all but few, all. 4096 entries are one piece of work; the tensors are larger.
SHARES = [0.0, 0.01, 0.99, 1.0]

# A scalar, nothing, one entry, an odd length behind a misaligned address, several dimensions, more than a piece.
SHAPES = [(), (0,), (1,), (331,), (3, 5, 7), (97, 101)]


def random_bits(shape, dtype, rng):
    """Any bit pattern: NaN with payload, inf, subnormals, -0."""
    count = math.prod(shape)
    if dtype is torch.float32:
        flat = torch.from_numpy(rng.integers(0, 2**32, count + 1, np.uint32).view(np.float32))
    else:
        flat = torch.from_numpy(rng.integers(0, 2**16, count + 1, np.uint16).view(np.int16)).view(dtype)
    return flat[1:].view(shape)  # starts one entry past an aligned address


def problem(seed, share):
    """A tensor of every shape in every dtype, and an index over them."""
    rng = np.random.default_rng(seed)
    tensors = [random_bits(shape, dtype, rng) for shape in SHAPES for dtype in DTYPES]
    return tensors, SparseIndex.from_lists(
        [torch.from_numpy(np.flatnonzero(rng.random(t.numel()) < share)) for t in tensors]
    )


def clones(tensors, device="cpu"):
    return [shifted(tensor, device) for tensor in tensors]


def bits_at(tensors, index):
    """Raw bits by plain torch indexing, zero-extended."""
    found = [raw_bits(t).reshape(-1)[index.of(i).long()].int() for i, t in enumerate(tensors)]
    wide = [each & 0xFFFF if t.element_size() == 2 else each for each, t in zip(found, tensors, strict=True)]
    return torch.cat(wide)


def values_at(tensors, index):
    return torch.cat([t.reshape(-1)[index.of(i).long()].float() for i, t in enumerate(tensors)])


def assert_same_values(actual, expected, index):
    """Bit-equal, except that a NaN of float16 may become any NaN: torch itself widens it in two ways."""
    any_nan = expected.isnan() & (index.tensor_ids() % len(DTYPES) == DTYPES.index(torch.float16))
    assert_bitwise_equal(actual[~any_nan], expected[~any_nan])
    assert bool(actual[any_nan].isnan().all())


def assert_same_tensors(actual, expected):
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_bitwise_equal(a, b, f"tensor {i}")


@pytest.mark.parametrize("share", SHARES)
def test_gather_equals_indexing(on_every_backend, share):
    tensors, index = problem(1, share)

    def run(backend, device):
        there, on = clones(tensors, device), placed(index, device)
        return gather(there, on, backend=backend), gather_bits(there, on, backend=backend)

    for values, bits in on_every_backend(run).values():
        assert_same_values(values, values_at(tensors, index), index)
        assert_bitwise_equal(bits, bits_at(tensors, index))


def test_gather_writes_the_front_of_out_only(on_every_backend):
    tensors, index = problem(2, 0.3)

    def run(backend, device):
        out = torch.full((index.count + 5,), -7.0, device=device)
        result = gather(clones(tensors, device), placed(index, device), out=out, backend=backend)
        assert result.data_ptr() == out.data_ptr()
        return out

    for out in on_every_backend(run).values():
        assert_same_values(out[: index.count], values_at(tensors, index), index)
        assert out[index.count :].tolist() == [-7.0] * 5


@pytest.mark.parametrize("dtype", HALVES)
def test_all_16_bit_patterns_widen_as_in_torch(on_every_backend, dtype):
    tensor = torch.arange(65536).to(torch.int16).view(dtype)
    index = SparseIndex.from_lists([torch.arange(65536)])

    def run(backend, device):
        return gather([tensor.to(device)], placed(index, device), backend=backend)

    for actual in on_every_backend(run).values():
        assert_bitwise_equal(actual[~tensor.isnan()], tensor[~tensor.isnan()].float())
        assert torch.equal(actual.isnan(), tensor.isnan())


def special():
    """Zeros, inf, and NaN: quiet, with a payload that rounds away to inf's bits, and with one that overflows."""
    bits = [0, 0x7F800000, 0x7FC00000, 0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, 0x7FFF8000]
    return torch.tensor([*bits, *(each - 2**31 for each in bits)], dtype=torch.int32).view(torch.float32)


def hard_to_round(dtype):
    """Every value of a 16-bit type, the halves between neighbours, and their float32 neighbours; random bits; NaN."""
    values = torch.arange(65536).to(torch.int16).view(dtype)
    values = values[values.isfinite()].double().sort().values
    beyond = values[-1] + (values[-1] - values[-2]) / 2  # where rounding to inf begins
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2, beyond[None], -beyond[None]]).float()
    largest = torch.tensor(math.inf)
    around = torch.cat([exact, torch.nextafter(exact, largest), torch.nextafter(exact, -largest)])
    anything = torch.from_numpy(np.random.default_rng(3).integers(0, 2**32, 200_000, np.uint32).view(np.float32))
    return torch.cat([around, anything, special()])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by the interpreter, which rounds to inf
@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_rounds_as_torch(on_every_backend, dtype):
    """Nearest even, subnormals and overflow included. Which NaN a NaN becomes is nobody's promise."""
    values = hard_to_round(torch.float16 if dtype is torch.float32 else dtype)

    def run(backend, device):
        # Every value would take the interpreter seconds; all special ones are at the end.
        step, ordinary = 11 if backend == "triton" and INTERPRETED else 1, len(values) - len(special())
        entries = torch.cat([torch.arange(0, ordinary, step), torch.arange(ordinary, len(values))])
        target = torch.full((len(values),), 3.0, dtype=dtype, device=device)
        index = placed(SparseIndex.from_lists([entries]), device)
        scatter_([target], index, values[entries].to(device), backend=backend)
        return target, entries

    for actual, entries in on_every_backend(run).values():
        expected = torch.full((len(values),), 3.0, dtype=dtype)
        expected[entries] = values[entries].to(dtype)
        number = torch.ones(len(values), dtype=torch.bool) if dtype is torch.float32 else ~expected.isnan()
        assert_bitwise_equal(actual[number], expected[number])
        assert bool(actual[~number].isnan().all())


@pytest.mark.parametrize("dtype", HALVES)
def test_scatter_undoes_gather(on_every_backend, dtype):
    """Each 16-bit number survives widening and rounding bit for bit; a NaN stays one."""
    tensor = torch.arange(65536).to(torch.int16).view(dtype)
    index = SparseIndex.from_lists([torch.arange(65536)])

    def run(backend, device):
        there, on = tensor.to(device), placed(index, device)
        target = torch.full_like(there, 3.0)
        scatter_([target], on, gather([there], on, backend=backend), backend=backend)
        return target

    for actual in on_every_backend(run).values():
        assert_bitwise_equal(actual[~tensor.isnan()], tensor[~tensor.isnan()])
        assert torch.equal(actual.isnan(), tensor.isnan())


@pytest.mark.parametrize("share", SHARES)
def test_c7_scatter_and_swap_leave_the_rest(on_every_backend, share):
    """C7: entries outside the index keep every bit."""
    tensors, index = problem(4, share)
    rng = np.random.default_rng(5)
    values = torch.from_numpy(rng.standard_normal(index.count).astype(np.float32))
    bits = torch.from_numpy(rng.integers(0, 2**16, index.count)).int()
    scattered, swapped = clones(tensors), clones(tensors)
    for i, (a, b) in enumerate(zip(scattered, swapped, strict=True)):
        entries, positions = slice(index.starts[i], index.starts[i + 1]), index.of(i).long()
        a.view(-1)[positions] = values[entries].to(a.dtype)
        integer = raw_bits(b).dtype
        b.view(integer).view(-1)[positions] = bits[entries].to(integer)

    def scatter(backend, device):
        target = clones(tensors, device)
        scatter_(target, placed(index, device), values.to(device), backend=backend)
        return target

    def swap(backend, device):
        target, taken = clones(tensors, device), bits.to(device, copy=True)
        swap_(target, placed(index, device), taken, backend=backend)
        return target, taken

    for actual in on_every_backend(scatter).values():
        assert_same_tensors(actual, scattered)
    for actual, taken in on_every_backend(swap).values():
        assert_same_tensors(actual, swapped)
        assert_bitwise_equal(taken, bits_at(tensors, index))


def test_swap_twice_restores(on_every_backend):
    tensors, index = problem(6, 0.5)
    bits = torch.from_numpy(np.random.default_rng(7).integers(0, 2**16, index.count + 2)).int()

    def run(backend, device):
        target, taken, on = clones(tensors, device), bits.to(device, copy=True), placed(index, device)
        swap_(target, on, taken, backend=backend)
        assert not torch.equal(taken.cpu(), bits)
        swap_(target, on, taken, backend=backend)
        return target, taken

    for actual, taken in on_every_backend(run).values():
        assert_same_tensors(actual, tensors)
        assert_bitwise_equal(taken, bits)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_c9_gather_grads_tells_of_bad_gradients(on_every_backend, bad):
    """C9: the gradients of the selected entries of some tensors, at their places, and whether they are finite."""
    tensors, _ = problem(8, 0.0)
    index = SparseIndex.from_lists([torch.arange(0, t.numel(), 2) for t in tensors])
    numbers = [i for i in range(len(tensors)) if i % 4 != 1]
    grads = [torch.ones_like(tensors[i]).cumsum(-1) if tensors[i].dim() else tensors[i].new_ones(()) for i in numbers]
    grads[-1] = grads[-1].t().contiguous().t()  # not row-major: copied first (C1)
    grads[-1][0, 1] = math.nan  # not selected
    if bad is not None:
        grads[-2].view(-1)[4098] = bad
    expected = torch.full((index.count,), -7.0)  # the entries of the others are not written
    for i, grad in zip(numbers, grads, strict=True):
        expected[index.starts[i] : index.starts[i + 1]] = grad.reshape(-1)[index.of(i).long()].float()

    def run(backend, device):
        table, on = Table(clones(tensors, device)), placed(index, device)
        out, into = (torch.full((index.count,), -7.0, device=device) for _ in range(2))
        there = [grad.to(device) for grad in grads]
        finite = gather_grads(table, on, numbers, there, out, backend=backend)
        flags = [torch.tensor([before], dtype=torch.int32, device=device) for before in (0, 5)]
        for flag in flags:  # what an earlier gather has raised stays raised
            assert gather_grads(table, on, numbers, there, into, flag=flag, backend=backend) is True
        return finite, out, into, flags

    for finite, out, into, flags in on_every_backend(run).values():
        assert_bitwise_equal(out, expected)
        assert_bitwise_equal(into, expected)
        assert finite is (bad is None)
        assert [flag.tolist() for flag in flags] == ([[0], [5]] if bad is None else [[1], [1]])
