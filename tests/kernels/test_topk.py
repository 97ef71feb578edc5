"""The exact top-k (C1-C4) against sorting, over generated lists of tensors, and its gathered gradients."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from selective_kernels import Score, SparseIndex, Table, scan, topk, topk_ref
from selective_kernels.testing import assert_bitwise_equal, assert_same_index, raw_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

SHAPES = [
    (),  # a scalar parameter
    (0,),  # nothing
    (3, 0),  # nothing, in two dimensions
    (1,),
    (7,),  # shorter than every vector
    (2, 3, 5, 7),  # four dimensions
    (4096,),  # one tile
    (17, 241),  # one tile and a last vector of one entry
    (33, 5, 25),  # one tile and a rest that no vector length divides
    (65536 + 4096 + 3,),  # more than one task of 16 tiles, then a short last tile
]

# Where a gradient lives: as it is, one entry past an aligned address, every second entry of a buffer, with
# reversed strides, one value for all entries.
LAYOUTS = ["plain", "offset", "strided", "transposed", "expanded"]

VALUES = ["normal", "ties", "wide", "sparse", "nonfinite"]

# 0, 1/2, 1 and 2 have arithmetic of their own; the others go through pow, one of them falling.
EXPONENTS = [0.0, 0.5, 1.0, 2.0, 1.7, -1.0]
EPS = [1.0, 1e-8, 2.0**-30]

SHARES = [0.0, 0.003, 0.3, 1.0]  # of entries that are selected already

# Enough for the threshold to come from a sample (131072 entries or more), over tensors of unequal sizes.
LARGE = [(300, 301), (4096 * 3 + 1,), (0,), (100_003,), (64, 1024), (9,)]


def make_values(style: str, count: int, rng: np.random.Generator) -> np.ndarray:
    if style == "ties":
        return rng.choice(np.float32([-1.0, -0.5, 0.0, 0.5, 1.0]), count)
    if style == "wide":
        return np.float32(rng.choice([-1.0, 1.0], count) * np.exp2(rng.uniform(-149.0, 127.9, count)))
    values = rng.standard_normal(count, np.float32)
    if style == "sparse":
        return values * (rng.random(count) < 0.01)
    if style == "nonfinite":
        bad = rng.random(count) < 0.01
        values[bad] = rng.choice(np.float32([np.inf, -np.inf, np.nan, -0.0]), int(bad.sum()))
    return values


def make_tensor(shape: tuple[int, ...], dtype: torch.dtype, layout: str, values: np.ndarray) -> torch.Tensor:
    flat = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    if layout == "offset":
        return torch.cat([torch.zeros(1, dtype=dtype), flat])[1:].view(shape)
    if layout == "strided":
        return flat.repeat_interleave(2)[::2].as_strided(shape, [2 * s for s in torch.empty(shape).stride()])
    if layout == "transposed":
        return flat.view(shape[::-1]).permute(tuple(reversed(range(len(shape)))))
    if layout == "expanded" and len(flat):
        return flat[0].expand(shape)
    return flat.view(shape)


class Problem:
    """Tensors, gradients (some None) and an index of selected entries, from a seed."""

    def __init__(self, tensors, seed, share):
        rng = np.random.default_rng(seed)
        self.params, self.grads, selected = [], [], []
        for shape, dtype, layout, style, has_grad in tensors:
            count = math.prod(shape)
            param_layout = "offset" if layout == "offset" else "plain"
            param_style = "normal" if style in ("sparse", "ties") else style
            self.params.append(make_tensor(shape, dtype, param_layout, make_values(param_style, count, rng)))
            grad = make_tensor(shape, dtype, layout, make_values(style, count, rng))
            self.grads.append(grad if has_grad else None)
            selected.append(torch.from_numpy(np.flatnonzero(rng.random(count) < share)))
        self.index = SparseIndex.from_lists(selected)

    def scan(self, k, score, order, backend="auto"):
        """Everything that a scan says, with the tensors added in the sets and the order of `order`."""
        table = Table(self.params)
        running = scan(table, self.index, k, score, backend=backend)
        selected_grads = torch.full((self.index.count + 3,), math.nan)
        for tensors in order:
            running.add(tensors, [self.grads[i] for i in tensors], selected_grads)
        nonfinite, new = running.nonfinite, running.finalize()
        fresh = torch.full((new.count,), math.nan)
        running.gather(new, fresh)
        return new, selected_grads, fresh, nonfinite, running.threshold

    def expected(self, k, ranked):
        """What `scan` has to say, by sorting and plain indexing."""
        new = ranked.top(k)
        selected_grads = torch.full((self.index.count + 3,), math.nan)  # where there is no gradient nothing is written
        fresh = torch.full((new.count,), math.nan)
        for i, grad in enumerate(self.grads):
            for index, out in ((self.index, selected_grads), (new, fresh)):
                if grad is not None:
                    out[index.starts[i] : index.starts[i + 1]] = grad.reshape(-1)[index.of(i).long()].float()
        nonfinite = any(not bool(grad.isfinite().all()) for grad in self.grads if grad is not None)
        return new, selected_grads, fresh, nonfinite, ranked.threshold(k)

    @property
    def with_grad(self):
        return [i for i, grad in enumerate(self.grads) if grad is not None]


def assert_same_scan(actual, expected):
    assert_same_index(actual[0], expected[0])
    assert_bitwise_equal(actual[1], expected[1], "gradients of the selected entries")
    assert_bitwise_equal(actual[2], expected[2], "gradients of the new entries")
    assert actual[3:] == expected[3:]


TENSORS = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(VALUES),
    st.sampled_from([True, True, True, False]),
)
PROBLEMS = st.builds(
    Problem, st.lists(TENSORS, min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.sampled_from(SHARES)
)
SCORES = st.builds(Score, st.sampled_from(EXPONENTS), st.sampled_from(EPS), st.just("d3"), st.just(0))
K = st.sampled_from(["none", "one", "some", "most", "all", "more"])


def resolve_k(k, selectable):
    some, most = 1 + selectable // 100, selectable - selectable // 3
    return {"none": 0, "one": 1, "some": some, "most": most, "all": selectable, "more": selectable + 7}[k]


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
    for actual in everywhere(lambda: problem.scan(k, score, order)).values():
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
    for actual in everywhere(lambda: problem.scan(k, score, sets)).values():
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
            for actual in everywhere(lambda k=k, order=order: problem.scan(k, score, order)).values():
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

            assert set(everywhere(flag).values()) == {position is not None}, (position, k)


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
