"""Index lists as bytes on the compiled CPU kernels, in one thread."""

from __future__ import annotations

import torch
from torch import Tensor

from selective_kernels import _native
from selective_kernels.gaps import BLOCK

MARGIN = 16  # bytes per block that the kernel may write beyond 4 per offset: kGapMargin of csrc/gaps.h


def encode_gaps(offsets: Tensor) -> Tensor | None:
    """See `selective_kernels.gaps.encode_gaps_ref`."""
    count = len(offsets)
    room = torch.empty(4 * count + MARGIN * (count // BLOCK + 1), dtype=torch.uint8, device="cpu")
    length = _native.cpu().encode_gaps(offsets.data_ptr(), count, room.data_ptr())
    return None if length < 0 else room[:length].clone()


def decode_gaps(code: Tensor, count: int, limit: int) -> tuple[Tensor, int, int]:
    """See `selective_kernels.gaps.decode_gaps_ref`."""
    offsets = torch.empty(count, dtype=torch.int32, device="cpu")
    problem, block = _native.cpu().decode_gaps(code.data_ptr(), len(code), count, limit, offsets.data_ptr())
    return offsets, problem, block
