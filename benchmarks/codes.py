"""Ways to store a sorted index list: this project's code, and what else is used or lies near."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selective_kernels import decode_gaps, encode_gaps


@dataclass(frozen=True)
class Code:
    """How to store one list of offsets.

    Attributes:
        name: unique, for tables.
        encode: (offsets, length of the tensor's rows) -> what is stored.
        decode: (what is stored, number of offsets, number of the tensor's entries, length of its rows) -> offsets.
        nbytes: of what is stored.
        slow: timed once.
    """

    name: str
    encode: Callable[[Tensor, int], Any]
    decode: Callable[[Any, int, int, int], Tensor]
    nbytes: Callable[[Any], int]
    slow: bool = False


def pairs(offsets: Tensor, columns: int) -> Tensor:
    """Rows and columns, int32, shape (2, n), as SHiRA in PEFT stores them."""
    return torch.stack([offsets // columns, offsets % columns])


def from_pairs(stored: Tensor, columns: int) -> Tensor:
    """The offsets of `pairs`."""
    return stored[0] * columns + stored[1]


def leb128(offsets: Tensor) -> Any:
    """Gaps in 7 bits per byte, the lowest first; the highest bit says that more follow. For gaps below 2^28."""
    gaps = np.diff(offsets.numpy(), prepend=-1) - 1
    long = [gaps >= 1 << 7 * more for more in range(1, 4)]
    begins = np.cumsum(1 + sum(each.astype(np.int64) for each in long)) - 1
    stored = np.empty(0 if len(begins) == 0 else begins[-1] + 1, np.uint8)
    begins -= sum(each.astype(np.int64) for each in long)
    stored[begins] = (gaps & 127) | (long[0] << 7)
    for more, each in enumerate(long, start=1):
        follows = long[more][each] << 7 if more < len(long) else 0
        stored[begins[each] + more] = (gaps[each] >> 7 * more & 127) | follows
    return stored


def from_leb128(stored: Any) -> Tensor:
    """The offsets of `leb128`."""
    last = stored < 128
    begins = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    places = np.arange(len(stored)) - np.repeat(begins, np.diff(begins, append=len(stored)))
    gaps = np.add.reduceat((stored & 127).astype(np.int32) << (7 * places).astype(np.int32), begins)
    return torch.from_numpy(np.cumsum(gaps + 1, dtype=np.int32) - np.int32(1))


def deflated(offsets: Tensor) -> bytes:
    """Gaps as int32, compressed by zlib."""
    return zlib.compress(np.diff(offsets.numpy(), prepend=np.int32(-1)).tobytes(), 6)


def inflated(stored: bytes) -> Tensor:
    """The offsets of `deflated`."""
    gaps = np.frombuffer(zlib.decompress(stored), np.int32)
    return torch.from_numpy(np.cumsum(gaps, dtype=np.int32) - np.int32(1))


def tensor_bytes(stored: Tensor) -> int:
    """Bytes of a tensor's entries."""
    return stored.numel() * stored.element_size()


OURS, COPY = "gap codes (encode_gaps)", "int32, copied"
CODES = (
    Code(OURS, lambda o, _: encode_gaps(o, backend="cpu"), lambda c, n, size, _: decode_gaps(c, n, size), tensor_bytes),
    Code(COPY, lambda o, _: o.clone(), lambda c, *_: c.clone(), tensor_bytes),
    Code("int32 row and column (SHiRA)", pairs, lambda c, _, __, columns: from_pairs(c, columns), tensor_bytes),
    Code("gaps in LEB128, numpy", lambda o, _: leb128(o), lambda c, *_: from_leb128(c), len),
    Code("int32 gaps, zlib", lambda o, _: deflated(o), lambda c, *_: inflated(c), len, slow=True),
)
