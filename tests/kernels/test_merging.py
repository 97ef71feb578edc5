"""Merging index lists and their arrays: as sorting all entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tritontests import INTERPRETED, placed

from selective_kernels import SparseIndex, merge_
from selective_kernels.testing import assert_same_index

POISON_BITS = 0x7FABCDEF  # a NaN of float32, and as an int32 no offset of the entries here

ENTRIES = st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=4)


@given(ENTRIES, st.integers(0, 2**32 - 1), st.sampled_from(["any", "front", "back", "none", "all"]))
def test_merge_equals_sorting(on_every_backend, both, seed, which):
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

    def run(backend, device):
        before, added = SparseIndex.from_lists(old), marks[1].int().to(device)
        index = SparseIndex.empty(len(both), total + 2, device)
        index.offsets.fill_(POISON_BITS)
        index.offsets[: before.count], index.starts[:] = before.offsets, before.starts
        floats, ints, zeros = (torch.full((total + 3,), POISON_BITS, dtype=torch.int32).to(device) for _ in range(3))
        for array in (floats, ints, zeros):
            array[: before.count] = marks[0]
        arrays = [(floats.view(torch.float32), added.view(torch.float32)), (ints, added)]
        merge_(index, placed(fresh, device), [*arrays, (zeros, None)], backend=backend)
        for array in (floats, ints, zeros, index.offsets):
            assert set(array[total:].tolist()) == {POISON_BITS}
        return index, floats[:total], ints[:total], zeros[:total]

    # An example takes the interpreter 50 ms.
    for index, floats, ints, zeros in on_every_backend(run, not INTERPRETED or seed % 4 == 0).values():
        assert_same_index(index, SparseIndex.from_lists([sorted(entries) for entries in both]))
        assert floats.tolist() == ints.tolist() == merged.tolist()
        assert zeros.tolist() == torch.where(is_new, 0, merged).tolist()


def test_merge_of_long_lists(on_every_backend):
    """Longer than a page and with new runs of all lengths, so that moves overlap in every way."""
    rng = np.random.default_rng(9)
    is_new = np.repeat(rng.random(1000) < 0.4, rng.integers(1, 60, 1000))
    old, new = torch.from_numpy(np.flatnonzero(~is_new)), torch.from_numpy(np.flatnonzero(is_new))

    def run(backend, device):
        index = SparseIndex.from_lists([old])
        room = torch.empty(len(is_new), dtype=torch.int32, device=device)
        room[: len(old)] = index.offsets
        index.offsets, values = room, room.clone()
        fresh = placed(SparseIndex.from_lists([new]), device)
        merge_(index, fresh, [(values, new.int().to(device))], backend=backend)
        return index, values

    for index, values in on_every_backend(run).values():
        assert index.valid.tolist() == values.tolist() == list(range(len(is_new)))


# Three blocks of 1024 entries in one tensor, none, two blocks whose last is full, a single entry; none at both ends.
COUNTS = [0, 2500, 0, 0, 2048, 1, 0]
WHERE = {
    "before": lambda offsets, count: offsets < count // 2,
    "after": lambda offsets, count: offsets >= count // 2,
    "between": lambda offsets, count: (offsets > count // 4) & (offsets <= count // 2),
    "every second": lambda offsets, count: offsets % 2 == 1,
    "all": lambda offsets, count: offsets >= 0,
    "the last": lambda offsets, count: offsets == count - 1,
    "in some tensors": lambda offsets, count: (offsets % 3 == 0) & (count != 2048),
}


@pytest.mark.parametrize("where", WHERE)
def test_merge_in_blocks(on_every_backend, where):
    """New entries before, after and between the old ones, where lists are longer than a block; the gaps grow with the
    offset, up to the largest that an int32 holds."""
    old, new, both = [], [], []
    for count in COUNTS:
        place = torch.arange(count)
        offsets = place * place * (2**31 // max(1, count * count)) + place
        offsets[-1:] = 2**31 - 1
        is_new = WHERE[where](place, count)
        old.append(offsets[~is_new])
        new.append(offsets[is_new])
        both.append(offsets)
    fresh, expected = SparseIndex.from_lists(new), SparseIndex.from_lists(both)
    marks = expected.offsets ^ (expected.tensor_ids().int() << 20)  # tells the tensors' entries apart
    added = torch.cat([WHERE[where](torch.arange(count), count) for count in COUNTS])

    def run(backend, device):
        index = SparseIndex.empty(len(COUNTS), expected.count, device)
        before = SparseIndex.from_lists(old)
        index.offsets[: before.count], index.starts[:] = before.offsets, before.starts
        ints = torch.full((expected.count,), POISON_BITS, dtype=torch.int32)
        ints[: before.count] = marks[~added]
        ints = ints.to(device)
        floats, zeros = ints.clone().view(torch.float32), ints.clone()
        values = marks[added].to(device)
        merge_(
            index,
            placed(fresh, device),
            [(floats, values.view(torch.float32)), (zeros, None), (ints, values)],
            backend=backend,
        )
        return index, floats.view(torch.int32), zeros, ints

    for index, floats, zeros, ints in on_every_backend(run).values():
        assert_same_index(index, expected)
        assert torch.equal(floats, marks)
        assert torch.equal(ints, marks)
        assert torch.equal(zeros, torch.where(added, 0, marks))


def test_merge_of_nothing_and_without_arrays(on_every_backend):
    def run(backend, device):
        index = SparseIndex.empty(2, 3, device)
        for lists in ([[], []], [[], [7]], [[], []], [[3], [9]]):
            merge_(index, placed(SparseIndex.from_lists(lists), device), [], backend=backend)
        return index, SparseIndex.empty(0, 0, device)

    for index, empty in on_every_backend(run).values():
        assert_same_index(index, SparseIndex.from_lists([[3], [7, 9]]))
        assert empty.count == 0
