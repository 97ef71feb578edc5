"""What is added to a weight to get another, to the last bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selective_peft.addends import addends, in_two, is_lost
from selective_peft.rawbytes import bits

from selective_kernels.testing import assert_bitwise_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def merged(weight, numbers):
    """As PEFT does it."""
    places = torch.arange(len(weight)).expand(2, -1)
    tuned = torch.diag(weight)
    tuned += torch.sparse_coo_tensor(places, numbers, tuned.shape, check_invariants=False)
    return tuned.diagonal().contiguous()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**31), st.sampled_from([1.0, 1e-3, 1e-8, 1e4]))
def test_sums_are_right_where_it_says_so(dtype, seed, scale):
    """With values of all sizes, both zeros and the ends of the range; and it says so for all usual ones."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(400, generator=generator).to(dtype)
    after = (before.float() + scale * torch.randn(400, generator=generator)).to(dtype)
    edges = torch.tensor([0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).min, 2.0**-20, 1.0]).to(dtype)
    before, after = torch.cat([before, edges, edges, edges.flip(0)]), torch.cat([after, edges, edges.flip(0), edges])
    numbers, right = addends(before, after)
    assert numbers.dtype == torch.float32
    assert_bitwise_equal(merged(before, numbers)[right], after[right])
    near = (after[:400].float().abs() >= before[:400].float().abs() / 2) & (before[:400] != 0)
    near &= after[:400].float().abs() <= 2 * before[:400].float().abs()
    assert bool(right[:400][near & (before[:400] * after[:400] > 0)].all())


def test_where_the_nearest_number_is_not_the_one():
    """Above a power of two floats have twice the distance of those below; found among many, and put right."""
    generator = torch.Generator().manual_seed(0)
    after = torch.exp2(torch.randint(-8, 8, (200_000,), generator=generator).float())
    before = torch.randn(200_000, generator=generator) * after * 3
    nearest = (after.double() - before.double()).float()
    numbers, right = addends(before, after)
    fixed = right & (before + nearest != after)
    assert bool(((before + numbers) == after)[right].all())
    assert int(right.sum()) > 150_000
    assert int(fixed.sum()) > 1000


def test_what_cannot_be():
    largest = torch.finfo(torch.float32).max
    before = torch.tensor([1.0, 2.0, 0.0, largest, -0.0])
    after = torch.tensor([1e-10, -0.0, -0.0, -largest, 0.0])
    assert addends(before, after)[1].tolist() == [False, False, False, False, True]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_two_numbers_do_all_the_rest(dtype, seed):
    """Values that shrink by any factor; PEFT's merge gives all of them, but -0."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(300, generator=generator).to(dtype)
    after = (before.float() * 10 ** (-8 * torch.rand(300, generator=generator))).to(dtype)
    after[0], after[1], before[2], after[2] = -0.0, 0.0, torch.finfo(dtype).max, torch.finfo(dtype).min
    numbers, right = addends(before, after)
    lost = is_lost(before, after, right)
    assert bool((bits(after[lost]) == bits(torch.tensor(-0.0, dtype=dtype))).all())
    assert bool(lost[0]) or dtype != torch.float32  # else a sum may be so small that it is rounded to -0
    times, both = in_two(before, after, numbers, right)
    assert int(times.sum()) == len(both)
    places = torch.arange(300).repeat_interleave(times).expand(2, -1)
    tuned = torch.diag(before)
    tuned += torch.sparse_coo_tensor(places, both, tuned.shape, check_invariants=False)
    assert_bitwise_equal(tuned.diagonal()[~lost].contiguous(), after[~lost])
    if dtype == torch.float32:
        assert int((~right).sum()) > 100  # else this tests nothing
