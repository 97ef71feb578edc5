"""The sorted index over a list of tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selective_kernels import SparseIndex, Table, gather
from selective_kernels.testing import assert_bitwise_equal, assert_same_index

LISTS = st.lists(st.sets(st.integers(0, 2**31 - 1), max_size=6).map(sorted), max_size=5)


@given(LISTS)
def test_c1_entries_by_tensor_and_offset(lists):
    """C1: an entry is (tensor, offset), offsets int32 up to 2^31 - 1."""
    index = SparseIndex.from_lists(lists)
    assert [index.of(i).tolist() for i in range(index.n_tensors)] == lists
    assert index.valid.tolist() == [offset for each in lists for offset in each]
    assert index.tensor_ids().tolist() == [i for i, each in enumerate(lists) for _ in each]
    assert (index.n_tensors, index.count) == (len(lists), sum(map(len, lists)))
    assert index.offsets.dtype is torch.int32


def test_room_beyond_the_entries_is_not_part_of_them():
    index = SparseIndex(torch.tensor([4, 1, 99, 98], dtype=torch.int32), [0, 1, 1, 2])
    assert index.valid.tolist() == [4, 1]
    assert index.of(2).tolist() == [1]
    assert index.of(1).tolist() == []
    assert repr(index) == "SparseIndex(count=2, n_tensors=3, capacity=4)"


def test_empty():
    index = SparseIndex.empty(3, capacity=5)
    assert (index.count, index.n_tensors, len(index.offsets)) == (0, 3, 5)
    assert index.valid.tolist() == index.tensor_ids().tolist() == []
    assert_same_index(index, SparseIndex.from_lists([[], [], []]))
    assert SparseIndex.from_lists([]).n_tensors == 0


@pytest.mark.parametrize("bad", [[2, 1], [1, 1], [-1, 3], [0, 2**31], [-1]])
def test_c14_offsets_that_are_no_index(bad):
    with pytest.raises(ValueError, match=r"^offsets\[1\]: expected ascending distinct integers in .*, got tensor"):
        SparseIndex.from_lists([[0], bad])


@given(LISTS, LISTS)
def test_same_index_compares_entries(one, other):
    """The comparison that all other tests rely on tells different indices apart."""
    first, second = SparseIndex.from_lists(one), SparseIndex.from_lists(other)
    assert_same_index(first, SparseIndex.from_lists(one))
    if one != other:
        with pytest.raises(AssertionError, match="indices differ"):
            assert_same_index(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bitwise_comparison_sees_one_bit(dtype):
    """The other comparison that the tests rely on: -0 is not 0, a NaN equals itself only."""
    zero, nan = torch.zeros(3, dtype=dtype), torch.full((3,), float("nan"), dtype=dtype)
    assert_bitwise_equal(nan, nan.clone())
    changed = zero.clone()
    changed[1] = -0.0
    with pytest.raises(AssertionError, match=r"^x: 1 entries differ, first at 1: -0.0 != 0.0$"):
        assert_bitwise_equal(changed, zero, "x")
    with pytest.raises(AssertionError, match=r"expected .* got"):
        assert_bitwise_equal(zero, zero[:2])
    with pytest.raises(AssertionError, match=r"expected .* got"):
        assert_bitwise_equal(zero, zero.double())


def test_c14_a_checked_index_is_checked_again_for_other_tensors():
    """C14: having passed for one table says nothing about another, nor about an index it is made from."""
    index = SparseIndex.from_lists([[0, 5]])
    large, small = Table([torch.arange(6.0)]), Table([torch.arange(5.0)])
    assert gather(large, index).tolist() == [0.0, 5.0]
    for tensors in (small, [torch.arange(5.0)]):
        with pytest.raises(ValueError, match=r"index: expected offsets in \[0, 5\), got 0 to 5 for tensor 0"):
            gather(tensors, index)
