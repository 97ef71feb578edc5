"""The exact top-k (C1-C4) on CUDA kernels: on a GPU if there is one, else on the emulation, where the tests of every
backend cover more.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cudatests import CUDA_AVAILABLE, CUDA_DEVICE, ON_GPU, on_cuda_kernels
from hypothesis import example, given, settings
from hypothesis import strategies as st
from topkproblems import DTYPES, EXPONENTS, LARGE, PROBLEMS, SCORES, K, Problem, assert_same_scan, resolve_k

from selective_kernels import Score, SparseIndex, Table, scan, topk
from selective_kernels._cuda import read
from selective_kernels.sampling import LINE
from selective_kernels.score import FAMILIES
from selective_kernels.testing import assert_same_index

pytestmark = pytest.mark.skipif(not CUDA_AVAILABLE, reason="a GPU that the CUDA kernels do not serve")


@pytest.fixture(autouse=True, scope="module")
def kernels():
    with on_cuda_kernels():
        yield


def there(index):
    return SparseIndex(index.offsets.to(CUDA_DEVICE), list(index.starts))


@given(PROBLEMS, SCORES, K, st.randoms(use_true_random=False))
@example(Problem([], 0, 0.0), Score(2.0, 1.0), "one", None)  # no tensors at all
@settings(max_examples=400 if ON_GPU else 40)
def test_c4_topk_equals_sorting(ranking, problem, score, k, shuffle):
    """C2, C3, C4: bit-equal lists, gradients and thresholds, added at once or in any sets."""
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    k = resolve_k(k, len(ranked.scores))
    sets = [problem.with_grad]
    if shuffle is not None and shuffle.random() < 0.7:
        sets = [[], [], []]
        for i in problem.with_grad:
            shuffle.choice(sets).append(i)
        shuffle.shuffle(sets)
    assert_same_scan(problem.scan(k, score, sets, "cuda", CUDA_DEVICE), problem.expected(k, ranked))


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize("name", ["ties", "normal"])
def test_c4_any_order_of_blocks_and_warps(ranking, monkeypatch, name, seed):
    """C4: candidates come in any order, and the last block of a kernel may be any of them."""
    monkeypatch.setenv("SELECTIVE_EMULATION_ORDER", seed)
    problem = Problem([(shape, torch.float32, "plain", name, True) for shape in LARGE], 5, 0.01)
    score = Score(1.0, 1.0)
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    expected = problem.expected(3000, ranked)
    assert_same_scan(problem.scan(3000, score, [[0, 1, 2, 3, 4, 5]], "cuda", CUDA_DEVICE), expected)
    assert_same_scan(problem.scan(3000, score, [[5, 0][::-1], [1, 2], [3, 4]], "cuda", CUDA_DEVICE), expected)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_c1_mixed_dtypes_and_addresses(ranking, exponent):
    """C1: one scan over tensors of all dtypes, some at addresses that allow no vector loads of both arrays."""
    tensors = [
        (shape, dtype, place, "normal", True)
        for shape, dtype, place in zip(LARGE, [*DTYPES, *DTYPES], ["offset", "plain"] * 3, strict=True)
    ]
    problem, score = Problem(tensors, 3, 0.01), Score(exponent, 1.0)
    ranked = ranking(problem.params, problem.grads, score, problem.index)
    assert_same_scan(problem.scan(700, score, [problem.with_grad], "cuda", CUDA_DEVICE), problem.expected(700, ranked))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("skipped", range(9))
def test_gradients_at_any_address(ranking, dtype, skipped):
    """Views into buckets start anywhere: entries before and after the 128-bit loads count, too."""
    rng = np.random.default_rng(skipped)
    for numel in (1, 5, 4096, 2 * 4096 + 3 - skipped):
        params = [torch.from_numpy(rng.standard_normal(numel, np.float32)).to(dtype)]
        room = torch.from_numpy(rng.standard_normal(numel + skipped, np.float32)).to(dtype)
        k, score = max(numel // 50, 1), Score(2.0, 1.0)
        expected = ranking(params, [room[skipped:]], score).top(k)
        found = topk([params[0].to(CUDA_DEVICE)], [room.to(CUDA_DEVICE)[skipped:]], k, score, backend="cuda")
        assert_same_index(SparseIndex(found.offsets.cpu(), found.starts), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("k", [1, 4000, [60, 5, 3, 0, 70, 10**6]])
def test_c4_every_score(family, k):
    """C2-C4: the same list as on the CPU kernels, globally and within each tensor."""
    style = "ties" if family in ("product", "given") else "normal"
    problem = Problem([(shape, torch.float32, "plain", style, True) for shape in LARGE], 11, 0.01)
    score = Score(family=family, seed=2**63 + 7)
    grads = problem.grads if score.needs_grad else [None] * len(LARGE)
    expected = topk(problem.params, grads, k, score, problem.index, backend="cpu")
    mine = [None if grad is None else grad.to(CUDA_DEVICE) for grad in grads]
    params = [param.to(CUDA_DEVICE) for param in problem.params]
    found = topk(params, mine, k, score, there(problem.index), backend="cuda")
    assert_same_index(SparseIndex(found.offsets.cpu(), found.starts), expected)


def test_given_keys_may_go(ranking):
    """Keys that are overwritten after `add` have counted, also where the first threshold was misleading."""
    values = [torch.from_numpy(rng.random(20_000, np.float32)) for rng in map(np.random.default_rng, range(3))]
    values[1][5000:] = 1.0  # a plateau that has no room among the candidates
    table = Table([torch.zeros(20_000, device=CUDA_DEVICE) for _ in values])
    running = scan(table, SparseIndex.empty(3, device=CUDA_DEVICE), 30, Score(family="given"), backend="cuda")
    for i in (2, 0, 1):
        keys = values[i].to(CUDA_DEVICE, copy=True)
        running.add([i], [keys])
        keys.fill_(7.0)
    expected = ranking([torch.zeros(20_000)] * 3, values, Score(0.0)).top(30)
    found = running.finalize()
    assert_same_index(SparseIndex(found.offsets.cpu(), found.starts), expected)
    assert running.passes > 3


# ---------------------------------------------------------------------- thresholds that mislead (design, section 2)

N = 60_001
STRIDE = 8


def sampled(count):
    """Entries that the sample of csrc/cuda/sample.cuh sees, one line of 16 in each STRIDE lines."""
    entries = np.zeros(count, bool)
    for i in range(-(-count // LINE) // STRIDE):
        x = i + 1
        for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
            x = (x ^ x >> shift) * factor & 2**32 - 1
        line = i * STRIDE + (x ^ x >> 15) % STRIDE
        entries[line * LINE : (line + 1) * LINE] = True
    return entries


def run(grad, k, hint=None, index=None):
    index = SparseIndex.empty(1) if index is None else index
    running = scan([torch.zeros(len(grad), device=CUDA_DEVICE)], there(index), k, Score(), hint=hint, backend="cuda")
    running.add([0], [grad.to(CUDA_DEVICE)])
    found = running.finalize()
    return SparseIndex(found.offsets.cpu(), found.starts), running.passes


@pytest.mark.parametrize(
    ("name", "k", "hint", "most"),
    [
        ("ordinary", 1000, None, 1),
        ("ordinary", 1000, "kth", 1),
        ("ordinary", 1000, "above", 5),  # one entry is missing: three digits of scores, then their entries
        ("ordinary", 1000, math.inf, 5),
        ("ordinary", 1000, math.nan, 1),
        ("ordinary", N + 1, 0.5, 3),  # more are wanted than there are: the first digit tells
        ("all_equal", 1000, None, 8),  # a plateau: digits of positions as well
        ("large_in_the_sample_only", 9000, None, 5),
        ("nothing_in_the_sample", 1000, None, 5),  # everything is a candidate, and has no room
    ],
)
def test_c4_passes_tell_of_repairs(ranking, name, k, hint, most):
    """Design section 2: one read unless the threshold was misleading; then more, fewer if a digit decides early."""
    normal = np.abs(np.random.default_rng(0).standard_normal(N)).astype(np.float32)
    grad = torch.from_numpy(
        {
            "ordinary": normal,
            "all_equal": np.ones(N, np.float32),
            "large_in_the_sample_only": np.where(sampled(N), 1e3, 1.0).astype(np.float32) * normal,
            "nothing_in_the_sample": np.where(sampled(N), 0.0, normal).astype(np.float32),
        }[name]
    )
    ranked = ranking([torch.zeros(N)], [grad], Score())
    kth = np.float32(ranked.threshold(k))
    hint = {"kth": float(kth), "above": float(np.nextafter(kth, np.float32(np.inf)))}.get(hint, hint)
    found, passed = run(grad, k, hint)
    assert_same_index(found, ranked.top(k))
    assert passed == 1 if most == 1 else 3 <= passed <= most


@pytest.mark.parametrize("hint", [0.0, -0.0, -1.0, -math.inf, 1e30, 3.5e38, 1e-45, 2.0**-120])
def test_c4_any_hint(ranking, hint):
    grad = torch.from_numpy(np.abs(np.random.default_rng(1).standard_normal(6000)).astype(np.float32))
    found, _ = run(grad, 70, hint)
    assert_same_index(found, ranking([torch.zeros(6000)], [grad], Score()).top(70))


@pytest.fixture
def limit_memory(monkeypatch):
    """limit_memory(room): no more than so many candidates at once."""
    allocate = read.allocate

    def limit(room):
        def limited(count, device):
            if count > room:
                raise torch.OutOfMemoryError("a test's limit")
            return allocate(count, device)

        monkeypatch.setattr(read, "allocate", limited)

    return limit


def test_little_memory_for_candidates_means_more_passes(ranking, limit_memory):
    """The result is that of enough memory, and a warning tells of the longer way."""
    grad = torch.from_numpy(np.random.default_rng(2).standard_normal(9000).astype(np.float32))
    limit_memory(7000)
    with pytest.warns(UserWarning, match="out of memory for .* candidates"):
        found, passes = run(grad, 6000)
    assert_same_index(found, ranking([torch.zeros(9000)], [grad], Score()).top(6000))
    assert 3 <= passes <= 5


@pytest.mark.filterwarnings("ignore:out of memory for")
def test_no_memory_for_what_is_wanted_is_an_error(limit_memory):
    limit_memory(5000)
    with pytest.raises(torch.OutOfMemoryError, match="a test's limit"):
        run(torch.ones(9000), 6000)


def test_a_scan_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("selective_kernels._cuda.plan.MAX_ENTRIES", 100)
    with pytest.raises(ValueError, match="params: expected at most 100 entries in one scan, got 200"):
        run(torch.ones(200), 3)


def test_flat_positions_beyond_32_bits():
    """Totals of 2^31 and more: a plateau far back in the table, whose order a repair has to count out."""
    table = Table([torch.zeros(10, device=CUDA_DEVICE), torch.zeros(9000, device=CUDA_DEVICE)])
    table.numels[0] = 2**31 - 1  # what the positions of the second tensor are counted from; nothing reads the first
    with table.pinned():
        running = scan(table, SparseIndex.empty(2, device=CUDA_DEVICE), 3, Score(), hint=2.0, backend="cuda")
        running.add([1], [torch.ones(9000, device=CUDA_DEVICE)])
        found = running.finalize()
    assert found.starts == [0, 0, 3]
    assert found.valid.tolist() == [0, 1, 2]
    assert running.passes == 8
