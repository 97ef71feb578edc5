"""The optimizer updates of update.h in Triton, and their kernels over an index list."""

from __future__ import annotations

import triton
import triton.language as tl

from selective_kernels._triton.rows import (
    DTYPE,
    N_COLUMNS,
    PARAM,
    block_entries,
    column,
    load_bits,
    lower_bounds,
    narrow_bits,
    store_bits,
    widen_bits,
)

# Further columns of the device table, int64 that hold the bits of a float32 unless something else is said.
COLUMN = tl.constexpr(N_COLUMNS)
MISSED = tl.constexpr(N_COLUMNS)  # integer: where the tensor's missed steps begin
MISSED_END = tl.constexpr(N_COLUMNS + 1)  # integer
AGES = tl.constexpr(N_COLUMNS + 2)  # integer: where its group's corrections by age begin
LAST_AGE = tl.constexpr(N_COLUMNS + 3)  # integer: from there on they stay what they are
LR = tl.constexpr(N_COLUMNS + 4)
FIRST = tl.constexpr(N_COLUMNS + 5)  # Adam: lr / (1 - beta1^t). SGD, integer: 1 if all momentum starts now
CORRECTION2 = tl.constexpr(N_COLUMNS + 6)  # Adam: sqrt(1 - beta2^t)
ONE_MINUS_BETA1 = tl.constexpr(N_COLUMNS + 7)  # SGD: momentum
BETA2 = tl.constexpr(N_COLUMNS + 8)  # SGD: 1 - dampening
ONE_MINUS_BETA2 = tl.constexpr(N_COLUMNS + 9)  # SGD, integer: 1 for Nesterov
EPS = tl.constexpr(N_COLUMNS + 10)
KEEP = tl.constexpr(N_COLUMNS + 11)  # 1 - lr * decay
L2 = tl.constexpr(N_COLUMNS + 12)  # weight decay in the gradient
N_EXTRA = 13


@triton.jit
def number(rows, n_rows, row, which: tl.constexpr):
    """A float32 of the device table."""
    return column(rows, n_rows, row, which).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def load_theta(param, offset, master, entries, there, dtype):
    """The entries in float32: of 16-bit parameters the master copy, unless somebody wrote to the parameter (C6)."""
    stored = load_bits(param, offset, there, dtype)
    theta = widen_bits(stored, dtype)
    if dtype != 0:
        copy = tl.load(master + entries, mask=there, other=0.0)
        theta = tl.where(narrow_bits(copy, dtype) == stored, copy, theta)
    return theta


@triton.jit
def store_theta(param, offset, master, entries, there, dtype, theta):
    store_bits(param, offset, narrow_bits(theta, dtype), there, dtype)
    if dtype != 0:
        tl.store(master + entries, theta, mask=there)


@triton.jit
def entry_ages(rows, n_rows, row, chosen, missed, now, steps, entries, there):
    """Updates that each entry has had, this step's included, at least 1: steps in which its tensor had no gradient do
    not count.
    """
    begin = tl.load(chosen + entries, mask=there, other=0)
    low = column(rows, n_rows, row, MISSED) + tl.zeros_like(entries)
    high = column(rows, n_rows, row, MISSED_END) + tl.zeros_like(entries)
    later = high - lower_bounds(missed, low, high, begin, steps)
    age = now - begin.to(tl.int64) + 1 - later
    return tl.minimum(tl.maximum(age, 1), now + 1)


@triton.jit(do_not_specialize=["n_rows", "now", "steps"])
def adam_kernel(
    rows, n_rows, offsets, grads, exp_avg, exp_avg_sq, master, chosen, missed, corrections1, corrections2, now, steps,
    clip, skip, AGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of Adam or AdamW; the arrays are ordered like the index list `offsets`.

    With AGED, `corrections1` and `corrections2` (float32, by age) are 1 - beta1^age and sqrt(1 - beta2^age). `clip`
    (float32, 1) is a factor on the gradients; nothing happens unless `skip` (int32, 1) is zero.
    """
    if tl.load(skip) == 0:
        row, entries, there = block_entries(rows, n_rows, BLOCK)
        offset = tl.load(offsets + entries, mask=there, other=0)
        param, dtype = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, DTYPE)
        theta = load_theta(param, offset, master, entries, there, dtype)
        step_size = number(rows, n_rows, row, FIRST)
        correction2 = number(rows, n_rows, row, CORRECTION2)
        if AGED:
            age = entry_ages(rows, n_rows, row, chosen, missed, now, steps, entries, there)
            age = tl.minimum(age, column(rows, n_rows, row, LAST_AGE)) + column(rows, n_rows, row, AGES)
            step_size = tl.math.div_rn(number(rows, n_rows, row, LR), tl.load(corrections1 + age))
            correction2 = tl.load(corrections2 + age)
        grad = tl.load(grads + entries, mask=there, other=0.0) * tl.load(clip)
        grad = grad + number(rows, n_rows, row, L2) * theta
        theta = theta * number(rows, n_rows, row, KEEP)
        m = tl.load(exp_avg + entries, mask=there, other=0.0)
        v = tl.load(exp_avg_sq + entries, mask=there, other=0.0)
        m = m + number(rows, n_rows, row, ONE_MINUS_BETA1) * (grad - m)
        v = v * number(rows, n_rows, row, BETA2) + number(rows, n_rows, row, ONE_MINUS_BETA2) * grad * grad
        denominator = tl.math.div_rn(tl.math.sqrt_rn(v), correction2) + number(rows, n_rows, row, EPS)
        theta = theta - step_size * tl.math.div_rn(m, denominator)
        tl.store(exp_avg + entries, m, mask=there)
        tl.store(exp_avg_sq + entries, v, mask=there)
        store_theta(param, offset, master, entries, there, dtype, theta)


@triton.jit(do_not_specialize=["n_rows", "now", "steps"])
def sgd_kernel(
    rows, n_rows, offsets, grads, buffer, master, chosen, missed, now, steps, clip, skip,
    AGED: tl.constexpr, HAS_BUFFER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of SGD; arguments as in `adam_kernel`. A group without momentum leaves its part of `buffer` alone."""
    if tl.load(skip) == 0:
        row, entries, there = block_entries(rows, n_rows, BLOCK)
        offset = tl.load(offsets + entries, mask=there, other=0)
        param, dtype = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, DTYPE)
        theta = load_theta(param, offset, master, entries, there, dtype)
        grad = tl.load(grads + entries, mask=there, other=0.0) * tl.load(clip)
        grad = grad + number(rows, n_rows, row, L2) * theta
        direction = grad
        if HAS_BUFFER:
            momentum = number(rows, n_rows, row, ONE_MINUS_BETA1)
            if momentum != 0.0:
                before = tl.load(buffer + entries, mask=there, other=0.0)
                after = momentum * before + number(rows, n_rows, row, BETA2) * grad
                first = column(rows, n_rows, row, FIRST) + tl.zeros_like(entries)
                if AGED:
                    first = entry_ages(rows, n_rows, row, chosen, missed, now, steps, entries, there)
                after = tl.where(first == 1, grad, after)
                tl.store(buffer + entries, after, mask=there)
                direction = after
                if column(rows, n_rows, row, ONE_MINUS_BETA2) == 1:
                    direction = grad + momentum * after
        theta = theta - number(rows, n_rows, row, LR) * direction
        store_theta(param, offset, master, entries, there, dtype, theta)


@triton.jit(do_not_specialize=["n_rows"])
def square_kernel(rows, n_rows, grads, sums, NORM_BLOCK: tl.constexpr):
    """sums[program] = the sum of squares (float64) of a block of NORM_BLOCK entries of a tensor."""
    _, entries, there = block_entries(rows, n_rows, NORM_BLOCK)
    values = tl.load(grads + entries, mask=there, other=0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(values * values, 0))
