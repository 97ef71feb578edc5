"""C2-C4 for the scores besides D3: product, magnitude, random and given keys, on every path and against numpy."""

import numpy as np
import pytest
import torch

from selective_kernels import Score, SparseIndex, Table, scan, topk
from selective_kernels.score import LARGEST_BITS, score_ref
from selective_kernels.testing import assert_bitwise_equal, assert_same_index

FAMILIES = ["product", "magnitude", "random", "given"]
SHAPES = [(70, 61), (1,), (0,), (4099,), (5, 7), (8192,), ()]  # over and under the 4096-entry tile, odd ends
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What float32 arithmetic meets at its ends: zeros, subnormals, the largest numbers, inf and NaN.
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3.4028234663852886e38, float("inf"), -float("inf"), float("nan")]


def tensors(dtype, seed, levels=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in SHAPES:
        value = torch.randn(shape, generator=generator)
        made.append(((value * levels).round() / levels if levels else value).to(dtype))
    return made


def numpy_keys(family, grad, param, tensor, seed):
    """The same scores from their definition, in numpy."""
    theta = np.abs(param.float().reshape(-1).numpy())
    if family == "given":
        return grad.reshape(-1).numpy()
    if family == "product":
        with np.errstate(all="ignore"):
            return np.abs(grad.float().reshape(-1).numpy()) * theta
    if family == "magnitude":
        bits = theta.view(np.uint32)
        return np.where(bits < LARGEST_BITS, LARGEST_BITS - bits, 0).astype(np.uint32).view(np.float32)
    return np.array([random_key(seed, tensor, i) for i in range(theta.size)], np.uint32).view(np.float32)


def random_key(seed, tensor, offset):
    """csrc/score.h's random_key in Python's own integers."""

    def mix32(x):
        x = (x ^ x >> 16) * 0x21F0AAAD & 2**32 - 1
        x = (x ^ x >> 15) * 0xD35A2D97 & 2**32 - 1
        return x ^ x >> 15

    def mix64(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        x = (x ^ x >> 27) * 0x94D049BB133111EB & 2**64 - 1
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    salt = mix64((mix64((seed + golden) & 2**64 - 1) + (tensor + 1) * golden) & 2**64 - 1)
    return (mix32((mix32(offset ^ salt & 2**32 - 1) + (salt >> 32)) & 2**32 - 1) >> 2) + 0x20000000


def oracle(family, params, grads, k, index, seed=0):
    """The best k by a full sort of numpy scores; k may be a list, for a top-k within each tensor."""
    keys, owners, offsets = [], [], []
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is None and family in ("product", "given"):
            continue
        key = numpy_keys(family, grad, param, i, seed)
        selectable = np.isfinite(key) & (key > 0)
        selectable[index.of(i).numpy()] = False
        found = np.flatnonzero(selectable)
        if isinstance(k, list):
            found = np.sort(found[np.argsort(-key[found], kind="stable")[: k[i]]])
        keys.append(key[found])
        owners.append(np.full(len(found), i))
        offsets.append(found)
    key, owner, offset = np.concatenate(keys), np.concatenate(owners), np.concatenate(offsets)
    best = np.arange(len(key)) if isinstance(k, list) else np.lexsort((offset, owner, -key))[:k]
    return SparseIndex.from_lists([np.sort(offset[best][owner[best] == i]) for i in range(len(params))])


def some_selected(params, seed):
    generator = torch.Generator().manual_seed(seed)
    return SparseIndex.from_lists(
        [(torch.rand(p.numel(), generator=generator) < 0.1).nonzero().reshape(-1) for p in params]
    )


def gradients(family, params, seed, levels=0):
    """Gradients of the parameters' dtypes; for given keys float32 of either sign, which only counts above zero."""
    made = tensors(torch.float32, seed, levels)
    return made if family == "given" else [g.to(p.dtype) for g, p in zip(made, params, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_c2_scores_are_those_of_the_definition(family, dtype):
    param = torch.cat(
        [tensors(dtype, 0)[0].reshape(-1), torch.tensor(SPECIAL).to(dtype).repeat_interleave(len(SPECIAL))]
    )
    grad = torch.cat([tensors(dtype, 1)[0].reshape(-1), torch.tensor(SPECIAL).to(dtype).repeat(len(SPECIAL))])
    grad = grad.float() if family == "given" else grad
    score = Score(family=family, seed=2**63 + 7)
    actual = score_ref(grad if score.needs_grad else None, param, score, tensor=3)
    expected = torch.from_numpy(numpy_keys(family, grad, param, 3, 2**63 + 7))
    same = actual.isnan() & expected.isnan()
    assert_bitwise_equal(torch.where(same, 0.0, actual), torch.where(same, 0.0, expected))


@pytest.mark.parametrize("levels", [0, 2], ids=["continuous", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_c4_topk_equals_sorting(family, dtype, levels, everywhere):
    params = tensors(dtype, 0, levels)
    grads = gradients(family, params, 1, levels)
    grads[3] = None
    index = some_selected(params, 2)
    score = Score(family=family, seed=5)
    for k in (0, 1, 500, 5000, 10**6):
        expected = oracle(family, params, grads, k, index, 5)
        assert_same_index(topk(params, grads, k, score, index, backend="reference"), expected)
        for name, found in everywhere(
            lambda k=k: topk(params, grads, k, score, index), triton=k == 500 and levels > 0
        ).items():
            assert found.starts == expected.starts, f"{name}, k={k}"
            assert_same_index(found, expected)


@pytest.mark.parametrize("family", ["d3", *FAMILIES])
def test_c4_topk_within_each_tensor(family, everywhere):
    params = tensors(torch.float32, 0, 3)
    grads = gradients(family, params, 1, 3)
    index = some_selected(params, 2)
    counts = [700, 1, 4, 0, 35, 10**6, 1]
    score = Score(family=family, seed=1, exponent=0.0)
    as_keys = [grad.abs() for grad in grads] if family == "d3" else grads  # with exponent 0 these are the scores
    expected = oracle(family if family != "d3" else "given", params, as_keys, counts, index, 1)
    assert_same_index(topk(params, grads, counts, score, index, backend="reference"), expected)
    for name, found in everywhere(lambda: topk(params, grads, counts, score, index)).items():
        assert found.starts == expected.starts, name
        assert_same_index(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hint", [0.0, 1e-30, 1.0, 1e30, float("inf")])
def test_any_hint_gives_the_same_entries(family, hint):
    params = tensors(torch.float32, 0)
    grads = gradients(family, params, 1)
    index = SparseIndex.empty(len(params))
    expected = oracle(family, params, grads, 900, index)
    assert_same_index(topk(params, grads, 900, Score(family=family), index, hint=hint), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_values_on_every_path(family, everywhere):
    param = torch.tensor(SPECIAL).repeat(500)
    grad = torch.tensor(SPECIAL).repeat_interleave(500)
    for k in (1, 700, 5000):
        expected = oracle(family, [param], [grad], k, SparseIndex.empty(1))
        for found in everywhere(lambda k=k: topk([param], [grad], k, Score(family=family)), triton=k == 700).values():
            assert_same_index(found, expected)


def test_given_keys_are_read_when_added_only():
    """A caller makes keys tensor by tensor and overwrites them: nothing may be read again, in any order."""
    params = [torch.zeros(5000) for _ in range(6)]
    keys = [torch.rand(5000, generator=torch.Generator().manual_seed(i)) * 10.0 ** (i % 3) for i in range(6)]
    expected = topk(params, [key.clone() for key in keys], 700, Score(family="given"), backend="reference")
    for order in (range(6), reversed(range(6))):
        running = scan(params, SparseIndex.empty(6), 700, Score(family="given"))
        for i in order:
            buffer = keys[i].clone()
            running.add([i], [buffer])
            buffer.fill_(1e30)
        assert_same_index(running.finalize(), expected)
        assert running.passes == 6


def test_random_is_uniform_and_depends_on_the_seed():
    """Chi-square over 64 equal pieces, at a fixed seed: the 99.9 % quantile with 63 degrees of freedom is 103.4."""
    params = [torch.zeros(1 << 16), torch.zeros(1 << 16)]
    chosen = [topk(params, [None, None], 8192, Score(family="random", seed=seed)) for seed in (0, 1)]
    for found in chosen:
        pieces = torch.cat([found.of(0).long(), found.of(1).long() + (1 << 16)]) // 2048
        counts = torch.bincount(pieces, minlength=64).double()
        assert float(((counts - 128) ** 2 / 128).sum()) < 103.4
        low_bits = torch.bincount(torch.cat([found.of(0), found.of(1)]) % 64, minlength=64).double()
        assert float(((low_bits - 128) ** 2 / 128).sum()) < 103.4
    shared = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in
                 ((chosen[0].of(i), chosen[1].of(i)) for i in range(2)))  # fmt: skip
    assert 400 < shared < 624  # two independent sets share 512 of 8192 on average, deviation 22


def test_random_does_not_depend_on_what_the_tensors_hold():
    shapes = [torch.zeros(4099), torch.zeros(70)]
    noise = [torch.full((4099,), float("nan")), torch.randn(70)]
    score = Score(family="random", seed=3)
    assert_same_index(topk(shapes, [None, None], 300, score), topk(noise, [None, None], 300, score))
    halves = [t.bfloat16() for t in shapes]
    assert_same_index(topk(shapes, [None, None], 300, score), topk(halves, [None, None], 300, score))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors_name_what_is_wrong(backend):
    params, index = [torch.ones(4)], SparseIndex.empty(1)
    with pytest.raises(ValueError, match=r"family: expected one of .*, got 'fisher'"):
        scan(params, index, 1, Score(family="fisher"), backend=backend)
    with pytest.raises(ValueError, match=r"seed: expected an integer in \[0, 2\^64\), got -1"):
        scan(params, index, 1, Score(family="random", seed=-1), backend=backend)
    with pytest.raises(ValueError, match=r"k: expected 1 integers >= 0, one per tensor, got \[1, 2\]"):
        scan(params, index, [1, 2], Score(), backend=backend)
    with pytest.raises(ValueError, match=r"k: expected 1 integers >= 0, one per tensor, got \[-1\]"):
        scan(params, index, [-1], Score(), backend=backend)
    with pytest.raises(ValueError, match=r"grads: expected gradients for a score of family 'product', got None"):
        scan(params, index, 1, Score(family="product"), backend=backend).add([0], None)
    with pytest.raises(ValueError, match=r"grads: expected None for a score of family 'magnitude'"):
        scan(params, index, 1, Score(family="magnitude"), backend=backend).add([0], [torch.ones(4)])
    with pytest.raises(ValueError, match=r"grads_out: expected None for a score of family 'random'"):
        scan(params, index, 1, Score(family="random"), backend=backend).add([0], None, torch.empty(0))
    given = Score(family="given")
    with pytest.raises(TypeError, match=r"grads: expected scores of dtype float32, got torch.float64"):
        scan(params, index, 1, given, backend=backend).add([0], [torch.ones(4).double()])
    with pytest.raises(ValueError, match=r"grads: expected dense scores of shape \(4,\) on cpu, got \(2, 2\)"):
        scan(params, index, 1, given, backend=backend).add([0], [torch.ones(2, 2)])
    with pytest.raises(ValueError, match=r"tensors: expected ascending distinct numbers below 1, got \[1\]"):
        scan(params, index, 1, Score(family="random"), backend=backend).add([1], None)
    running = scan(params, index, 1, given, backend=backend)
    running.add([0], [torch.ones(4)])
    with pytest.raises(ValueError, match=r"gather: expected a scan that reads gradients, got one by .* 'given'"):
        running.gather(running.finalize(), torch.empty(1))


def test_scores_of_one_s_own_may_lie_in_any_order(on_every_backend):
    """What is read of them is a copy then, which has to live until it is."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 300), (7, 5), (400, 260)]
    keys = [torch.rand(shape[::-1], generator=generator) for shape in shapes]

    def run(backend, device):
        params = [torch.zeros(shape, device=device) for shape in shapes]
        return topk(params, [key.to(device).t() for key in keys], 500, Score(family="given"), backend=backend)

    best = torch.sort(torch.cat([key.t().reshape(-1) for key in keys]), descending=True).indices[:500].sort().values
    for path, found in on_every_backend(run, triton=False).items():
        starts = torch.tensor([0, 300 * 300, 300 * 300 + 35])
        assert torch.equal(found.valid.long() + starts[found.tensor_ids()], best), path


def test_what_stands_at_the_best_is_what_stands_there_in_the_end(on_every_backend):
    """Parameters may change between `add` and `finalize` if the scores are one's own."""

    def run(backend, device):
        table = Table([torch.zeros(50, device=device), torch.zeros(9, device=device)])
        running = scan(table, SparseIndex.empty(2, device=device), 4, Score(family="given"), backend=backend)
        for i, param in enumerate(table.params):
            running.add([i], [torch.arange(param.numel(), device=device).float()])
        for param in table.params:
            param.fill_(2.0)
        running.finalize()
        return running.fetch().bits

    two = int(torch.tensor(2.0).view(torch.int32))
    for path, bits in on_every_backend(run).items():
        assert bits.tolist() == [two] * 4, path
