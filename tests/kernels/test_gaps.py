"""Index lists as bytes: the described form, the shortest of its kind, and the same bytes from every backend."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gapcodes import BACKENDS, clustered_offsets, coded, int32, outcome, random_offsets
from hypothesis import given
from hypothesis import strategies as st

from selective_kernels import decode_gaps, dispatch, encode_gaps
from selective_kernels._cpu.gaps import MARGIN
from selective_kernels.gaps import BLOCK, MAX_PARAMETER
from selective_kernels.testing import assert_bitwise_equal

LARGEST = 2**31 - 1  # what int32 holds; the last offset of the largest tensor is one less

# Each is a trap for another part of the form; lists of offsets.
LISTS = {
    "nothing": [],
    "the first": [0],
    "the second": [1],
    "the last": [2**31 - 2],
    "the largest": [LARGEST],
    "first and last": [0, 2**31 - 2],
    "last two": [2**31 - 3, 2**31 - 2],
    "gap of 2^30 - 1": [2**30 - 1],
    "gap of 2^30": [2**30],
    "two gaps of almost 2^30": [2**30 - 1, 2**31 - 2],
    "seven, 1/7 apart": [i * (LARGEST // 7) for i in range(1, 8)],
    "a block, as far apart as can be": [i * (LARGEST // BLOCK) for i in range(1, BLOCK + 1)],
    "a dense run": list(range(1000)),
    "a dense run at the end": list(range(LARGEST - 500, LARGEST)),
    "a huge gap after a dense run": [*range(BLOCK), 2**31 - 2],
    "a huge gap within a dense run": [*range(40), *range(2**31 - 200, 2**31 - 100)],
    "every other": list(range(0, 4000, 2)),
    "gaps of 2^k - 1 and 2^k": np.cumsum([2**k + d for k in range(24) for d in (0, 1)]).tolist(),
    "plateau of costs": [i * 3 for i in range(BLOCK)],
}
LISTS |= {f"{n} offsets": [i * 5 + i * i % 3 for i in range(n)] for n in (BLOCK - 1, BLOCK, BLOCK + 1)}
LISTS |= {f"{n} offsets": [i * 77 + i * i % 70 for i in range(n)] for n in (1023, 1024, 1025)}


def described_decoder(code, count):
    """A decoder written from the description alone."""
    code = np.asarray(code, dtype=np.uint8)
    offsets, previous, at = [], -1, 0
    for done in range(0, count, 64):
        m, k = min(64, count - done), int(code[at])
        begin = at + 1 + math.ceil(m * k / 8)
        low = np.unpackbits(code[at + 1 : begin], bitorder="little")[: m * k].reshape(m, k)
        ones = np.flatnonzero(np.unpackbits(code[begin : begin + 24], bitorder="little"))[:m]
        gaps = (np.diff(ones, prepend=-1) - 1) * 2**k + low.astype(int) @ (1 << np.arange(k))
        offsets.extend(previous + np.cumsum(gaps + 1))
        previous, at = offsets[-1], begin + int(ones[-1]) // 8 + 1
    assert at == len(code)
    return [int(offset) for offset in offsets]


def fewest_bits(offsets):
    """Of each block: how many bits the cheapest parameter takes, and the smallest such parameter."""
    gaps = [b - a - 1 for a, b in zip([-1, *offsets], offsets, strict=False)]
    blocks = [gaps[i : i + 64] for i in range(0, len(gaps), 64)]
    return [min((sum((gap >> k) + k + 1 for gap in block), k) for k in range(32)) for block in blocks]


@pytest.mark.parametrize("offsets", LISTS.values(), ids=LISTS)
def test_round_trip_in_the_described_form(offsets):
    code = coded(int32(offsets))
    assert described_decoder(code.numpy(), len(offsets)) == offsets
    limit = offsets[-1] + 1 if offsets else 0
    assert outcome(code, len(offsets), limit) == offsets
    assert outcome(code, len(offsets), 2**31) == offsets
    if offsets:
        assert "gaps: expected" in outcome(code, len(offsets), limit - 1)


@pytest.mark.parametrize("offsets", LISTS.values(), ids=LISTS)
def test_every_block_takes_the_fewest_bits(offsets):
    """So that one large gap beside small ones cannot blow up a list: 31 bits per offset are always enough."""
    code, at = coded(int32(offsets)).tolist(), 0
    for block, (bits, k) in enumerate(fewest_bits(offsets)):
        m = min(64, len(offsets) - 64 * block)
        assert code[at] == k <= MAX_PARAMETER
        assert bits - m * (k + 1) <= 2 * m
        at += 1 + math.ceil(m * k / 8) + math.ceil((bits - m * k) / 8)
    assert at == len(code) <= 4 * len(offsets) + 2 * math.ceil(len(offsets) / 64)


def test_the_example_of_the_description():
    assert bytes(coded(int32([0, 2, 3, 700])).tolist()) == bytes.fromhex("07 80000007 0701")


@given(st.data())
def test_round_trips(data):
    """Gaps of all sizes beside each other, over blocks of several parameters."""
    size = data.draw(st.integers(0, 300))
    bits = data.draw(st.lists(st.integers(0, 31), min_size=1, max_size=6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    gaps = rng.integers(0, 2 ** np.resize(np.repeat(bits, 20), size))
    offsets = np.cumsum(gaps + 1) - 1
    offsets = offsets[offsets <= LARGEST].tolist()
    code = coded(int32(offsets))
    assert described_decoder(code.numpy(), len(offsets)) == offsets
    assert outcome(code, len(offsets), 2**31) == offsets


@pytest.mark.parametrize("density", [0.0001, 0.001, 0.003, 0.01, 0.1, 0.5, 0.9])
def test_random_positions_take_little_more_than_their_entropy(density):
    """The entropy of n positions is N H(p) bits. Rice codes take up to 0.05 bits more each, and more where p is near 1;
    blocks take 11.5 bits."""
    offsets = random_offsets(density, 100_000)
    code = coded(offsets)
    assert torch.equal(decode_gaps(code, len(offsets), 2**31), offsets)
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density
    bits = 8 * len(code) / len(offsets)
    assert bits <= entropy + 12 / 64 + (0.05 if density < 0.4 else 0.6)
    assert bits >= 0.99 * entropy
    assert bits / 8 <= {0.001: 2.0, 0.003: 1.30}.get(density, 4.0)


def test_clustered_positions_take_less_than_random_ones():
    """Each block has a parameter of its own, so codes follow clusters."""
    offsets = clustered_offsets(3000)
    scattered = random_offsets(len(offsets) / int(offsets[-1]), len(offsets))
    assert len(coded(offsets)) < 0.7 * len(coded(scattered))


def test_lists_that_are_not_contiguous_are_copied():
    offsets = random_offsets(0.01, 500)
    spread = torch.stack([offsets, offsets], dim=1)[:, 0]
    code = coded(spread)
    assert_bitwise_equal(code, coded(offsets))
    assert outcome(torch.stack([code, code], dim=1)[:, 0], len(offsets), 2**31) == offsets.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([5, 3], "got 3 at 1 after 5"),
        ([*range(100), 50], "got 50 at 100 after 99"),
        ([*range(BLOCK), BLOCK - 1], f"got {BLOCK - 1} at {BLOCK} after {BLOCK - 1}"),
        ([7, 7], "got 7 at 1 after 7"),
        ([-1], "got -1 at 0"),
        ([-(2**31), 4], f"got {-(2**31)} at 0"),
        ([LARGEST, -(2**31)], f"got {-(2**31)} at 1 after {LARGEST}"),
    ],
)
def test_c14_lists_out_of_order_are_refused(offsets, message, backend):
    """C14: the message says where."""
    with pytest.raises(ValueError, match=f"^offsets: expected strictly ascending integers >= 0, {re.escape(message)}$"):
        encode_gaps(int32(offsets), backend=backend)


@pytest.mark.parametrize(
    ("offsets", "error", "message"),
    [
        ([1, 2], TypeError, "expected a tensor, got list"),
        (torch.tensor([1, 2]), TypeError, "expected dtype torch.int32, got torch.int64"),
        (torch.tensor([1.0]), TypeError, "expected dtype torch.int32, got torch.float32"),
        (int32([[1, 2]]), ValueError, r"expected a dense vector, got torch.strided of shape (1, 2)"),
        (int32(3), ValueError, r"expected a dense vector, got torch.strided of shape ()"),
        (int32([0, 1]).to_sparse(), ValueError, "expected a dense vector, got torch.sparse_coo of shape (2,)"),
        (int32([1]).to("meta"), ValueError, "expected a vector on the CPU, where files are read, got one on meta"),
    ],
)
def test_c14_other_tensors_are_refused(offsets, error, message):
    """C14: by type, shape and place."""
    with pytest.raises(error, match=f"^offsets: {re.escape(message)}"):
        encode_gaps(offsets)
    as_bytes = offsets.to(torch.uint8) if isinstance(offsets, torch.Tensor) and error is ValueError else offsets
    with pytest.raises(error, match=f"^code: {re.escape(message).replace('int32', 'uint8')}"):
        decode_gaps(as_bytes, 1, 10)


def test_they_run_on_the_host_whatever_serves_tensors(monkeypatch):
    """A model on a GPU, for which somebody forces a backend, is saved and loaded all the same."""
    offsets = random_offsets(0.01, 200)
    code = encode_gaps(offsets)
    for backend, used in (("auto", "cpu"), ("triton", "cpu"), ("cpu", "cpu"), ("reference", "reference")):
        monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, backend)
        assert dispatch.resolve_host() == used
        assert torch.equal(decode_gaps(encode_gaps(offsets), 200, 2**31), offsets)
        assert f"files: encode_gaps -> {used}" in dispatch.explain().splitlines()
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "tpu")
    with pytest.raises(ValueError, match="got 'tpu'"):
        encode_gaps(offsets)
    assert_bitwise_equal(encode_gaps(offsets, backend="cpu"), code)
    for call in (
        lambda: encode_gaps(offsets, backend="triton"),
        lambda: decode_gaps(code, 200, 2**31, backend="triton"),
    ):
        with pytest.raises(
            ValueError, match=r"^backend: expected 'auto', 'cpu' or 'reference' for what files hold, got"
        ):
            call()


def test_the_margin_is_that_of_the_kernels():
    """Python takes the memory that the kernel writes to."""
    header = (Path(__file__).resolve().parents[2] / "csrc" / "gaps.h").read_text(encoding="utf-8")
    numbers = {name: int(value) for name, value in re.findall(r"constexpr .* (k\w+) = (\d+);", header)}
    assert numbers == {"kGapBlock": BLOCK, "kMaxParameter": MAX_PARAMETER, "kGapMargin": MARGIN}
