"""Stub."""

from torch import Tensor


def encode_gaps(offsets: Tensor) -> Tensor:
    """Stub."""
    raise NotImplementedError


def decode_gaps(code: Tensor, count: int, limit: int) -> Tensor:
    """Stub."""
    raise NotImplementedError
