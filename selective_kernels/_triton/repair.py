"""When a threshold was misleading: exact counts of candidates by value, digit by digit, and a last read with a bound
that is right. It costs up to seven reads, whatever the scores are, and takes any number of candidates at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels._triton.layout import CHUNKS, EPS, EXPONENT, FLAT, SALT, SLOTS, column, get_double, get_float
from selective_kernels._triton.rows import BEGIN, DTYPE, GRAD, NUMEL, PARAM
from selective_kernels._triton.scan import append, composite_of, count_selected, read_tile_of
from selective_kernels._triton.scores import LARGEST, score_bits

DIGIT_BITS = 12
DIGITS = 2**DIGIT_BITS
# Shifts of the digits of a candidate as an unsigned number, the highest first; the last one has four bits.
SHIFTS = (52, 40, 28, 16, 4, 0)


@triton.jit
def tile_candidates(
    rows, n_rows, row, tile, selected, starts, control,
    KIND: tl.constexpr, DTYPE_CODE: tl.constexpr, HAS_SELECTED: tl.constexpr, TILE: tl.constexpr,
    SELECTED_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """All selectable entries of a tile as candidates: (int64, which of them are there)."""
    numel = column(rows, n_rows, row, NUMEL)
    begin = column(rows, n_rows, row, BEGIN)
    first = tile * TILE
    n = tl.minimum(numel - first, TILE)
    lane = tl.arange(0, TILE)
    dtype = column(rows, n_rows, row, DTYPE)
    param, grad = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, GRAD)
    grads, thetas = read_tile_of(param, grad, first, n, dtype, DTYPE_CODE, KIND, TILE)
    eps, exponent = get_float(control, EPS), get_double(control, EXPONENT)
    salt = column(rows, n_rows, row, SALT)
    bits = score_bits(grads, thetas, (first + lane).to(tl.int32), salt, eps, exponent, KIND)
    keep = (bits >= 1) & (bits <= LARGEST) & (lane < n)
    if HAS_SELECTED:
        slots = starts + column(rows, n_rows, row, SLOTS)
        low = begin + tl.load(slots + tile)
        high = begin + tl.load(slots + tile + 1)
        keep = keep & (count_selected(selected, first, low, high, TILE, SELECTED_AT_ONCE) == 0)
    return composite_of(bits, column(rows, n_rows, row, FLAT) + first + lane), keep


@triton.jit(do_not_specialize=["n_rows", "tiles_per_chunk", "capacity", "shift", "digits"])
def repair_kernel(
    rows, n_rows, chunk_rows, tiles_per_chunk, selected, starts, control, bounds, shift, digits, histogram,
    candidates, capacity,
    COLLECTING: tl.constexpr, KIND: tl.constexpr, DTYPE_CODE: tl.constexpr, HAS_SELECTED: tl.constexpr,
    TILE: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Looks at the candidates from bounds[0] to bounds[1] (int64), both included.

    COLLECTING: appends them. Otherwise counts them in `histogram` (int64, DIGITS) by the digit
    `(candidate >> shift) % digits` of the candidate as an unsigned number.
    """
    chunk = tl.program_id(0)
    row = tl.load(chunk_rows + chunk)
    first_tile = (chunk - column(rows, n_rows, row, CHUNKS)) * tiles_per_chunk
    last_tile = tl.minimum(first_tile + tiles_per_chunk, (column(rows, n_rows, row, NUMEL) + TILE - 1) // TILE)
    least, most = tl.load(bounds), tl.load(bounds + 1)
    for tile in range(first_tile, last_tile):
        composites, keep = tile_candidates(
            rows, n_rows, row, tile, selected, starts, control, KIND, DTYPE_CODE, HAS_SELECTED, TILE, SELECTED_AT_ONCE
        )
        keep = keep & (composites >= least) & (composites <= most)
        if COLLECTING:
            append(candidates, capacity, control, composites, keep)
        else:
            # the sign bit turned around: the order of unsigned numbers; an arithmetic shift is cut off by the digit
            digit = ((composites ^ (-(2**63))) >> shift) & (digits - 1)
            counts = tl.histogram(tl.where(keep, digit, 0).to(tl.int32), DIGITS, mask=keep)
            tl.atomic_add(histogram + tl.arange(0, DIGITS), counts.to(tl.int64), mask=counts > 0)
