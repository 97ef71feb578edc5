"""The scores of score.h in Triton: the same float32 operations, each correctly rounded, so the same bits."""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels.score import FAMILIES, LARGEST_BITS, Score

# What kernels are compiled for, numbered as `Kind` in csrc/score.h.
ZERO = tl.constexpr(0)
HALF = tl.constexpr(1)
ONE = tl.constexpr(2)
TWO = tl.constexpr(3)
ANY = tl.constexpr(4)
PRODUCT = tl.constexpr(5)
MAGNITUDE = tl.constexpr(6)
RANDOM = tl.constexpr(7)
GIVEN = tl.constexpr(8)
LARGEST = tl.constexpr(LARGEST_BITS)
INFINITY = tl.constexpr(LARGEST_BITS + 1)  # bits of the float32 infinity
_EXPONENTS = {0.0: ZERO, 0.5: HALF, 1.0: ONE, 2.0: TWO}


def kind_of(score: Score) -> int:
    """What a score's kernels are compiled for."""
    if score.family == "d3":
        return int(_EXPONENTS.get(score.exponent, ANY).value)
    return int(PRODUCT.value) + FAMILIES.index(score.family) - FAMILIES.index("product")


@triton.jit
def reads_grad(KIND: tl.constexpr):
    return (KIND != MAGNITUDE) and (KIND != RANDOM)


@triton.jit
def reads_param(KIND: tl.constexpr):
    return (KIND != ZERO) and (KIND != RANDOM) and (KIND != GIVEN)


@triton.jit
def sees_gradients(KIND: tl.constexpr):
    """Whether what is read as gradients are gradients, so that inf and NaN count."""
    return (KIND != MAGNITUDE) and (KIND != RANDOM) and (KIND != GIVEN)


@triton.jit
def bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def power(theta_abs, eps, exponent, KIND: tl.constexpr):
    """(|theta| + eps)^exponent."""
    d = theta_abs + eps
    if KIND == HALF:
        d = tl.math.sqrt_rn(d)
    elif KIND == TWO:
        d = d * d
    elif KIND == ANY:
        d = tl.exp2(tl.log2(d.to(tl.float64)) * exponent).to(tl.float32)
    return d


@triton.jit
def mix32(x):
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def random_bits(salt, offsets):
    """Bits of the random score of the entries at int32 `offsets`; `salt` is their tensor's, int64."""
    low = (salt & 0xFFFFFFFF).to(tl.uint32)
    high = ((salt >> 32) & 0xFFFFFFFF).to(tl.uint32)
    mixed = mix32(mix32(offsets.to(tl.uint32) ^ low) + high)
    return ((mixed >> 2) + 0x20000000).to(tl.int32)


@triton.jit
def score_bits(grad, theta_abs, offsets, salt, eps, exponent, KIND: tl.constexpr):
    """Bits of the scores as int32, in the order of the scores. Selectable: 1 <= bits <= LARGEST (C3)."""
    if KIND == RANDOM:
        bits = random_bits(salt, offsets)
    elif KIND == MAGNITUDE:
        bits = tl.maximum(-bits_of(theta_abs) + LARGEST, 0)
    elif KIND == GIVEN:
        bits = bits_of(grad)
    elif KIND == ZERO:
        bits = bits_of(tl.abs(grad))
    elif KIND == PRODUCT:
        bits = bits_of(tl.abs(grad) * theta_abs)
    else:
        bits = bits_of(tl.math.div_rn(tl.abs(grad), power(theta_abs, eps, exponent, KIND)))
    return bits


@triton.jit
def may_reach(grad, theta_abs, offsets, salt, eps, exponent, limit, scaled, log_limit, KIND: tl.constexpr):
    """Which entries may have a score of bits >= `limit`: no division, no power. Conservative unless limit, scaled and
    log_limit are those of an exact filter (see `filter_kernel`).
    """
    if KIND == HALF or KIND == ONE or KIND == TWO:
        reach = tl.abs(grad) >= scaled * power(theta_abs, eps, exponent, KIND)
    elif KIND == ANY:
        slope = exponent.to(tl.float32)
        reach = bits_of(tl.abs(grad)).to(tl.float32) >= log_limit + slope * bits_of(theta_abs + eps).to(tl.float32)
    else:
        reach = score_bits(grad, theta_abs, offsets, salt, eps, exponent, KIND) >= limit
    return reach
