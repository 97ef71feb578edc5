"""What the tests of `encode_gaps` and `decode_gaps` share: lists of offsets, and what all backends make of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from selective_kernels import decode_gaps, encode_gaps
from selective_kernels.testing import assert_bitwise_equal

BACKENDS = ["cpu", "reference"]


def int32(offsets):
    return torch.tensor(offsets, dtype=torch.int32)


def as_code(values):
    return torch.tensor(list(values), dtype=torch.uint8)


def random_offsets(density, count, seed=0):
    """Positions that are each taken with the same probability."""
    steps = np.random.default_rng(seed).geometric(density, count)
    return torch.from_numpy((np.cumsum(steps) - 1).astype(np.int32))


def clustered_offsets(count, seed=0):
    """Rows in which much is selected, and others with little."""
    rng = np.random.default_rng(seed)
    density = np.resize(np.repeat([0.7, 0.001], [300, 100]), count)
    return torch.from_numpy((np.cumsum(rng.geometric(density)) - 1).astype(np.int32))


def coded(offsets):
    """The code, after all backends have given the same."""
    codes = [encode_gaps(offsets, backend=backend) for backend in BACKENDS]
    assert_bitwise_equal(codes[0], codes[1])
    assert codes[0].dtype is torch.uint8
    return codes[0]


def outcome(code, count, limit):
    """The offsets as a list or the error's text, after all backends have given the same."""
    found = []
    for backend in BACKENDS:
        try:
            offsets = decode_gaps(code, count, limit, backend=backend)
        except ValueError as error:
            found.append(str(error))
        else:
            assert offsets.dtype is torch.int32
            found.append(offsets.tolist())
    assert found[0] == found[1]
    assert isinstance(found[0], list) or found[0].startswith("gaps: expected "), found[0]
    return found[0]


def assert_valid_or_refused(code, count, limit):
    """Whether the bytes were refused; if not, they gave offsets as promised."""
    found = outcome(code, count, limit)
    if isinstance(found, str):
        return True
    assert len(found) == count
    assert all(0 <= offset < limit for offset in found)
    assert all(a < b for a, b in pairwise(found))
    return False
