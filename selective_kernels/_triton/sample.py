"""Before the scan: where each tile's selected entries are, and a threshold from a sample of all scores."""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels._triton.layout import (
    EPS,
    EXACT,
    EXPONENT,
    FIXED,
    LEAST_POWER,
    LIMIT,
    LINES,
    LOG_LIMIT,
    RANK,
    SALT,
    SCALED,
    SLACK,
    SLOTS,
    STRIDE,
    TILE,
    find_rows,
    get,
    get_double,
    get_float,
)
from selective_kernels._triton.rows import BEGIN, DTYPE, END, GRAD, NUMEL, PARAM, column, load_mixed, lower_bounds
from selective_kernels._triton.scores import (
    ANY,
    HALF,
    INFINITY,
    LARGEST,
    ONE,
    TWO,
    mix32,
    reads_grad,
    reads_param,
    score_bits,
)
from selective_kernels.sampling import LINE

LINES_AT_ONCE = 64
BLOCKS_PER_PROGRAM = 8
SLOTS_PER_PROGRAM = 1024
BIN_SHIFT = tl.constexpr(19)  # scores that agree in the bits above share a bin: 16 bins per power of two
BINS = 2**12
SAMPLE_LINE = tl.constexpr(LINE)
SAMPLE_TILE = tl.constexpr(TILE)


@triton.jit
def tile_starts(rows, n_rows, offsets, starts, n_slots, row_steps, entry_steps, block, SLOTS_PER_PROGRAM: tl.constexpr):
    """Per tile, how many of its tensor's selected entries come before it; one slot more per tensor has their number."""
    slot = block.to(tl.int64) * SLOTS_PER_PROGRAM + tl.arange(0, SLOTS_PER_PROGRAM)
    there = slot < n_slots
    slot = tl.where(there, slot, 0)
    row = find_rows(rows + SLOTS * (n_rows + 1), n_rows, slot, row_steps)
    begin = column(rows, n_rows, row, BEGIN)
    end = column(rows, n_rows, row, END)
    first = (slot - column(rows, n_rows, row, SLOTS)) * SAMPLE_TILE
    found = lower_bounds(offsets, begin, end, first, entry_steps)
    tl.store(starts + slot, (found - begin).to(tl.int32), mask=there)


@triton.jit
def sample_bins(
    rows, n_rows, offsets, control, n_samples, row_steps, entry_steps, block,
    KIND: tl.constexpr, HAS_SELECTED: tl.constexpr, LINES_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Bins of the scores of one line at a random place in each STRIDE of them: (int32, which of them count).

    Selected entries do not count.
    """
    sample = block * LINES_AT_ONCE + tl.arange(0, LINES_AT_ONCE)
    there = sample < n_samples
    sample = tl.where(there, sample, 0)
    stride = get(control, STRIDE)
    line = sample.to(tl.int64) * stride + mix32(sample.to(tl.uint32) + 1).to(tl.int64) % stride
    row = find_rows(rows + LINES * (n_rows + 1), n_rows, line, row_steps)
    first = (line - column(rows, n_rows, row, LINES)) * SAMPLE_LINE
    entry = first[:, None] + tl.arange(0, SAMPLE_LINE)[None, :]
    mask = there[:, None] & (entry < column(rows, n_rows, row, NUMEL)[:, None])
    dtype = column(rows, n_rows, row, DTYPE)[:, None]
    grad = tl.zeros([LINES_AT_ONCE, SAMPLE_LINE], tl.float32)
    theta = grad
    if reads_grad(KIND):
        grad = load_mixed(column(rows, n_rows, row, GRAD)[:, None], entry, mask, dtype)
    if reads_param(KIND):
        theta = load_mixed(column(rows, n_rows, row, PARAM)[:, None], entry, mask, dtype)
    eps, exponent = get_float(control, EPS), get_double(control, EXPONENT)
    salt = column(rows, n_rows, row, SALT)[:, None]
    bits = score_bits(grad, tl.abs(theta), entry, salt, eps, exponent, KIND)
    keep = mask & (bits >= 1) & (bits <= LARGEST)
    if HAS_SELECTED:
        begin = column(rows, n_rows, row, BEGIN)
        end = column(rows, n_rows, row, END)
        low = lower_bounds(offsets, begin, end, first, entry_steps)
        high = tl.minimum(low + SAMPLE_LINE, end)  # as many at most lie in a line
        low = low[:, None] + tl.zeros_like(entry)
        high = high[:, None] + tl.zeros_like(entry)
        place = lower_bounds(offsets, low, high, entry, 5)
        keep = keep & ((place < high) & (tl.load(offsets + place, mask=place < high, other=-1) == entry) == 0)
    flat: tl.constexpr = LINES_AT_ONCE * SAMPLE_LINE
    return tl.reshape(bits >> BIN_SHIFT, [flat]), tl.reshape(keep, [flat])


@triton.jit(do_not_specialize=["n_rows", "n_samples", "n_slots", "row_steps", "entry_steps", "n_sampling"])
def prepare_kernel(
    rows, n_rows, offsets, control, histogram, starts, n_samples, n_slots, row_steps, entry_steps, n_sampling,
    KIND: tl.constexpr, HAS_SELECTED: tl.constexpr, LINES_AT_ONCE: tl.constexpr, BLOCKS_PER_PROGRAM: tl.constexpr,
    SLOTS_PER_PROGRAM: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """The first `n_sampling` programs sample into `histogram` (int32, BINS), the others fill `starts` (int32)."""
    program = tl.program_id(0)
    if program < n_sampling:
        counts = tl.zeros([BINS], tl.int32)
        for i in range(BLOCKS_PER_PROGRAM):
            bins, keep = sample_bins(
                rows, n_rows, offsets, control, n_samples, row_steps, entry_steps, program * BLOCKS_PER_PROGRAM + i,
                KIND, HAS_SELECTED, LINES_AT_ONCE,
            )  # fmt: skip
            counts += tl.histogram(tl.where(keep, bins, 0), BINS, mask=keep)
        tl.atomic_add(histogram + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")
    else:
        tile_starts(
            rows, n_rows, offsets, starts, n_slots, row_steps, entry_steps, program - n_sampling, SLOTS_PER_PROGRAM
        )


@triton.jit
def filter_kernel(control, histogram, KIND: tl.constexpr, BINS: tl.constexpr):
    """Puts the threshold into the control block, with what the scan's filter needs.

    That is the lower edge of the bin that holds the sample's RANK-th best score; or FIXED, if that is above zero.
    Subnormal products round too coarsely for the filter's relative slack; then it must not be trusted.
    """
    limit = get(control, FIXED)
    if limit <= 0:
        counts = tl.load(histogram + tl.arange(0, BINS))
        at_least = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
        reached = tl.sum((at_least >= get(control, RANK)).to(tl.int32), 0)
        limit = tl.maximum((reached - 1) << BIN_SHIFT, 1).to(tl.int64)
    score = limit.to(tl.int32).to(tl.float32, bitcast=True)
    exact = tl.zeros_like(limit)
    if KIND == HALF or KIND == ONE or KIND == TWO or KIND == ANY:
        least = score.to(tl.float64) * get_double(control, LEAST_POWER)
        normal = (score >= 2.0**-120) & (least >= 2.0**-120) & (limit < INFINITY)
        exact = (normal == 0).to(tl.int64)
    scaled = (score.to(tl.float64) * (1.0 - 1e-6)).to(tl.float32)
    # A float's bits, read as an integer, are 2^23 (127 + log2 x - e) with 0 <= e < 0.0861.
    log_limit = limit.to(tl.float64) - 2.0**23 * (127.0 * get_double(control, EXPONENT) + get_double(control, SLACK))
    tl.store(control + LIMIT, limit)
    tl.store(control + EXACT, exact)
    tl.store(control + SCALED, scaled.to(tl.int32, bitcast=True).to(tl.int64))
    tl.store(control + LOG_LIMIT, log_limit.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64))
