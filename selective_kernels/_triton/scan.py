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
    get,
    get_double,
    get_float,
)
from selective_kernels._triton.rows import BEGIN, DTYPE, GRAD, NUMEL, PARAM, column, load_float, widen_bits
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
PART = 1024  # entries that are looked at closely at once
MIXED = -1  # instead of a dtype code: tensors of several


@triton.jit
def read_full(address, first, storage: tl.constexpr, TILE: tl.constexpr):
    """A full tile at an address that is a multiple of 16, by 128-bit loads: the compiler needs the hint after the cast,
    and no mask.
    """
    size: tl.constexpr = storage.primitive_bitwidth // 8
    place = address + first * size
    pointer = tl.multiple_of(place.to(tl.pointer_type(storage)), 16) + tl.arange(0, TILE)
    if storage == tl.uint16:
        values = widen_bits(tl.load(pointer).to(tl.int32), 1)
    else:
        values = tl.load(pointer).to(tl.float32)
    return values


@triton.jit
def filter_entries(
    grads, thetas, first, salt, control, SELECTING: tl.constexpr, KIND: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """2 if a gradient is inf or NaN, 1 if an entry may reach the threshold, else 0."""
    work = tl.zeros([SIZE], tl.int32)
    if SELECTING:
        limit = get(control, LIMIT).to(tl.int32)
        scaled, log_limit = get_float(control, SCALED), get_float(control, LOG_LIMIT)
        eps, exponent = get_float(control, EPS), get_double(control, EXPONENT)
        offsets = (first + tl.arange(0, SIZE)).to(tl.int32)
        work = may_reach(grads, tl.abs(thetas), offsets, salt, eps, exponent, limit, scaled, log_limit, KIND).to(
            tl.int32
        )
    if sees_gradients(KIND):
        work = tl.where(bits_of(tl.abs(grads)) >= INFINITY, 2, work)
    return tl.max(work, 0)


@triton.jit
def filter_full(param, grad, first, salt, control, storage: tl.constexpr, SELECTING: tl.constexpr, KIND: tl.constexpr,
                TILE: tl.constexpr):  # fmt: skip
    """`filter_entries` of a full tile at addresses that are multiples of 16; bfloat16 is read as tl.uint16."""
    grads = tl.zeros([TILE], tl.float32)
    thetas = grads
    if reads_grad(KIND):
        grads = read_full(grad, first, storage, TILE)
    if SELECTING and reads_param(KIND):
        thetas = read_full(param, first, storage, TILE)
    return filter_entries(grads, thetas, first, salt, control, SELECTING, KIND, TILE)


@triton.jit
def filter_full_of(
    param, grad, first, dtype, salt, control, DTYPE_CODE: tl.constexpr, SELECTING: tl.constexpr, KIND: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """`filter_full` of a tensor of the dtype that all have, or of its own one with DTYPE_CODE = -1."""
    if DTYPE_CODE == 0:
        most = filter_full(param, grad, first, salt, control, tl.float32, SELECTING, KIND, TILE)
    elif DTYPE_CODE == 1:
        most = filter_full(param, grad, first, salt, control, tl.uint16, SELECTING, KIND, TILE)
    elif DTYPE_CODE == 2:
        most = filter_full(param, grad, first, salt, control, tl.float16, SELECTING, KIND, TILE)
    elif dtype == 0:
        most = filter_full(param, grad, first, salt, control, tl.float32, SELECTING, KIND, TILE)
    elif dtype == 1:
        most = filter_full(param, grad, first, salt, control, tl.uint16, SELECTING, KIND, TILE)
    else:
        most = filter_full(param, grad, first, salt, control, tl.float16, SELECTING, KIND, TILE)
    return most


@triton.jit
def filter_parts(
    param, grad, first, n, dtype, salt, control, SELECTING: tl.constexpr, KIND: tl.constexpr, PART: tl.constexpr
):  # fmt: skip
    """`filter_entries` of the `n` entries of a tile at any address; what is read past them is zero."""
    most = 0
    for start in range(0, n, PART):
        offsets = (first + start + tl.arange(0, PART)).to(tl.int32)
        there = offsets < first + n
        grads = tl.zeros([PART], tl.float32)
        thetas = grads
        if reads_grad(KIND):
            grads = load_float(grad, offsets, there, dtype)
        if SELECTING and reads_param(KIND):
            thetas = load_float(param, offsets, there, dtype)
        most = tl.maximum(most, filter_entries(grads, thetas, first + start, salt, control, SELECTING, KIND, PART))
    return most


@triton.jit
def count_selected(selected, first, low, high, PART: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr):
    """1 for those of the PART entries from `first` on that are in selected[low:high), their tile's slice, else 0."""
    counts = tl.zeros([PART], tl.int32)
    for start in range(low, high, SELECTED_AT_ONCE):
        place = start + tl.arange(0, SELECTED_AT_ONCE)
        position = (tl.load(selected + place, mask=place < high, other=-1) - first).to(tl.int32)
        there = (position >= 0) & (position < PART)
        counts += tl.histogram(tl.where(there, position, 0), PART, mask=there)
    return counts


@triton.jit
def look_closely(
    param, grad, dtype, salt, flat, first, n, selected, low, high, control,
    KIND: tl.constexpr, HAS_SELECTED: tl.constexpr, PART: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The first `n` of the PART entries from `first` on: (bits of their scores, candidates, which are selectable)."""
    lane = tl.arange(0, PART)
    offsets = (first + lane).to(tl.int32)
    grads = tl.zeros([PART], tl.float32)
    thetas = grads
    if reads_grad(KIND):
        grads = load_float(grad, offsets, lane < n, dtype)
    if reads_param(KIND):
        thetas = load_float(param, offsets, lane < n, dtype)
    eps, exponent = get_float(control, EPS), get_double(control, EXPONENT)
    bits = score_bits(grads, tl.abs(thetas), offsets, salt, eps, exponent, KIND)
    keep = (bits >= 1) & (bits <= LARGEST) & (lane < n)
    if HAS_SELECTED:
        keep = keep & (count_selected(selected, first, low, high, PART, SELECTED_AT_ONCE) == 0)
    candidates = ((-(bits - LARGEST).to(tl.int64) - MIDDLE) << FLAT_BITS) + (flat + offsets)
    return bits, candidates, keep


@triton.jit
def gather_selected(grad, dtype, selected, out, low, high, SELECTED_AT_ONCE: tl.constexpr):
    """out[low:high) = the gradients at selected[low:high); they have just been read."""
    for start in range(low, high, SELECTED_AT_ONCE):
        place = start + tl.arange(0, SELECTED_AT_ONCE)
        there = place < high
        offset = tl.load(selected + place, mask=there, other=0)
        tl.store(out + place, load_float(grad, offset, there, dtype), mask=there)


@triton.jit
def append(candidates, capacity, control, found, keep):
    """Appends what is kept; what has no room is counted all the same."""
    number = keep.to(tl.int32)
    count = tl.sum(number, 0)
    if count > 0:
        start = tl.atomic_add(control + COUNT, count.to(tl.int64), sem="relaxed")
        place = start + tl.cumsum(number, 0) - 1
        tl.store(candidates + place, found, mask=keep & (place < capacity))


@triton.jit(do_not_specialize=["n_rows", "capacity", "tiles_per_chunk"])
def scan_kernel(
    rows, n_rows, chunk_rows, tiles_per_chunk, selected, starts, control, candidates, capacity, out,
    KIND: tl.constexpr, DTYPE_CODE: tl.constexpr, SELECTING: tl.constexpr, HAS_SELECTED: tl.constexpr,
    GATHERING: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr, SELECTED_AT_ONCE: tl.constexpr,
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
    addresses = grad
    if SELECTING and reads_param(KIND):
        addresses = param | grad
    first_tile = (chunk - column(rows, n_rows, row, CHUNKS)) * tiles_per_chunk
    last_tile = tl.minimum(first_tile + tiles_per_chunk, (numel + TILE - 1) // TILE)
    for tile in range(first_tile, last_tile):
        first = tile * TILE
        n = tl.minimum(numel - first, TILE)
        if (n == TILE) and (addresses % 16 == 0):
            most = filter_full_of(param, grad, first, dtype, salt, control, DTYPE_CODE, SELECTING, KIND, TILE)
        else:
            most = filter_parts(param, grad, first, n, dtype, salt, control, SELECTING, KIND, PART)
        if most == 2:
            tl.store(control + NONFINITE, 1)
        low = begin
        high = begin
        if HAS_SELECTED:
            low = begin + tl.load(slots + tile)
            high = begin + tl.load(slots + tile + 1)
        if SELECTING:
            if (most > 0) or (exact > 0):
                # The tile comes from the cache now, part by part: few registers keep many programs in flight.
                for start in range(0, n, PART):
                    bits, found, keep = look_closely(
                        param, grad, dtype, salt, flat, first + start, n - start, selected, low, high, control,
                        KIND, HAS_SELECTED, PART, SELECTED_AT_ONCE,
                    )  # fmt: skip
                    append(candidates, capacity, control, found, keep & (bits >= limit))
        if GATHERING:
            gather_selected(grad, dtype, selected, out, low, high, SELECTED_AT_ONCE)
