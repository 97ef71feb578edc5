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

# Further columns of the device table, int64: integers about ages, then the bits of float32 numbers.
MISSED = tl.constexpr(N_COLUMNS)  # where the tensor's missed steps begin
MISSED_END = tl.constexpr(N_COLUMNS + 1)
AGES = tl.constexpr(N_COLUMNS + 2)  # where its group's corrections by age begin
LAST_AGE = tl.constexpr(N_COLUMNS + 3)  # from there on they stay what they are
NUMBERS = N_COLUMNS + 4
LR = tl.constexpr(NUMBERS)
L2 = tl.constexpr(NUMBERS + 1)  # weight decay in the gradient
STEP_SIZE = tl.constexpr(NUMBERS + 2)  # Adam: lr / (1 - beta1^t)
CORRECTION2 = tl.constexpr(NUMBERS + 3)  # Adam: sqrt(1 - beta2^t)
ONE_MINUS_BETA1 = tl.constexpr(NUMBERS + 4)
BETA2 = tl.constexpr(NUMBERS + 5)
ONE_MINUS_BETA2 = tl.constexpr(NUMBERS + 6)
EPS = tl.constexpr(NUMBERS + 7)
KEEP = tl.constexpr(NUMBERS + 8)  # 1 - lr * decay
STARTS = tl.constexpr(NUMBERS + 2)  # SGD: 1 if all momentum of the tensor starts now
MOMENTUM = tl.constexpr(NUMBERS + 3)
ONE_MINUS_DAMPENING = tl.constexpr(NUMBERS + 4)
NESTEROV = tl.constexpr(NUMBERS + 5)  # SGD: 1 or 0


@triton.jit
def number(rows, n_rows, row, which: tl.constexpr):
    """A float32 of the device table."""
    return column(rows, n_rows, row, which).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def may_run(skip, HAS_SKIP: tl.constexpr):
    """Whether the update's flag lets it run."""
    if HAS_SKIP:
        runs = tl.load(skip) == 0
    else:
        runs = True
    return runs


@triton.jit
def load_clip(clip, CLIP_ON_DEVICE: tl.constexpr):
    """The factor on the gradients: a number, or what is at an address."""
    if CLIP_ON_DEVICE:
        factor = tl.load(clip)
    else:
        factor = clip
    return factor


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
    clip, skip, AGED: tl.constexpr, CLIP_ON_DEVICE: tl.constexpr, HAS_SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of Adam or AdamW; the arrays are ordered like the index list `offsets`.

    With AGED, `corrections1` and `corrections2` (float32, by age) are 1 - beta1^age and sqrt(1 - beta2^age). `clip` is
    a factor on the gradients, a number or one float32; nothing happens unless `skip` (one int32, if any) is zero.
    """
    if may_run(skip, HAS_SKIP):
        row, entries, there = block_entries(rows, n_rows, BLOCK)
        offset = tl.load(offsets + entries, mask=there, other=0)
        param, dtype = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, DTYPE)
        theta = load_theta(param, offset, master, entries, there, dtype)
        step_size = number(rows, n_rows, row, STEP_SIZE)
        correction2 = number(rows, n_rows, row, CORRECTION2)
        if AGED:
            age = entry_ages(rows, n_rows, row, chosen, missed, now, steps, entries, there)
            age = tl.minimum(age, column(rows, n_rows, row, LAST_AGE)) + column(rows, n_rows, row, AGES)
            step_size = tl.math.div_rn(number(rows, n_rows, row, LR), tl.load(corrections1 + age))
            correction2 = tl.load(corrections2 + age)
        grad = tl.load(grads + entries, mask=there, other=0.0) * load_clip(clip, CLIP_ON_DEVICE)
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
    AGED: tl.constexpr, HAS_BUFFER: tl.constexpr, CLIP_ON_DEVICE: tl.constexpr, HAS_SKIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of SGD; arguments as in `adam_kernel`. A group without momentum leaves its part of `buffer` alone."""
    if may_run(skip, HAS_SKIP):
        row, entries, there = block_entries(rows, n_rows, BLOCK)
        offset = tl.load(offsets + entries, mask=there, other=0)
        param, dtype = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, DTYPE)
        theta = load_theta(param, offset, master, entries, there, dtype)
        grad = tl.load(grads + entries, mask=there, other=0.0) * load_clip(clip, CLIP_ON_DEVICE)
        grad = grad + number(rows, n_rows, row, L2) * theta
        direction = grad
        if HAS_BUFFER:
            momentum = number(rows, n_rows, row, MOMENTUM)
            if momentum != 0.0:
                before = tl.load(buffer + entries, mask=there, other=0.0)
                after = momentum * before + number(rows, n_rows, row, ONE_MINUS_DAMPENING) * grad
                if AGED:
                    age = entry_ages(rows, n_rows, row, chosen, missed, now, steps, entries, there)
                    after = tl.where(age == 1, grad, after)
                elif number(rows, n_rows, row, STARTS) != 0.0:
                    after = grad
                tl.store(buffer + entries, after, mask=there)
                direction = after
                if number(rows, n_rows, row, NESTEROV) != 0.0:
                    direction = grad + momentum * after
        theta = theta - number(rows, n_rows, row, LR) * direction
        store_theta(param, offset, master, entries, there, dtype, theta)


@triton.jit(do_not_specialize=["n_rows"])
def square_kernel(rows, n_rows, grads, sums, NORM_BLOCK: tl.constexpr):
    """sums[program] = the sum of squares (float64) of a block of NORM_BLOCK entries of a tensor."""
    _, entries, there = block_entries(rows, n_rows, NORM_BLOCK)
    values = tl.load(grads + entries, mask=there, other=0.0).to(tl.float64)
    tl.store(sums + tl.program_id(0), tl.sum(values * values, 0))
