"""Reading, writing and exchanging single scalars, and merging index lists: bit for bit as plain torch indexing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selective_kernels import SparseIndex, Table, gather, gather_bits, gather_grads, merge_, scatter_, swap_
from selective_kernels.testing import assert_bitwise_equal, assert_same_index, raw_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]

# Of a tensor's entries: none, few, all but few, all. 4096 entries are one piece of work; the tensors are larger.
SHARES = [0.0, 0.01, 0.99, 1.0]

# A scalar, nothing, one entry, an odd length behind a misaligned address, several dimensions, more than a piece.
SHAPES = [(), (0,), (1,), (331,), (3, 5, 7), (97, 101)]

POISON_BITS = 0x7FABCDEF  # a NaN of float32, and as an int32 no bit pattern of a 16-bit type


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


def clones(tensors):
    return [tensor.clone() for tensor in tensors]


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


def with_reference(everywhere, function):
    """What function(backend) gives on every path of the kernels and from the reference."""
    return [*everywhere(lambda: function("cpu")).values(), function("reference")]


@pytest.mark.parametrize("share", SHARES)
def test_gather_equals_indexing(everywhere, share):
    tensors, index = problem(1, share)
    expected = values_at(tensors, index)
    for actual in with_reference(everywhere, lambda backend: gather(tensors, index, backend=backend)):
        assert_same_values(actual, expected, index)
    for actual in with_reference(everywhere, lambda backend: gather_bits(tensors, index, backend=backend)):
        assert_bitwise_equal(actual, bits_at(tensors, index))


def test_gather_writes_the_front_of_out_only(everywhere):
    tensors, index = problem(2, 0.3)

    def run(backend):
        out = torch.full((index.count + 5,), -7.0)
        result = gather(tensors, index, out=out, backend=backend)
        assert result.data_ptr() == out.data_ptr()
        return out

    for out in with_reference(everywhere, run):
        assert_same_values(out[: index.count], values_at(tensors, index), index)
        assert out[index.count :].tolist() == [-7.0] * 5


@pytest.mark.parametrize("dtype", HALVES)
def test_all_16_bit_patterns_widen_as_in_torch(everywhere, dtype):
    tensor = torch.arange(65536).to(torch.int16).view(dtype)
    index = SparseIndex.from_lists([torch.arange(65536)])
    for actual in with_reference(everywhere, lambda backend: gather([tensor], index, backend=backend)):
        assert_bitwise_equal(actual[~tensor.isnan()], tensor[~tensor.isnan()].float())
        assert torch.equal(actual.isnan(), tensor.isnan())


def hard_to_round(dtype):
    """Every value of a 16-bit type, the halves between neighbours, and their float32 neighbours; random bits; NaN."""
    values = torch.arange(65536).to(torch.int16).view(dtype)
    values = values[values.isfinite()].double().sort().values
    beyond = values[-1] + (values[-1] - values[-2]) / 2  # where rounding to inf begins
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2, beyond[None], -beyond[None]]).float()
    largest = torch.tensor(math.inf)
    around = torch.cat([exact, torch.nextafter(exact, largest), torch.nextafter(exact, -largest)])
    anything = torch.from_numpy(np.random.default_rng(3).integers(0, 2**32, 200_000, np.uint32).view(np.float32))
    return torch.cat([around, anything, torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])])


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_rounds_as_torch(everywhere, dtype):
    """Nearest even, subnormals and overflow included. Which NaN a NaN becomes is nobody's promise."""
    values = hard_to_round(torch.float16 if dtype is torch.float32 else dtype)
    index = SparseIndex.from_lists([torch.arange(len(values))])
    expected = values.to(dtype)

    def run(backend):
        target = torch.full((len(values),), 3.0, dtype=dtype)
        scatter_([target], index, values, backend=backend)
        return target

    number = torch.ones(len(values), dtype=torch.bool) if dtype is torch.float32 else ~values.isnan()
    for actual in with_reference(everywhere, run):
        assert_bitwise_equal(actual[number], expected[number])
        assert bool(actual[~number].isnan().all())


@pytest.mark.parametrize("dtype", HALVES)
def test_scatter_undoes_gather(everywhere, dtype):
    """Each 16-bit number survives widening and rounding bit for bit; a NaN stays one."""
    tensor = torch.arange(65536).to(torch.int16).view(dtype)
    index = SparseIndex.from_lists([torch.arange(65536)])

    def run(backend):
        target = torch.full_like(tensor, 3.0)
        scatter_([target], index, gather([tensor], index, backend=backend), backend=backend)
        return target

    for actual in with_reference(everywhere, run):
        assert_bitwise_equal(actual[~tensor.isnan()], tensor[~tensor.isnan()])
        assert torch.equal(actual.isnan(), tensor.isnan())


@pytest.mark.parametrize("share", SHARES)
def test_c7_scatter_and_swap_leave_the_rest(everywhere, share):
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

    def scatter(backend):
        target = clones(tensors)
        scatter_(target, index, values, backend=backend)
        return target

    def swap(backend):
        target, taken = clones(tensors), bits.clone()
        swap_(target, index, taken, backend=backend)
        return target, taken

    for actual in with_reference(everywhere, scatter):
        assert_same_tensors(actual, scattered)
    for actual, taken in with_reference(everywhere, swap):
        assert_same_tensors(actual, swapped)
        assert_bitwise_equal(taken, bits_at(tensors, index))


def test_swap_twice_restores(everywhere):
    tensors, index = problem(6, 0.5)
    bits = torch.from_numpy(np.random.default_rng(7).integers(0, 2**16, index.count + 2)).int()

    def run(backend):
        target, taken = clones(tensors), bits.clone()
        swap_(target, index, taken, backend=backend)
        assert not torch.equal(taken, bits)
        swap_(target, index, taken, backend=backend)
        return target, taken

    for actual, taken in with_reference(everywhere, run):
        assert_same_tensors(actual, tensors)
        assert_bitwise_equal(taken, bits)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_c9_gather_grads_tells_of_bad_gradients(everywhere, bad):
    """C9: the gradients of the selected entries of some tensors, at their places, and whether they are finite."""
    tensors, _ = problem(8, 0.0)
    index = SparseIndex.from_lists([torch.arange(0, t.numel(), 2) for t in tensors])
    table = Table(tensors)
    numbers = [i for i in range(len(tensors)) if i % 4 != 1]
    grads = [torch.ones_like(tensors[i]).cumsum(-1) if tensors[i].dim() else tensors[i].new_ones(()) for i in numbers]
    grads[-1] = grads[-1].t().contiguous().t()  # not row-major: copied first (C1)
    grads[-1][0, 1] = math.nan  # not selected
    if bad is not None:
        grads[-2].view(-1)[4098] = bad
    expected = torch.full((index.count,), -7.0)  # the entries of the others are not written
    for i, grad in zip(numbers, grads, strict=True):
        expected[index.starts[i] : index.starts[i + 1]] = grad.reshape(-1)[index.of(i).long()].float()

    def run(backend):
        out = torch.full((index.count,), -7.0)
        return gather_grads(table, index, numbers, grads, out, backend=backend), out

    for finite, out in with_reference(everywhere, run):
        assert_bitwise_equal(out, expected)
        assert finite is (bad is None)


ENTRIES = st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=4)


@given(ENTRIES, st.integers(0, 2**32 - 1), st.sampled_from(["any", "front", "back", "none", "all"]))
def test_merge_equals_sorting(everywhere, both, seed, which):
    """New entries in front, behind, between, none or all of them, over several tensors, some without entries."""
    rng = np.random.default_rng(seed)
    old, new = [], []
    for entries in map(sorted, both):
        cut = int(rng.integers(0, len(entries) + 1))
        picked = {
            "any": [bool(rng.random() < 0.5) for _ in entries],
            "front": [j < cut for j in range(len(entries))],
            "back": [j >= cut for j in range(len(entries))],
            "none": [False] * len(entries),
            "all": [True] * len(entries),
        }[which]
        old.append([entry for entry, is_new in zip(entries, picked, strict=True) if not is_new])
        new.append([entry for entry, is_new in zip(entries, picked, strict=True) if is_new])
    total = sum(map(len, both))
    fresh = SparseIndex.from_lists(new)
    # The value of an entry tells which it is, so that the expected arrays can be written down.
    marks = [torch.tensor([100 * i + o for i, os in enumerate(lists) for o in os]) for lists in (old, new, both)]
    merged = torch.tensor([100 * i + o for i, os in enumerate(both) for o in sorted(os)])
    is_new = torch.isin(merged, marks[1])

    def run(backend):
        before = SparseIndex.from_lists(old)
        index = SparseIndex.empty(len(both), total + 2)
        index.offsets.fill_(POISON_BITS)
        index.offsets[: before.count], index.starts[:] = before.offsets, before.starts
        floats, ints, zeros = (torch.full((total + 3,), POISON_BITS, dtype=torch.int32) for _ in range(3))
        for array in (floats, ints, zeros):
            array[: before.count] = marks[0]
        arrays = [(floats.view(torch.float32), marks[1].int().view(torch.float32)), (ints, marks[1].int())]
        merge_(index, fresh, [*arrays, (zeros, None)], backend=backend)
        assert floats[total:].tolist() == ints[total:].tolist() == zeros[total:].tolist() == [POISON_BITS] * 3
        return index, floats[:total], ints[:total], zeros[:total]

    for index, floats, ints, zeros in with_reference(everywhere, run):
        assert_same_index(index, SparseIndex.from_lists([sorted(entries) for entries in both]))
        assert floats.tolist() == ints.tolist() == merged.tolist()
        assert zeros.tolist() == torch.where(is_new, 0, merged).tolist()


def test_merge_of_long_lists(everywhere):
    """Longer than a page and with new runs of all lengths, so that moves overlap in every way."""
    rng = np.random.default_rng(9)
    is_new = np.repeat(rng.random(3000) < 0.4, rng.integers(1, 60, 3000))
    old, new = torch.from_numpy(np.flatnonzero(~is_new)), torch.from_numpy(np.flatnonzero(is_new))

    def run(backend):
        index = SparseIndex.from_lists([old])
        room = torch.empty(len(is_new), dtype=torch.int32)
        room[: len(old)] = index.offsets
        index.offsets, values = room, room.clone()
        merge_(index, SparseIndex.from_lists([new]), [(values, new.int())], backend=backend)
        return index, values

    for index, values in with_reference(everywhere, run):
        assert index.valid.tolist() == values.tolist() == list(range(len(is_new)))
