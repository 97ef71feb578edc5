"""The score's arithmetic (C2): the reference bit for bit, the prefilter at its borders, subnormals under FTZ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selective_kernels import Score, SparseIndex, scan
from selective_kernels.checks import check_score
from selective_kernels.score import score_ref
from selective_kernels.testing import assert_bitwise_equal, assert_same_index

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Exponents with arithmetic of their own, in float32 and with one rounding per operation.
ROUNDED = {
    0.0: lambda g, d: g,
    0.5: lambda g, d: g / np.sqrt(d),
    1.0: lambda g, d: g / d,
    2.0: lambda g, d: g / (d * d),
}

# eps that is not a float32, the smallest allowed, one below the rounding of most parameters, a large one.
EPS = [1.0, 1e-8, 2.0**-126, 2.0**-63, 3.7e4]

# (exponent, eps) with eps^exponent at, just above and below 2^-120, where the kernels' prefilter starts to be valid,
# at both ends of what is allowed, and the ordinary.
BORDERS = [
    (2.0, 1.0),
    (2.0, 1e-8),
    (2.0, 2.0**-59.5),
    (2.0, 2.0**-60),
    (2.0, 2.0**-60.5),
    (2.0, 2.0**-63),
    (2.0, 2.0**60),
    (1.0, 2.0**-119),
    (1.0, 2.0**-120),
    (1.0, 2.0**-126),
    (0.5, 2.0**-126),
    (0.0, 1.0),
    (1.7, 1.0),
    (1.7, 2.0**-70),
    (7.0, 2.0**-17),
    (0.03, 2.0**-126),
    (-1.0, 1.0),
    (-1.0, 2.0**-60),
    (-3.0, 2.0**-40),
]

# log2 of scores around which the k-th best is put: subnormal, the smallest normal, around the prefilter's own limit of
# 2^-120, ordinary, close to overflow.
LEVELS = [-140, -126, -121, -120, -119, -30, 0, 40, 120]

# Scores whose kernels may differ from numpy's in the last bit go through pow, which is not correctly rounded (C2).
NOT_EXACT = {"rtol": 2e-7, "atol": 0.0}


def patterns(dtype, count, seed):
    """Random bit patterns: all magnitudes, subnormals, inf and NaN."""
    rng = np.random.default_rng(seed)
    if dtype is torch.float32:
        return torch.from_numpy(rng.integers(0, 2**32, count, np.uint32).view(np.float32))
    return torch.from_numpy(rng.integers(0, 2**16, count, np.uint16).view(np.int16)).view(dtype)


@given(st.sampled_from(DTYPES), st.sampled_from([*ROUNDED, 1.7, -1.0]), st.sampled_from(EPS), st.integers(0, 2**32 - 1))
def test_c2_reference_equals_numpy(dtype, exponent, eps, seed):
    """C2: float32 whatever the storage, each operation correctly rounded, subnormals kept."""
    grad, param = patterns(dtype, 333, seed), patterns(dtype, 333, seed + 1)
    actual = score_ref(grad, param, Score(exponent, eps))
    g, theta = np.abs(grad.float().numpy()), np.abs(param.float().numpy())
    with np.errstate(all="ignore"):
        d = theta + np.float32(eps)
        if exponent in ROUNDED:
            expected = torch.from_numpy(ROUNDED[exponent](g, d))
            both_nan = actual.isnan() & expected.isnan()  # which NaN it is does not matter
            assert_bitwise_equal(actual[~both_nan], expected[~both_nan])
        else:
            power = torch.from_numpy(np.power(d.astype(np.float64), exponent).astype(np.float32))
            torch.testing.assert_close(actual, torch.from_numpy(g) / power, equal_nan=True, **NOT_EXACT)


def entries_around(level, exponent, eps, count=6000):
    """Gradients and parameters whose scores lie within a few roundings of 2^level, and ordinary ones between them."""
    rng = np.random.default_rng(level + 1000)
    param = np.exp2(rng.uniform(-130, 60, count)) * rng.choice([0.0, 1.0, -1.0], count)
    param = param.astype(np.float32).astype(np.float64)
    factor = 1.0 + rng.integers(-8, 9, count) * 2.0**-23
    factor[::5] = np.exp2(rng.uniform(-3, 3, len(factor[::5])))
    with np.errstate(all="ignore"):
        grad = np.exp2(float(level)) * factor * np.power(np.abs(param) + np.float64(np.float32(eps)), exponent)
        grad = grad.astype(np.float32)
    grad[~np.isfinite(grad)] = 1.0
    return torch.from_numpy(grad), torch.from_numpy(param.astype(np.float32))


@pytest.mark.parametrize(("exponent", "eps"), BORDERS)
def test_c2_prefilter_loses_nothing(everywhere, ranking, exponent, eps):
    """C2, C4: with the exact k-th score as the threshold, no entry that reaches it is lost, so one read is enough."""
    score = Score(exponent, eps)
    checked = 0
    for level in LEVELS:
        grad, param = entries_around(level, exponent, eps)
        ranked = ranking([param], [grad], score)
        for i, k in enumerate(sorted({1 + i * len(ranked.scores) // 5 for i in range(5)})):
            hint = ranked.threshold(k)

            def run(grad=grad, param=param, hint=hint, k=k):
                running = scan([param], SparseIndex.empty(1), k, score, hint=hint)
                running.add([0], [grad])
                return running.finalize(), running.passes, running.threshold

            for path, (actual, passes, threshold) in everywhere(run, triton=i == 1 and level == -119).items():
                assert_same_index(actual, ranked.top(k))
                assert threshold == hint
                # room for candidates is not the filter's business
                assert passes == 1 or (path in ("triton", "cuda") and (ranked.scores >= hint).sum() > 2 * k + 4096)
            checked += len(ranked.scores)
    assert checked > 100_000  # most of the levels give scores that can be selected


def flushes() -> tuple[bool, bool]:
    """Whether subnormal results (FTZ) and subnormal arguments (DAZ) count as zero in this thread."""
    tiny, one = torch.tensor([1], dtype=torch.int32).view(torch.float32), torch.tensor([2.0**-126])
    return bool(one * 0.5 == 0.0), bool(tiny * 2.0**100 == 0.0)


@contextmanager
def flush_denormal() -> Iterator[None]:
    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def subnormal_problems():
    """Half zeros, half subnormals: with subnormal scores and, by a small eps, normal ones; then ordinary numbers."""
    rng = np.random.default_rng(0)
    for count in (900, 200_000):  # without and with a sampled threshold
        grad = rng.integers(0, 2**22, count).astype(np.uint32)
        grad[rng.random(count) < 0.5] = 0
        yield torch.from_numpy(grad.view(np.float32)), torch.zeros(count), Score(2.0, 1.0)
        yield torch.from_numpy(grad.view(np.float32)), torch.zeros(count), Score(2.0, 2.0**-60)
        some = np.where(rng.random(count) < 0.5, rng.standard_normal(count), 0.0).astype(np.float32)
        yield torch.from_numpy(some), torch.from_numpy(rng.standard_normal(count).astype(np.float32)), Score(2.0, 1.0)


def test_c2_subnormals_count_even_if_the_caller_flushes_them(everywhere, ranking):
    """C2, C3: FTZ and DAZ in the calling thread change nothing, zeros stay unselectable, and both stay set.

    Triton's interpreter computes in the calling thread, and in its mode; a GPU has no such mode.
    """
    for grad, param, score in subnormal_problems():
        ranked = ranking([param], [grad], score)
        for k in (1, 100, len(ranked.scores) - 1, len(ranked.scores) + 50):
            hints = [None, 0.0, ranked.threshold(k), 2.0 * ranked.threshold(k), 1e-45, 1.0, math.inf]
            expected = ranked.top(k)
            for hint in hints:

                def run(grad=grad, param=param, score=score, k=k, hint=hint):
                    with flush_denormal():
                        running = scan([param], SparseIndex.empty(1), k, score, hint=hint)
                        running.add([0], [grad])
                        found = running.finalize()
                        assert flushes() == (True, True)
                    return found

                for path, actual in everywhere(run, triton=False, cuda=hint is None).items():
                    assert actual.count == expected.count, (path, k, hint, score)
                    assert_same_index(actual, expected)


def test_c2_callers_without_flushing_stay_so(everywhere):
    """C2: the kernels leave the calling thread's floating-point mode as it was."""

    def run():
        running = scan([torch.zeros(9000)], SparseIndex.empty(1), 5, Score(2.0, 1.0))
        running.add([0], [torch.ones(9000)])
        running.finalize()
        return flushes()

    assert flushes() == (False, False)
    assert set(everywhere(run).values()) == {(False, False)}


@pytest.mark.parametrize(
    ("exponent", "eps"),
    [(2.0, 2.0**-63), (1.0, 2.0**-126), (-1.0, 2.0**126), (0.0, 2.0**-126), (-2.0, 2.0**-63.9), (2.0, 2.0**63.9)],
)
def test_c2_scores_at_the_limits_are_allowed(exponent, eps):
    """C2: eps^exp may be any normal float32."""
    check_score(Score(exponent, eps))


@pytest.mark.parametrize(
    ("exponent", "eps", "message"),
    [
        (math.nan, 1.0, "exp: expected a finite number, got nan"),
        (math.inf, 1.0, "exp: expected a finite number, got inf"),
        (2.0, 0.0, "eps: expected a number > 0, got 0.0"),
        (2.0, -1.0, "eps: expected a number > 0, got -1.0"),
        (2.0, math.nan, "eps: expected a number > 0, got nan"),
        (0.0, math.inf, r"eps: expected a normal float32 \(2\^-126 or more\), got inf"),
        (0.0, 2.0**-127, r"eps: expected a normal float32 \(2\^-126 or more\), got 5.877"),
        (2.0, 2.0**-64, r"eps: expected eps\^exp to be a normal float32, got 5.42.*\^2.0 = 2.9"),
        (2.0, 2.0**64, r"eps: expected eps\^exp to be a normal float32"),
        (1e9, 1e9, r"eps: expected eps\^exp to be a normal float32, got 1000000000.0\^1000000000.0 = inf"),
        (-1e9, 1e9, r"eps: expected eps\^exp to be a normal float32"),
        (-1.0, 2.0**127, r"eps: expected eps\^exp to be a normal float32"),
    ],
)
def test_c2_scores_beyond_the_limits_are_refused(exponent, eps, message):
    """C2, C14: the message names the argument, what was expected and what was given; a scan refuses it, too."""
    with pytest.raises(ValueError, match=message):
        check_score(Score(exponent, eps))
    with pytest.raises(ValueError, match=message):
        scan([torch.zeros(3)], SparseIndex.empty(1), 1, Score(exponent, eps))
