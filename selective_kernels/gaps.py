"""Sorted index lists as bytes: the gaps between offsets as Rice codes, about a byte per offset for sparse selections.

The code of n strictly ascending offsets is a row of blocks, one for each 64 offsets; the last may be of fewer. Nothing
stands between or around them: no offsets are no bytes, and n itself is not in the code. A block of m offsets holds
their gaps: gap = offset - previous offset - 1, where -1 comes before the first offset of the list. It is

    1 byte                     k, the block's Rice parameter, 0 to 30
    ceil(m k / 8) bytes        low bits: of each gap in turn the number gap mod 2^k, in k bits
    ceil((m + s) / 8) bytes    quotients: for each gap in turn q = floor(gap / 2^k) zeros, then a one; s is the sum of q

Bit j of such a part is bit j mod 8 of its byte floor(j / 8), where bit 0 is worth 1; the low bits of a number come from
the lowest up. Bits that a part leaves over in its last byte are zero. The quotients end with the m-th one.

An encoder takes the smallest of those k that make m (k + 1) + s least. Then s <= 2 m: k + 1 would make the block no
shorter, so the sum of ceil(q / 2) is at most m. A decoder takes any k from 0 to 30 for which s <= 2 m.

A list has one code, of ceil(n / 64) + ceil(n / 8) to 4 n + 2 ceil(n / 64) bytes. Random positions of density p take
about log2(1 / p) + 1.5 bits each and 11.5 bits per block.

Example: the offsets 0, 2, 3, 700 have the gaps 0, 1, 0, 696. As 696 = 5 * 128 + 56, k = 7 is best, with 4 * 8 + 5 bits.
The low bits are the number 1 * 2^7 + 56 * 2^21, the quotients are ones at bits 0, 1, 2 and 8: 07 | 80 00 00 07 | 07 01.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.checks import check_host_vector

BLOCK = 64  # gaps that share a parameter
MAX_PARAMETER = 30
MAX_LIMIT = 2**31
# What may be wrong with a code, by the number that a backend gives it, and the words for it.
NONE, TRUNCATED, PARAMETER, QUOTIENTS, PADDING, LIMIT, LEFT_OVER = range(7)
WORDS = {
    TRUNCATED: "{count} offsets, got {length} bytes that end within block {block}",
    PARAMETER: "parameters of at most 30, got a larger one in block {block}",
    QUOTIENTS: "quotients that add up to at most 2 per offset, got more in block {block}",
    PADDING: "zeros in the bits that a part leaves over, got ones in block {block}",
    LIMIT: "offsets below {limit}, got one that is not in block {block}",
    LEFT_OVER: "{count} offsets in {length} bytes, got bytes that are left over",
}


def encode_gaps(offsets: Tensor, *, backend: str = "auto") -> Tensor:
    """The code of a list of offsets; its form is described at the top of this module.

    Args:
        offsets: int32, shape (n,), strictly ascending, >= 0, on the CPU.
        backend: "auto", "cpu" or "reference"; all give the same bytes.

    Returns:
        uint8, shape (bytes,), on the CPU.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: another shape, on another device, negative offsets, or not strictly ascending ones.
    """
    offsets = check_host_vector(offsets, torch.int32, "offsets")
    code: Tensor | None = dispatch.on_host("encode_gaps", backend)(offsets)
    if code is None:
        previous = torch.nn.functional.pad(offsets[:-1], (1, 0), value=-1)
        at = int((offsets <= previous).int().argmax())
        raise ValueError(
            f"offsets: expected strictly ascending integers >= 0, got {int(offsets[at])} at {at}"
            + (f" after {int(previous[at])}" if at else "")
        )
    return code


def decode_gaps(code: Tensor, count: int, limit: int, *, backend: str = "auto") -> Tensor:
    """The offsets of a code, which may be any bytes: what is not a code of such offsets is refused.

    Memory is taken for the offsets only, and only after `count` was compared with the bytes that so many take at least:
    less than 29 times the code's.

    Args:
        code: uint8, shape (bytes,), on the CPU.
        count: how many offsets there are.
        limit: what they must be below: the number of entries of their tensor, at most 2^31.
        backend: "auto", "cpu" or "reference"; all give and refuse the same.

    Returns:
        int32, shape (count,), strictly ascending, >= 0 and < limit, on the CPU.

    Raises:
        TypeError: `code` is not a tensor, or of another dtype.
        ValueError: it is not the code of `count` such offsets: truncated or too long, a parameter, a quotient or an
            offset too large, or bits set where there should be none; of another shape or on another device; or a count
            or limit out of range.
    """
    code = check_host_vector(code, torch.uint8, "code")
    if not 0 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit: expected an integer in [0, 2^31], got {limit}")
    if not 0 <= count <= limit:
        raise ValueError(f"gaps: expected 0 to {limit} offsets below {limit}, got {count}")
    least = -(-count // BLOCK) - (-count // 8)
    if len(code) < least:
        raise ValueError(f"gaps: expected {least} bytes or more for {count} offsets, got {len(code)}")
    offsets: Tensor
    offsets, problem, block = dispatch.on_host("decode_gaps", backend)(code, count, limit)
    if problem != NONE:
        words = WORDS[problem].format(count=count, length=len(code), limit=limit, block=block)
        raise ValueError(f"gaps: expected {words}")
    return offsets


def encode_gaps_ref(offsets: Tensor) -> Tensor | None:
    """`encode_gaps` in plain PyTorch; None if the offsets are not strictly ascending from 0 on."""
    if len(offsets) == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    gaps = offsets.long().diff(prepend=torch.tensor([-1], device="cpu")) - 1
    if bool((gaps < 0).any()):
        return None
    n_blocks = -(-len(gaps) // BLOCK)
    there = torch.arange(n_blocks * BLOCK, device="cpu").view(n_blocks, BLOCK) < len(gaps)
    padded = torch.zeros(n_blocks, BLOCK, dtype=torch.int64, device="cpu").masked_scatter(there, gaps)
    lengths = there.sum(1)
    costs = torch.stack([(padded >> k).sum(1) + lengths * (k + 1) for k in range(MAX_PARAMETER + 1)])
    best = costs.argmin(0)  # the first of equal ones
    low_bytes = (lengths * best + 7) // 8
    sizes = 1 + low_bytes + (costs.gather(0, best[None])[0] - lengths * best + 7) // 8
    begins = 8 * (sizes.cumsum(0) - sizes)  # of the blocks, in bits
    bits = torch.zeros(8 * int(sizes.sum()), dtype=torch.uint8, device="cpu")
    for j in range(5):
        bits[begins + j] = (best >> j & 1).to(torch.uint8)
    k, begin = best[:, None], begins[:, None] + 8
    for j in range(int(best.max())):
        at = begin + torch.arange(BLOCK, device="cpu") * k + j
        chosen = there & (j < k)
        bits[at[chosen]] = (padded[chosen] >> j & 1).to(torch.uint8)
    ones = begin + 8 * low_bytes[:, None] + ((padded >> k) + 1).cumsum(1) - 1
    bits[ones[there]] = 1
    return (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device="cpu")).sum(1).to(torch.uint8)


def decode_gaps_ref(code: Tensor, count: int, limit: int) -> tuple[Tensor, int, int]:
    """`decode_gaps` in plain PyTorch: the offsets, what is wrong with the code, and in which block."""
    offsets = torch.empty(count, dtype=torch.int32, device="cpu")
    at, previous = 0, -1
    for block, done in enumerate(range(0, count, BLOCK)):
        m = min(BLOCK, count - done)
        if at >= len(code):
            return offsets, TRUNCATED, block
        k = int(code[at])
        if k > MAX_PARAMETER:
            return offsets, PARAMETER, block
        low_bytes, most = -(-m * k // 8), -(-3 * m // 8)
        body = code[at + 1 : at + 1 + low_bytes + most]
        cut = len(body) < low_bytes + most
        bits = torch.zeros(low_bytes + most, 8, dtype=torch.int64, device="cpu")
        bits[: len(body)] = body[:, None].long() >> torch.arange(8, device="cpu") & 1
        low, unary = bits[:low_bytes].view(-1), bits[low_bytes:].view(-1)
        ones = unary.nonzero().view(-1)[:m]
        if len(ones) < m and cut:
            return offsets, TRUNCATED, block
        if len(ones) < m or int(ones[-1]) >= 3 * m:
            return offsets, QUOTIENTS, block
        quotient_bytes = int(ones[-1]) // 8 + 1
        if bool(low[m * k :].any()) or bool(unary[int(ones[-1]) + 1 : 8 * quotient_bytes].any()):
            return offsets, PADDING, block
        remainders = (low[: m * k].view(m, k) << torch.arange(k, device="cpu")).sum(1)
        gaps = (ones.diff(prepend=torch.tensor([-1], device="cpu")) - 1 << k) + remainders
        found = previous + (gaps + 1).cumsum(0)
        previous = int(found[-1])
        if previous >= limit:
            return offsets, LIMIT, block
        offsets[done : done + m] = found
        at += 1 + low_bytes + quotient_bytes
    return offsets, NONE if at == len(code) else LEFT_OVER, count // BLOCK
