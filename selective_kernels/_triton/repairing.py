"""The exact best k without a usable threshold: their bounds are counted out digit by digit, then they are collected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels._triton import layout
from selective_kernels._triton.read import Read
from selective_kernels._triton.repair import DIGIT_BITS, DIGITS, SHIFTS
from selective_kernels.hostcopy import HostCopy, to_device
from selective_kernels.sampling import LEAST_CAPACITY, allocate, warn_of_memory

HALF_RANGE = 2**63  # between a candidate and its number without sign
LAST = 2**64 - 1


def smallest(reads: Sequence[Read], k: int) -> tuple[Tensor, int]:
    """The best k candidates of some reads, best first (int64, on the device), and how many passes that took.

    Any number at once, but fewer if there is no memory for them.
    """
    reads = [read for read in reads if read.selects]
    device = reads[0].control.device if reads else torch.device("cpu")
    found: list[Tensor] = []
    passes, first, left, at_once = 0, 0, k, k
    while reads and left and first <= LAST:
        last, count = _bound(reads, first, min(left, at_once))
        passes += len(SHIFTS)
        if not count:
            break
        try:
            found.append(_collect(reads, first, last, count))
        except torch.OutOfMemoryError:
            if at_once <= LEAST_CAPACITY:
                raise
            warn_of_memory(count)
            at_once = max(min(count, at_once) // 4, LEAST_CAPACITY)
            continue
        passes += 1
        left -= count
        first = last + 1
    return torch.cat([torch.empty(0, dtype=torch.int64, device=device), *found]), passes


def _bounds(first: int, last: int, device: torch.device) -> Tensor:
    return to_device(torch.tensor([first - HALF_RANGE, last - HALF_RANGE], dtype=torch.int64, device="cpu"), device)


def _bound(reads: Sequence[Read], first: int, wanted: int) -> tuple[int, int]:
    """The number up to which, from `first` on, exactly `wanted` candidates lie, and how many do (fewer at the end)."""
    device = reads[0].control.device
    prefix, missing = 0, wanted
    for shift in SHIFTS:
        digits = min(DIGITS, 2 ** (4 if shift == 0 else DIGIT_BITS))
        low, high = max(first, prefix), prefix + (digits << shift) - 1
        counts = torch.zeros(DIGITS, dtype=torch.int64, device=device)
        for read in reads:
            read.count_digits(_bounds(low, high, device), shift, digits, counts)
        running = HostCopy(counts).wait().cumsum(0)
        if int(running[-1]) < missing:  # only for the highest digit: there are no more candidates
            return LAST, int(running[-1])
        digit = int(torch.searchsorted(running, missing))
        missing -= int(running[digit - 1]) if digit else 0
        prefix |= digit << shift
    return prefix, wanted


def _collect(reads: Sequence[Read], first: int, last: int, count: int) -> Tensor:
    device = reads[0].control.device
    candidates = allocate(count, device)
    control = reads[0].control.clone()
    control[layout.COUNT.value] = 0
    for read in reads:
        read.collect(_bounds(first, last, device), candidates, control)
    return torch.sort(candidates).values
