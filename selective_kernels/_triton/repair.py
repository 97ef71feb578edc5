"""When a threshold was misleading: exact counts of candidates by value, digit by digit, and a last read with a bound
that is right. It costs up to seven reads, whatever the scores are, and takes any number of candidates at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels._triton.layout import CHUNKS, FLAT, SALT, SLOTS
from selective_kernels._triton.rows import BEGIN, DTYPE, GRAD, NUMEL, PARAM, column
from selective_kernels._triton.scan import append, look_closely

DIGIT_BITS = 12
DIGITS = 2**DIGIT_BITS
# Shifts of the digits of a candidate as an unsigned number, the highest first; the last one has four bits.
SHIFTS = (52, 40, 28, 16, 4, 0)


@triton.jit(do_not_specialize=["n_rows", "tiles_per_chunk", "capacity", "shift", "digits"])
def repair_kernel(
    rows, n_rows, chunk_rows, tiles_per_chunk, selected, starts, control, bounds, shift, digits, histogram,
    candidates, capacity,
    COLLECTING: tl.constexpr, KIND: tl.constexpr, HAS_SELECTED: tl.constexpr, TILE: tl.constexpr,
    PART: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Looks at the candidates from bounds[0] to bounds[1] (int64), both included.

    COLLECTING: appends them. Otherwise counts them in `histogram` (int64, DIGITS) by the digit
    `(candidate >> shift) % digits` of the candidate as an unsigned number.
    """
    chunk = tl.program_id(0)
    row = tl.load(chunk_rows + chunk)
    numel = column(rows, n_rows, row, NUMEL)
    param, grad = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, GRAD)
    dtype, salt = column(rows, n_rows, row, DTYPE), column(rows, n_rows, row, SALT)
    flat, begin = column(rows, n_rows, row, FLAT), column(rows, n_rows, row, BEGIN)
    slots = starts + column(rows, n_rows, row, SLOTS)
    least, most = tl.load(bounds), tl.load(bounds + 1)
    first = (chunk - column(rows, n_rows, row, CHUNKS)) * tiles_per_chunk * TILE
    last = tl.minimum(first + tiles_per_chunk * TILE, numel)
    for start in range(first, last, PART):
        low = begin
        high = begin
        if HAS_SELECTED:
            low = begin + tl.load(slots + start // TILE)
            high = begin + tl.load(slots + start // TILE + 1)
        _, found, keep = look_closely(
            param, grad, dtype, salt, flat, start, last - start, selected, low, high, control,
            KIND, HAS_SELECTED, PART, SELECTED_AT_ONCE,
        )  # fmt: skip
        keep = keep & (found >= least) & (found <= most)
        if COLLECTING:
            append(candidates, capacity, control, found, keep)
        else:
            # the sign bit turned around: the order of unsigned numbers; an arithmetic shift is cut off by the digit
            digit = ((found ^ (-(2**63))) >> shift) & (digits - 1)
            counts = tl.histogram(tl.where(keep, digit, 0).to(tl.int32), DIGITS, mask=keep)
            tl.atomic_add(histogram + tl.arange(0, DIGITS), counts.to(tl.int64), mask=counts > 0, sem="relaxed")
