"""Lists of tensors, gradients and selected entries for the tests of the top-k, and what a scan has to say of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

from selective_kernels import Score, SparseIndex, Table, gather, gather_bits, scan
from selective_kernels.testing import assert_bitwise_equal, assert_same_index

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


def moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The same tensor on a device, with its strides and its place in its storage."""
    if device == "cpu":
        return tensor
    storage = tensor.untyped_storage().to(device=torch.device(device))
    place = tensor.storage_offset(), tensor.size(), tensor.stride()
    return torch.empty(0, dtype=tensor.dtype, device=device).set_(storage, *place)


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

    def scan(self, k, score, order, backend="auto", device="cpu"):
        """Everything that a scan says, with the tensors added in the sets and the order of `order`."""
        table = Table([moved(param, device) for param in self.params])
        index = SparseIndex(self.index.offsets.to(device), list(self.index.starts))
        running = scan(table, index, k, score, backend=backend)
        selected_grads = torch.full((self.index.count + 3,), math.nan, device=device)
        for tensors in order:
            running.add(tensors, [moved(self.grads[i], device) for i in tensors], selected_grads)
        nonfinite, new = running.nonfinite, running.finalize()
        fresh = torch.full((new.count,), math.nan, device=device)
        running.gather(new, fresh)
        fetched = running.fetch()
        assert_bitwise_equal(fetched.grads, fresh, "fetched gradients")
        assert_bitwise_equal(fetched.bits, gather_bits(table, new, backend="reference"), "fetched bits")
        if fetched.values is not None:
            assert_bitwise_equal(fetched.values, gather(table, new, backend="reference"), "fetched values")
        return new, selected_grads.cpu(), fresh.cpu(), nonfinite, running.threshold

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
