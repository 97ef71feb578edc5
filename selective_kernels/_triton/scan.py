"""The scan: one read of gradients and parameters that keeps what reaches the threshold, gathers the gradients of the
selected entries and watches for inf and NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels._triton.layout import (
    CHUNKS,
    COUNT,
    EPS,
    EXACT,
    EXPONENT,
    FLAT,
    FLAT_BITS,
    LIMIT,
    LOG_LIMIT,
    MIDDLE,
    NONFINITE,
    SALT,
    SCALED,
    SLOTS,
    column,
    get,
    get_double,
    get_float,
)
from selective_kernels._triton.rows import BEGIN, DTYPE, GRAD, NUMEL, PARAM
from selective_kernels._triton.scores import (
    INFINITY,
    LARGEST,
    bits_of,
    may_reach,
    reads_grad,
    reads_param,
    score_bits,
    sees_gradients,
)

SELECTED_AT_ONCE = 128
MIXED = -1  # instead of a dtype code: tensors of several


@triton.jit
def read_full(address, first, storage: tl.constexpr, TILE: tl.constexpr):
    """A full tile at an address that is a multiple of 16, by 128-bit loads: the compiler believes the hint only if it
    stands before and after the cast, and only without a mask.
    """
    size: tl.constexpr = storage.primitive_bitwidth // 8
    aligned = tl.multiple_of(address + first * size, 16)
    pointer = tl.multiple_of(aligned.to(tl.pointer_type(storage)), 16)
    return tl.load(pointer + tl.arange(0, TILE)).to(tl.float32)


@triton.jit
def read_part(address, first, n, storage: tl.constexpr, TILE: tl.constexpr):
    """The first `n` entries of a tile, zeros after them; at any address."""
    lane = tl.arange(0, TILE)
    pointer = address.to(tl.pointer_type(storage)) + first
    return tl.load(pointer + lane, mask=lane < n, other=0.0).to(tl.float32)


@triton.jit
def read_tile(param, grad, first, n, storage: tl.constexpr, KIND: tl.constexpr, TILE: tl.constexpr):
    """Gradients and absolute parameters of a tile, float32; zeros for what the score does not read."""
    grads = tl.zeros([TILE], tl.float32)
    thetas = grads
    addresses = grad
    if reads_param(KIND):
        addresses = param | grad if reads_grad(KIND) else param
    if (n == TILE) and (addresses % 16 == 0):
        if reads_grad(KIND):
            grads = read_full(grad, first, storage, TILE)
        if reads_param(KIND):
            thetas = read_full(param, first, storage, TILE)
    else:
        if reads_grad(KIND):
            grads = read_part(grad, first, n, storage, TILE)
        if reads_param(KIND):
            thetas = read_part(param, first, n, storage, TILE)
    return grads, tl.abs(thetas)


@triton.jit
def read_tile_of(param, grad, first, n, dtype, DTYPE_CODE: tl.constexpr, KIND: tl.constexpr, TILE: tl.constexpr):
    """`read_tile` of a tensor of the dtype that all have, or of its own one with DTYPE_CODE = -1."""
    if DTYPE_CODE == 0:
        grads, thetas = read_tile(param, grad, first, n, tl.float32, KIND, TILE)
    elif DTYPE_CODE == 1:
        grads, thetas = read_tile(param, grad, first, n, tl.bfloat16, KIND, TILE)
    elif DTYPE_CODE == 2:
        grads, thetas = read_tile(param, grad, first, n, tl.float16, KIND, TILE)
    elif dtype == 0:
        grads, thetas = read_tile(param, grad, first, n, tl.float32, KIND, TILE)
    elif dtype == 1:
        grads, thetas = read_tile(param, grad, first, n, tl.bfloat16, KIND, TILE)
    else:
        grads, thetas = read_tile(param, grad, first, n, tl.float16, KIND, TILE)
    return grads, thetas


@triton.jit
def count_selected(selected, first, low, high, TILE: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr):
    """1 for the entries of the tile at `first` that are in selected[low:high), the tile's slice of the list, else 0."""
    counts = tl.zeros([TILE], tl.int32)
    for start in range(low, high, SELECTED_AT_ONCE):
        place = start + tl.arange(0, SELECTED_AT_ONCE)
        there = place < high
        position = tl.load(selected + place, mask=there, other=0) - first
        counts += tl.histogram(tl.where(there, position, 0), TILE, mask=there)
    return counts


@triton.jit
def gather_selected(grad, dtype, selected, out, low, high, SELECTED_AT_ONCE: tl.constexpr):
    """out[low:high) = the gradients at selected[low:high); they have just been read."""
    for start in range(low, high, SELECTED_AT_ONCE):
        place = start + tl.arange(0, SELECTED_AT_ONCE)
        there = place < high
        offset = tl.load(selected + place, mask=there, other=0)
        if dtype == 0:
            values = tl.load(grad.to(tl.pointer_type(tl.float32)) + offset, mask=there)
        elif dtype == 1:
            values = tl.load(grad.to(tl.pointer_type(tl.bfloat16)) + offset, mask=there).to(tl.float32)
        else:
            values = tl.load(grad.to(tl.pointer_type(tl.float16)) + offset, mask=there).to(tl.float32)
        tl.store(out + place, values, mask=there)


@triton.jit
def composite_of(bits, flat):
    """The candidate of a score's bits and a flat position, see `layout`."""
    return ((-(bits - LARGEST).to(tl.int64) - MIDDLE) << FLAT_BITS) + flat


@triton.jit
def append(candidates, capacity, control, composites, keep):
    """Appends what is kept; what has no room is counted all the same."""
    number = keep.to(tl.int32)
    count = tl.sum(number, 0)
    if count > 0:
        start = tl.atomic_add(control + COUNT, count.to(tl.int64))
        place = start + tl.cumsum(number, 0) - 1
        tl.store(candidates + place, composites, mask=keep & (place < capacity))


@triton.jit(do_not_specialize=["n_rows", "capacity", "tiles_per_chunk"])
def scan_kernel(
    rows, n_rows, chunk_rows, tiles_per_chunk, selected, starts, control, candidates, capacity, out,
    KIND: tl.constexpr, DTYPE_CODE: tl.constexpr, SELECTING: tl.constexpr, HAS_SELECTED: tl.constexpr,
    GATHERING: tl.constexpr, TILE: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One program per chunk: some neighbouring tiles of a tensor.

    Args:
        rows, n_rows: the device table with the columns of `layout`.
        chunk_rows: int32, the row of each chunk.
        tiles_per_chunk: how many tiles, the last chunk of a tensor may have fewer.
        selected, starts: the index list, int32, and where each tile's entries begin in it, see `sample.tile_starts`.
        control: see `layout`.
        candidates, capacity: int64; receives the candidates in any order.
        out: float32, ordered like `selected`: receives the gradients of the selected entries if GATHERING.
    """
    chunk = tl.program_id(0)
    row = tl.load(chunk_rows + chunk)
    numel = column(rows, n_rows, row, NUMEL)
    param = column(rows, n_rows, row, PARAM)
    grad = column(rows, n_rows, row, GRAD)
    dtype = column(rows, n_rows, row, DTYPE)
    salt = column(rows, n_rows, row, SALT)
    flat = column(rows, n_rows, row, FLAT)
    begin = column(rows, n_rows, row, BEGIN)
    slots = starts + column(rows, n_rows, row, SLOTS)
    limit = get(control, LIMIT).to(tl.int32)
    exact = get(control, EXACT)
    scaled, log_limit = get_float(control, SCALED), get_float(control, LOG_LIMIT)
    eps, exponent = get_float(control, EPS), get_double(control, EXPONENT)
    first_tile = (chunk - column(rows, n_rows, row, CHUNKS)) * tiles_per_chunk
    last_tile = tl.minimum(first_tile + tiles_per_chunk, (numel + TILE - 1) // TILE)
    for tile in range(first_tile, last_tile):
        first = tile * TILE
        n = tl.minimum(numel - first, TILE)
        grads, thetas = read_tile_of(param, grad, first, n, dtype, DTYPE_CODE, KIND, TILE)
        lane = tl.arange(0, TILE)
        offsets = (first + lane).to(tl.int32)
        low = begin
        high = begin
        if HAS_SELECTED:
            low = begin + tl.load(slots + tile)
            high = begin + tl.load(slots + tile + 1)
        work = tl.zeros([TILE], tl.int32)
        if SELECTING:
            reach = may_reach(grads, thetas, offsets, salt, eps, exponent, limit, scaled, log_limit, KIND)
            work = reach.to(tl.int32)
        if sees_gradients(KIND):
            work = tl.where(bits_of(tl.abs(grads)) >= INFINITY, 2, work)
        most = tl.max(work, 0)
        if most == 2:
            tl.store(control + NONFINITE, 1)
        if SELECTING:
            if (most > 0) or (exact > 0):
                bits = score_bits(grads, thetas, offsets, salt, eps, exponent, KIND)
                keep = (bits >= limit) & (bits <= LARGEST) & (lane < n)
                if HAS_SELECTED:
                    keep = keep & (count_selected(selected, first, low, high, TILE, SELECTED_AT_ONCE) == 0)
                append(candidates, capacity, control, composite_of(bits, flat + first + lane), keep)
        if GATHERING:
            gather_selected(grad, dtype, selected, out, low, high, SELECTED_AT_ONCE)
