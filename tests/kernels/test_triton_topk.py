"""The exact top-k (C1-C4) on Triton kernels, against sorting: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from topkproblems import DTYPES, EXPONENTS, LAYOUTS, SCORES, K, Problem, assert_same_scan, resolve_k
from topkproblems import VALUES as STYLES
from tritontests import DEVICE, INTERPRETED

from selective_kernels import Score, SparseIndex, Table, scan, topk
from selective_kernels._triton import read
from selective_kernels.sampling import LINE
from selective_kernels.score import FAMILIES
from selective_kernels.testing import assert_same_index

EXAMPLES = 25 if INTERPRETED else 400
# As in topkproblems, but small: one tile takes the interpreter some 20 ms.
SHAPES = [(), (0,), (7,), (2, 3, 5, 7), (4096,), (17, 241), (33, 5, 25)]
TENSORS = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(STYLES),
    st.sampled_from([True, True, True, False]),
)
SMALL = st.builds(
    Problem,
    st.lists(TENSORS, min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.003, 0.3, 1.0]),
)
# Enough for a threshold from a sample, with several tiles, in tensors of all dtypes and layouts.
LARGE = [(150, 151), (4096 * 2 + 1,), (0,), (10_003,), (64, 64), (9,)]


def large(dtype, seed=11, layout_of=lambda i: "plain", style="normal"):
    return Problem([(shape, dtype, layout_of(i), style, True) for i, shape in enumerate(LARGE)], seed, 0.01)


@given(SMALL, SCORES, K, st.randoms(use_true_random=False))
@example(Problem([], 0, 0.0), Score(2.0, 1.0), "one", None)  # no tensors at all
@settings(max_examples=EXAMPLES)
def test_c4_topk_equals_sorting(ranking, problem, score, k, shuffle):
    """C2, C3, C4: bit-equal lists, gradients and thresholds, added at once or in any sets."""
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    k = resolve_k(k, len(ranked.scores))
    sets = [problem.with_grad]
    if shuffle is not None and shuffle.random() < 0.5:
        sets = [[], [], []]
        for i in problem.with_grad:
            shuffle.choice(sets).append(i)
        shuffle.shuffle(sets)
    assert_same_scan(problem.scan(k, score, sets, "triton", DEVICE), problem.expected(k, ranked))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_c4_sampled_threshold(ranking, dtype, exponent):
    """C4: large enough for a sampled threshold, which costs no second read here."""
    problem, score = large(dtype), Score(exponent, 1.0)
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    k = {0.5: 1, 1.0: 5000}.get(exponent, 300)
    assert_same_scan(problem.scan(k, score, [[0, 1, 2, 3, 4, 5]], "triton", DEVICE), problem.expected(k, ranked))


def test_c1_mixed_dtypes_and_addresses(ranking):
    """C1: one launch over tensors of all dtypes, some at addresses that allow no vector loads."""
    tensors = [
        (shape, dtype, place, "normal", True)
        for shape, dtype, place in zip(LARGE, [*DTYPES, *DTYPES], ["offset", "plain"] * 3, strict=True)
    ]
    problem, score = Problem(tensors, 3, 0.01), Score(2.0, 1.0)
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    order = [problem.with_grad]
    assert_same_scan(problem.scan(700, score, order, "triton", DEVICE), problem.expected(700, ranked))


@pytest.mark.parametrize("place", ["plain", "offset"])
def test_c4_unaligned_tensors_give_the_same(ranking, place):
    """Gradient views of DDP start anywhere: another path, the same bits."""
    problem, score = large(torch.float32, layout_of=lambda _: place), Score(1.0, 1.0)
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    assert_same_scan(
        problem.scan(200, score, [[0, 1, 3, 4, 5]], "triton", DEVICE),
        Problem.expected(without(problem, 2), 200, ranked),
    )


def without(problem, i):
    """The problem with a tensor that has no gradient."""
    problem.grads[i] = None
    return problem


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [1, 400, [60, 5, 3, 0, 70, 10**6]])
def test_c4_every_score(family, k):
    """C2-C4: the same list as on the CPU kernels, globally and within each tensor."""
    problem = large(torch.float32, style="ties" if family in ("product", "given") else "normal")
    score = Score(family=family, seed=2**63 + 7)
    grads = problem.grads if score.needs_grad else [None] * len(LARGE)
    expected = topk(problem.params, grads, k, score, problem.index, backend="cpu")
    index = SparseIndex(problem.index.offsets.to(DEVICE), problem.index.starts)
    there = [None if grad is None else grad.to(DEVICE) for grad in grads]
    found = topk([param.to(DEVICE) for param in problem.params], there, k, score, index, backend="triton")
    assert_same_index(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_c2_subnormal_numbers_of_every_dtype_count(ranking, dtype):
    """C2: subnormals kept, in full tiles and in others."""
    smallest = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}[dtype]
    factors = torch.from_numpy(np.random.default_rng(3).integers(0, 100, 5000)).double()
    params, grads = [torch.zeros(5000, dtype=dtype)], [(factors * smallest).to(dtype)]
    for score in (Score(0.0), Score(2.0, 2.0**-40)):
        expected = ranking(params, grads, score).top(200)
        found = topk([p.to(DEVICE) for p in params], [g.to(DEVICE) for g in grads], 200, score, backend="triton")
        assert_same_index(found, expected)


def test_c3_nothing_to_score_by_gradient_only():
    params = [torch.ones(5, device=DEVICE), torch.ones(6, device=DEVICE)]
    assert topk(params, [None, None], 4, Score(), backend="triton").starts == [0, 0, 0]
    assert topk(params, [None, torch.ones(6, device=DEVICE)], 4, Score(), backend="triton").starts == [0, 0, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_c9_nonfinite_gradients_are_seen(dtype, bad):
    """C9: anywhere, also where an entry is selected already, and in a scan that selects nothing."""
    numel = 4096 + 21
    table = Table([torch.zeros(numel, dtype=dtype, device=DEVICE)])
    index = SparseIndex.from_lists([[5, 4095, 4096]])
    index = SparseIndex(index.offsets.to(DEVICE), index.starts)
    for position in (None, 0, 5, 4095, 4096, numel - 1):
        grad = torch.ones(numel, dtype=dtype)
        if position is not None:
            grad[position] = bad
        for k in (0, 3):
            running = scan(table, index, k, Score(), backend="triton")
            running.add([0], [grad.to(DEVICE)], torch.empty(3, device=DEVICE))
            assert running.nonfinite is (position is not None), (position, k)


# ---------------------------------------------------------------------- thresholds that mislead (design, section 2)


def sampled(count, stride=LINE):
    """Entries that the sample of `_triton/sample.py` sees, one line of 16 in each `stride` lines."""
    entries = np.zeros(count, bool)
    for i in range(-(-count // LINE) // stride):
        x = i + 1
        for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
            x = (x ^ x >> shift) * factor & 2**32 - 1
        line = i * stride + (x ^ x >> 15) % stride
        entries[line * LINE : (line + 1) * LINE] = True
    return entries


N = 24_001
STRIDE = 8


def adversaries():
    rng = np.random.default_rng(0)
    normal = np.abs(rng.standard_normal(N)).astype(np.float32)
    lines = sampled(N, STRIDE)
    some = np.zeros(N, np.float32)
    some[-1] = 1e-3
    return {
        "all_equal": np.ones(N, np.float32),
        "two_values": rng.choice(np.float32([1.0, 3.0]), N),
        "all_zero": np.zeros(N, np.float32),
        "one_at_the_end": some,
        "rising": np.arange(1, N + 1, dtype=np.float32),
        "falling": np.arange(N, 0, -1, dtype=np.float32),
        "large_in_the_sample_only": np.where(lines, 1e3, 1.0).astype(np.float32) * normal,
        "nothing_in_the_sample": np.where(lines, 0.0, normal).astype(np.float32),
        "subnormal": rng.integers(0, 2**23, N).astype(np.uint32).view(np.float32),
        "huge_range": np.exp2(rng.uniform(-149.0, 127.9, N)).astype(np.float32),
    }


def run(grad, k, hint=None, index=None):
    index = SparseIndex.empty(1) if index is None else index
    there = SparseIndex(index.offsets.to(DEVICE), index.starts)
    running = scan([torch.zeros(len(grad), device=DEVICE)], there, k, Score(), hint=hint, backend="triton")
    running.add([0], [grad.to(DEVICE)])
    return running.finalize(), running.passes


@pytest.mark.parametrize("name", adversaries())
@pytest.mark.parametrize("k", [1, 5000])
def test_c4_adversarial(ranking, name, k):
    """C3, C4: ties, plateaus wider than the room for candidates, misled samples: exact, by counts."""
    grad = torch.from_numpy(adversaries()[name])
    expected = ranking([torch.zeros(N)], [grad], Score())
    found, passes = run(grad, k)
    assert_same_index(found, expected.top(k))
    if name in ("large_in_the_sample_only",) and k == 5000:
        assert passes > 1  # so the sample is indeed misled


@pytest.mark.parametrize("hint", [0.0, -1.0, math.inf, 1e30, 3.5e38, 1e-45, 2.0**-120, math.nan, "kth", "above"])
def test_c4_any_hint(ranking, hint):
    grad = torch.from_numpy(np.abs(np.random.default_rng(1).standard_normal(6000)).astype(np.float32))
    expected = ranking([torch.zeros(6000)], [grad], Score())
    kth = np.float32(expected.threshold(70))
    hint = {"kth": float(kth), "above": float(np.nextafter(kth, np.float32(np.inf)))}.get(hint, hint)
    found, passes = run(grad, 70, hint)
    assert_same_index(found, expected.top(70))
    assert (passes == 1) is not (hint > kth)


def test_c3_the_current_top_is_left_out(ranking):
    """C3: leaving out exactly the best 2000 gives the next ones, in one read: the sample leaves them out, too."""
    grad = torch.from_numpy(adversaries()["rising"])
    index = ranking([torch.zeros(N)], [grad], Score()).top(2000)
    found, passes = run(grad, 300, None, index)
    assert_same_index(found, ranking([torch.zeros(N)], [grad], Score(), index).top(300))
    assert passes == 1
    everything = SparseIndex.from_lists([torch.arange(N)])
    assert run(grad, 300, None, everything)[0].count == 0


@pytest.mark.parametrize("room", [3000, 5000])
def test_no_memory_for_candidates_means_more_passes(ranking, monkeypatch, room):
    """The result is that of enough memory, and a warning tells of the longer way."""
    grad = torch.from_numpy(np.random.default_rng(2).standard_normal(9000).astype(np.float32))
    allocate = read.allocate

    def limited(count, device):
        if count > room:
            raise torch.OutOfMemoryError("a test's limit")
        return allocate(count, device)

    monkeypatch.setattr(read, "allocate", limited)
    monkeypatch.setattr("selective_kernels._triton.repairing.allocate", limited)
    with pytest.warns(UserWarning, match="out of memory for .* candidates"):
        found, passes = run(grad, 6000)
    assert_same_index(found, ranking([torch.zeros(9000)], [grad], Score()).top(6000))
    assert passes > 8


def test_a_scan_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("selective_kernels._triton.plan.MAX_ENTRIES", 100)
    with pytest.raises(ValueError, match="params: expected fewer than 100 entries in one scan, got 200"):
        run(torch.ones(200), 3)


def test_flat_positions_beyond_32_bits():
    """Totals of 2^31 and more: candidates hold 33 bits of the position; here those of tensors far back in the table."""
    table = Table([torch.zeros(10, device=DEVICE), torch.zeros(5000, device=DEVICE)])
    table.numels[0] = 2**31 - 1  # what the positions of the second tensor are counted from; nothing reads the first
    with table.pinned():
        running = scan(table, SparseIndex.empty(2, device=DEVICE), 3, Score(), backend="triton")
        running.add([1], [torch.arange(1.0, 5001.0, device=DEVICE)])
        found = running.finalize()
    assert found.starts == [0, 0, 3]
    assert found.valid.tolist() == [4997, 4998, 4999]
