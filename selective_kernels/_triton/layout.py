"""What the scan's kernels know of each tensor besides its row, and how they look things up."""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels._triton.rows import N_COLUMNS

TILE = 4096  # entries that a program reads at once; tiles never straddle tensors

# Further columns of the device table, see `rows`.
FLAT = tl.constexpr(N_COLUMNS)  # running sum of entries: the flat position of the tensor's first entry
LINES = tl.constexpr(N_COLUMNS + 1)  # running sum of lines
SLOTS = tl.constexpr(N_COLUMNS + 2)  # running sum of tiles plus one: where the tensor's tile starts are
CHUNKS = tl.constexpr(N_COLUMNS + 3)  # running sum of chunks, the work of one program
SALT = tl.constexpr(N_COLUMNS + 4)  # of the random score

# Items of the control block, int64.
COUNT = tl.constexpr(0)  # candidates found, also those that had no room
NONFINITE = tl.constexpr(1)  # 1 if a gradient is inf or NaN
LIMIT = tl.constexpr(2)  # bits of the lowest score that is a candidate
EXACT = tl.constexpr(3)  # 1 if the filter cannot be trusted: every tile is looked at closely
SCALED = tl.constexpr(4)  # float32 bits: the filter's factor
LOG_LIMIT = tl.constexpr(5)  # float32 bits: the same for any exponent
EPS = tl.constexpr(6)  # float32 bits
EXPONENT = tl.constexpr(7)  # float64 bits
LEAST_POWER = tl.constexpr(8)  # float64 bits: the least (|theta| + eps)^exponent
SLACK = tl.constexpr(9)  # float64 bits: of the filter for any exponent, in units of log2
LOWEST = tl.constexpr(10)  # bits of the lowest score among the best
STRIDE = tl.constexpr(11)  # one line of so many is sampled
RANK = tl.constexpr(12)  # which of the sampled scores, best first, becomes the threshold
FIXED = tl.constexpr(13)  # bits of a threshold that is given; 0 if it comes from the sample
CONTROL = 16  # items

# A candidate is one int64, better ones are smaller: 31 bits of the score, the largest first, then 33 bits of the flat
# position. `UNUSED` is worse than every candidate.
FLAT_BITS = tl.constexpr(33)
FLAT_MASK = tl.constexpr(2**33 - 1)
MIDDLE = tl.constexpr(2**30)
UNUSED = tl.constexpr(2**63 - 1)
MAX_ENTRIES = 2**33 - 1  # in all tensors of a scan


@triton.jit
def get(control, item: tl.constexpr):
    return tl.load(control + item)


@triton.jit
def get_float(control, item: tl.constexpr):
    return tl.load(control + item).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def get_double(control, item: tl.constexpr):
    return tl.load(control + item).to(tl.float64, bitcast=True)


@triton.jit
def find_rows(starts, n_rows, values, steps):
    """`rows.find_row` for many values; `steps` is the bit length of n_rows."""
    low = tl.zeros_like(values)
    high = low + n_rows
    for _ in range(steps):
        middle = (low + high) // 2
        right = tl.load(starts + middle) <= values
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    return low
