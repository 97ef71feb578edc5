"""Inputs on which a top-k that guesses a threshold goes wrong in silence (C2-C4): ties, hints, samples, subnormals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from selective_kernels import Score, SparseIndex, scan
from selective_kernels.testing import assert_same_index

# More than the candidate buffer (1.5 k + 16384), the threads' batches (8192) and a tile (4096) hold, and enough for a
# sampled threshold (131072); odd, so that the last tile and the last vector are not full.
N = 300_001
D3 = Score(2.0, 1.0)
# One entry; less than a plateau; so many that a misled sample leaves too few; more than there are.
KS = [1, 1000, 5000, N + 1]

# Hints that no sane caller gives; any value has to give the same result.
HINTS = [0.0, -0.0, -1.0, -math.inf, math.inf, 1e30, 3.5e38, 1e-30, 1e-45, 2.0**-120, math.nan]


class Case(NamedTuple):
    grads: list[np.ndarray]
    params: list[np.ndarray]
    score: Score = D3


CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = functools.cache(build)
    return CASES[build.__name__]


def normal(count=N, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def wide(count=N, low=-149.0, high=127.9, seed=1):
    return np.exp2(np.random.default_rng(seed).uniform(low, high, count)).astype(np.float32)


def sampled_lines(count):
    """Entries that the sample of csrc/cpu/scan.cpp visits: a line of 16 at a random place in each 256 of them."""
    mask = 2**64 - 1
    entries = np.zeros(count, bool)
    for i in range(-(-count // 16) // 256):
        x = i + 1
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        line = i * 256 + (x ^ (x >> 31)) % 256
        entries[line * 16 : line * 16 + 16] = True
    return entries


@case
def ordinary():  # the control: what is expected of `passes` below holds here
    return Case([normal()], [normal(seed=2)])


@case
def all_equal():  # one plateau of everything: only the offsets decide
    return Case([np.ones(N, np.float32)], [np.zeros(N, np.float32)])


@case
def plateau_across_tensors_best_last():  # the strictly greater entries come after two full buffers of ties
    last = np.ones(20_000, np.float32)
    last[-500:] = 2.0
    grads = [np.ones(150_001, np.float32), np.ones(150_000, np.float32), last]
    return Case(grads, [np.zeros_like(grad) for grad in grads])


@case
def two_values():
    return Case([np.random.default_rng(3).choice(np.float32([1.0, -3.0]), N)], [np.zeros(N, np.float32)])


@case
def all_zero():  # nothing is selectable (C3)
    return Case([np.zeros(N, np.float32)], [normal()])


@case
def one_at_the_end():  # every sample says zero
    grad = np.zeros(N, np.float32)
    grad[-1] = 1e-3
    return Case([grad], [normal()])


@case
def signed_zeros():  # -0 is no gradient, and +-0 of a parameter is the same parameter
    rng = np.random.default_rng(4)
    return Case([rng.choice(np.float32([0.0, -0.0, 1.0, -1.0]), N)], [rng.choice(np.float32([0.0, -0.0]), N)])


@case
def rising():  # each candidate is better than all before it
    return Case([np.arange(1, N + 1, dtype=np.float32)], [np.zeros(N, np.float32)])


@case
def falling():
    return Case([np.arange(N, 0, -1, dtype=np.float32)], [np.zeros(N, np.float32)])


@case
def subnormal_gradients():  # and scores; half of them zero
    grad = np.random.default_rng(5).integers(0, 2**23, N).astype(np.uint32)
    grad[::2] = 0
    return Case([grad.view(np.float32)], [np.abs(normal())])


@case
def subnormal_gradients_normal_scores():  # eps^2 = 2^-120 lifts them
    grad = np.random.default_rng(6).integers(0, 2**23, N).astype(np.uint32).view(np.float32)
    return Case([grad], [np.zeros(N, np.float32)], Score(2.0, 2.0**-60))


@case
def huge_range():
    return Case([wide()], [wide(seed=7)], Score(1.0, 2.0**-100))


@case
def scores_overflow():  # |g| / eps^2 is inf for the largest: not selectable (C3)
    return Case([wide(low=80.0)], [np.abs(normal()) * 1e-3], Score(2.0, 1e-4))


@case
def powers_overflow():  # (|theta| + eps)^2 is inf for the largest: score 0
    return Case([wide(low=-10.0)], [wide(low=50.0, seed=8)])


@case
def bad_gradients():  # inf and NaN are not selectable; the flag is test_topk's
    grad = normal()
    grad[::7], grad[1::7], grad[2::7] = np.inf, np.nan, -np.inf
    return Case([grad], [normal(seed=9)])


@case
def bad_parameters():
    param = normal()
    param[::7], param[1::7], param[2::7] = np.inf, np.nan, -np.inf
    return Case([normal(seed=10)], [param])


@case
def large_in_the_sample_only():  # the sampled threshold is far too high
    return Case([np.where(sampled_lines(N), 1e3, 1.0).astype(np.float32) * np.abs(normal())], [np.zeros(N, np.float32)])


@case
def nothing_in_the_sample():  # no sampled threshold: everything is a candidate
    return Case([np.where(sampled_lines(N), 0.0, normal()).astype(np.float32)], [np.zeros(N, np.float32)])


@case
def gradient_in_few_lines():  # as in an embedding
    grad = np.zeros(N, np.float32)
    grad[200_000:204_800] = normal(4800)
    return Case([grad], [normal()])


@case
def loud_among_quiet():  # a bad hint of the score: large gradients of larger parameters, in some tiles too many of them
    rng = np.random.default_rng(11)
    grad, param = normal(seed=12) * 1e-3, normal(seed=13) * 1e-2
    for tile in range(0, N // 4096, 3):
        loud = tile * 4096 + rng.choice(4096, (0, 31, 32, 33, 127, 128, 129, 4096)[tile // 3 % 8], replace=False)
        grad[loud] = 1.0 + rng.random(len(loud))
        param[loud] = rng.choice(np.float32([0.0, 1.0, 50.0]), len(loud))
    return Case([grad], [param])


@case
def loud_in_any_power():  # the same through pow()
    return CASES["loud_among_quiet"]()._replace(score=Score(1.7, 0.5))


def at_the_bound(exponent: float, eps: float) -> Callable[[], Case]:
    """Parameters of zero: the smallest gradient that the threshold allows is that of every tie with the k-th best."""

    def at_the_bound() -> Case:
        grad = normal(seed=14) * 0.1
        grad[::50] = 0.7
        param = normal(seed=15)
        param[::50] = 0.0
        return Case([grad], [param], Score(exponent, eps))

    return at_the_bound


CASES |= {
    f"at_the_bound_{exponent}_{eps}": functools.cache(at_the_bound(exponent, eps))
    for exponent, eps in ((0.5, 0.3), (1.0, 1e-3), (2.0, 0.1), (2.0, 1.0), (1.7, 0.3), (-1.0, 0.3))
}


def tensors_of(name, dtype):
    built = CASES[name]()
    with np.errstate(all="ignore"):
        grads = [torch.from_numpy(grad).to(dtype) for grad in built.grads]
        return [torch.from_numpy(param).to(dtype) for param in built.params], grads, built.score


def run(params, grads, k, score, hint=None, index=None):
    running = scan(params, SparseIndex.empty(len(params)) if index is None else index, k, score, hint=hint)
    running.add(range(len(params)), grads)
    return running.finalize(), running.passes


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_c4_adversarial(everywhere, ranking, dtype, name):
    """C3, C4: exact on every path, and whatever the hint."""
    params, grads, score = tensors_of(name, dtype)
    ranked = ranking(params, grads, score)
    for k in KS:
        expected = ranked.top(k)
        function = functools.partial(run, params, grads, k, score)
        for actual, _ in everywhere(function, triton=False, cuda=dtype is torch.float32).values():
            assert_same_index(actual, expected)
        kth = np.float32(ranked.threshold(k))
        for hint in [*HINTS, kth, np.nextafter(kth, np.float32(np.inf)), np.nextafter(kth, np.float32(-1))]:
            actual, _ = run(params, grads, k, score, float(hint))
            assert_same_index(actual, expected)


@pytest.mark.parametrize(
    ("name", "k", "hint", "passes"),
    [
        ("ordinary", 1000, None, 1),
        ("ordinary", 1000, "kth", 1),
        ("ordinary", 1000, "above", 2),  # one entry is missing
        ("ordinary", 1000, math.inf, 2),
        ("ordinary", 1000, 1e30, 2),
        ("ordinary", 1000, 0.0, 1),  # too low never costs a read
        ("ordinary", 1000, -1.0, 1),
        ("ordinary", 1000, 1e-45, 1),
        ("ordinary", N + 1, 0.5, 2),  # more are wanted than there are: nothing may be left unread
        ("all_equal", 1000, None, 1),
        ("all_equal", 1000, "above", 2),
        ("large_in_the_sample_only", 5000, None, 2),  # so the sample is indeed misled
        ("nothing_in_the_sample", 1000, None, 1),
    ],
)
def test_c4_passes_tell_of_repairs(everywhere, ranking, name, k, hint, passes):
    """Design section 2: one read unless the threshold was too high, then one more."""
    params, grads, score = tensors_of(name, torch.float32)
    kth = np.float32(ranking(params, grads, score).threshold(k))
    hint = {"kth": float(kth), "above": float(np.nextafter(kth, np.float32(np.inf)))}.get(hint, hint)
    found = everywhere(lambda: run(params, grads, k, score, hint), triton=False, cuda=False)
    assert {got for _, got in found.values()} == {passes}


@pytest.mark.parametrize("name", ["ordinary", "all_equal", "two_values"])
def test_c4_selected_is_the_current_top(everywhere, ranking, name):
    """C3: leaving out exactly the best 20000 gives the next ones, without a repair: the sample leaves them out, too."""
    params, grads, score = tensors_of(name, torch.float32)
    index = ranking(params, grads, score).top(20_000)
    ranked = ranking(params, grads, score, index)
    for k in (1, 1000, N):
        found = everywhere(functools.partial(run, params, grads, k, score, None, index), triton=False)
        for path, (actual, passes) in found.items():
            assert_same_index(actual, ranked.top(k))
            assert passes == 1 or (path == "cuda" and name != "ordinary")  # a plateau may have no room there


def test_c3_everything_is_selected(everywhere):
    """C3: when every entry is selected nothing is found, by sample or hint."""
    index = SparseIndex.from_lists([torch.arange(N)])
    grad = torch.from_numpy(normal())
    for hint in (None, 0.0, 1.0):
        found = everywhere(
            lambda hint=hint: run([torch.zeros(N)], [grad], 1000, D3, hint, index)[0].count, triton=False
        )
        assert set(found.values()) == {0}
