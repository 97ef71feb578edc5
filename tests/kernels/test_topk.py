"""The exact top-k (C1-C4) against sorting, over generated lists of tensors, and its gathered gradients."""

from __future__ import annotations

import functools
import math
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from topkproblems import (
    DTYPES,
    EXPONENTS,
    LARGE,
    PROBLEMS,
    SCORES,
    SHAPES,
    K,
    Problem,
    assert_same_scan,
    resolve_k,
)

from selective_kernels import Score, SparseIndex, scan, topk, topk_ref
from selective_kernels.testing import assert_same_index, raw_bits

EVERYTHING = [(shape, dtype, "plain", "ties", True) for shape in SHAPES for dtype in DTYPES]


@given(PROBLEMS, SCORES, K)
@example(Problem(EVERYTHING, 0, 0.3), Score(2.0, 1.0), "most")  # whatever is drawn, this list of all shapes is there
@example(Problem([], 0, 0.0), Score(2.0, 1.0), "one")  # no tensors at all
def test_c4_topk_equals_sorting(everywhere, ranking, problem, score, k):
    """C2, C3, C4: bit-equal lists from sorting, the reference, every instruction set and 1, 2 and 7 threads."""
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    k = resolve_k(k, len(ranked.scores))
    expected = problem.expected(k, ranked)
    assert expected[0].count == min(k, len(ranked.scores))
    order = [problem.with_grad]
    assert_same_scan(problem.scan(k, score, order, backend="reference"), expected)
    assert_same_index(topk_ref(problem.params, problem.grads, k, score, problem.index), expected[0])
    for actual in everywhere(lambda: problem.scan(k, score, order), triton=False).values():
        assert_same_scan(actual, expected)


@given(PROBLEMS, SCORES, K, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_c4_any_split_into_adds(everywhere, ranking, problem, score, k, shuffle):
    """C4: tensors may come in any sets and sets in any order; the result stays that of one add."""
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    k = resolve_k(k, len(ranked.scores))
    sets: list[list[int]] = [[] for _ in range(3)]
    for i in problem.with_grad:
        shuffle.choice(sets).append(i)  # a set may stay empty
    shuffle.shuffle(sets)
    expected = problem.expected(k, ranked)
    assert_same_scan(problem.scan(k, score, sets, backend="reference"), expected)
    for actual in everywhere(lambda: problem.scan(k, score, sets), triton=False).values():
        assert_same_scan(actual, expected)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_c4_sampled_threshold(everywhere, ranking, dtype, exponent):
    """C4: large enough for a sampled threshold, which costs no second read here; also in several adds."""
    problem = Problem([(shape, dtype, "plain", "normal", True) for shape in LARGE], 11, 0.003)
    score = Score(exponent, 1.0)
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    splits = [[[0, 1, 2, 3, 4, 5]], [[3], [5, 2, 0][::-1], [1, 4]], [[i] for i in (4, 3, 2, 1, 0, 5)]]
    for k in (1, 900, 40_000):
        expected = problem.expected(k, ranked)
        for order in splits:
            function = functools.partial(problem.scan, k, score, order)
            for actual in everywhere(function, triton=False, cuda=order is splits[0]).values():
                assert_same_scan(actual, expected)
        running = scan(problem.params, problem.index, k, score)
        running.add(range(len(LARGE)), problem.grads)
        running.finalize()
        assert running.passes == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_c9_nonfinite_gradients_are_seen(everywhere, dtype, bad):
    """C9: one inf or NaN anywhere: vector body, tile ends, the rest behind the last vector, a selected entry; k = 0."""
    numel = 2 * 4096 + 21
    param = torch.zeros(numel, dtype=dtype)
    index = SparseIndex.from_lists([[5, 4095, 4096]])
    for position in (None, 0, 5, 1000, 4095, 4096, 8191, 8192, 8192 + 15, 8192 + 16, numel - 1):
        grad = torch.ones(numel, dtype=dtype)
        if position is not None:
            grad[position] = bad
        for k in (0, 3):

            def flag(grad=grad, k=k):
                running = scan([param], index, k, Score(2.0, 1.0))
                running.add([0], [grad])
                return running.nonfinite

            assert set(everywhere(flag, triton=dtype == DTYPES[0] and k > 0).values()) == {position is not None}, (
                position,
                k,
            )


def test_c9_large_finite_gradients_are_not_reported(everywhere):
    """C9: the largest finite numbers, and parameters that are not finite, are no bad gradients."""
    for dtype in DTYPES:
        grad = torch.full((4099,), torch.finfo(dtype).max, dtype=dtype)
        param = torch.full((4099,), math.nan, dtype=dtype)

        def flag(grad=grad, param=param):
            running = scan([param], SparseIndex.empty(1), 5, Score(2.0, 1.0))
            running.add([0], [grad])
            return running.nonfinite, running.finalize().count

        assert set(everywhere(flag).values()) == {(False, 0)}


def test_c8_nothing_is_modified(everywhere):
    """C8: a scan leaves gradients, parameters and the index as they are, bit for bit."""
    problem = Problem([(shape, dtype, "plain", "nonfinite", True) for shape in SHAPES for dtype in DTYPES], 3, 0.3)
    tensors = [*problem.params, *problem.grads, problem.index.offsets]
    before = [raw_bits(tensor).clone() for tensor in tensors]
    everywhere(lambda: problem.scan(500, Score(1.0, 1e-8), [problem.with_grad]))
    assert all(torch.equal(raw_bits(tensor), old) for tensor, old in zip(tensors, before, strict=True))


def test_c8_no_gradients_at_all():
    """C8: None scores nothing; without any gradient there is nothing to select."""
    params = [torch.ones(5), torch.ones(6)]
    assert topk(params, [None, None], 4, Score(2.0, 1.0)).starts == [0, 0, 0]
    assert topk(params, [None, torch.ones(6)], 4, Score(2.0, 1.0)).starts == [0, 0, 4]


def test_c4_same_result_in_every_run():
    """C4: twenty runs on more threads than cores give one list, though threads bring candidates in any order."""
    rng = random.Random(0)
    grad = torch.tensor([float(rng.randrange(1, 4)) for _ in range(200_000)])
    results = {tuple(topk([torch.zeros(200_000)], [grad], 5000, Score(2.0, 1.0)).valid.tolist()) for _ in range(20)}
    assert len(results) == 1
