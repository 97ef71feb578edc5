"""Reads a buffer at full speed on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
BLOCKS = 8
WORDS = BLOCK * BLOCKS  # per program


@triton.jit
def read_kernel(words, out, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Xor of the words of each program."""
    program = tl.program_id(0)
    first = program.to(tl.int64) * (BLOCK * BLOCKS)
    total = tl.zeros((BLOCK,), tl.int32)
    for i in tl.static_range(BLOCKS):
        total ^= tl.load(words + first + i * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + program, tl.xor_sum(total, axis=0))


def read(words: Tensor) -> Tensor:
    """Reads every word once.

    Args:
        words: int32, contiguous, a multiple of `WORDS` of them.

    Returns:
        Xor of each piece of `WORDS` words, int32.
    """
    programs = words.numel() // WORDS
    if words.numel() % WORDS:
        raise ValueError(f"words: expected a multiple of {WORDS}, got {words.numel()}")
    out = torch.empty(programs, dtype=torch.int32, device=words.device)
    read_kernel[(programs,)](words, out, BLOCK=BLOCK, BLOCKS=BLOCKS, num_warps=8)
    return out
