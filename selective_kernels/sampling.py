"""What the scans on GPUs have in common: how large a sample tells of a threshold, and how much room candidates get."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

LINE = 16  # entries; a sampled line is one or two sectors of 32 bytes
# How many lines are sampled: a share of them, between these. Fewer mean more candidates, more mean more to read.
LEAST_SAMPLES, MOST_SAMPLES = 2**14, 2**17
SAMPLED_SHARE = 256
LEAST_STRIDE = 8  # at most one line of so many
USEFUL_SAMPLES = 32  # with fewer a threshold is not worth having
LEAST_CAPACITY = 1024
ROOM = 3  # times the expected number of candidates


class Sample(NamedTuple):
    """How a threshold for the best k is guessed.

    Attributes:
        lines: number of sampled lines; 0 if there is no sample, and everything is a candidate.
        stride: one line of so many is sampled.
        rank: the sampled score of this rank, best first, is the threshold: six standard deviations above what k of all
            entries would give.
        candidates: about how many entries reach it.
    """

    lines: int
    stride: int
    rank: int
    candidates: int


def sample_for(k: int, n_lines: int, numel: int) -> Sample:
    """The sample for the best k of `numel` entries in `n_lines` lines."""
    wanted = min(max(n_lines // SAMPLED_SHARE, LEAST_SAMPLES), MOST_SAMPLES)
    stride = max(LEAST_STRIDE, n_lines // wanted)
    lines = n_lines // stride
    if lines < USEFUL_SAMPLES:
        return Sample(0, 1, 0, numel)
    expected = k * lines * LINE / numel
    rank = int(expected + 6.0 * math.sqrt(expected) + 16.0)
    if rank >= lines * LINE:
        return Sample(0, 1, 0, numel)
    return Sample(lines, stride, rank, min(rank * stride, numel))


def capacity_for(sample: Sample, numel: int) -> int:
    """How many candidates get room where so many are expected of `numel` entries."""
    return min(ROOM * sample.candidates + 4096, numel)


def float_bits(value: float) -> int:
    """The bits of a value rounded to float32, as an int32."""
    return int(torch.tensor(value, dtype=torch.float32, device="cpu").view(torch.int32))


def float_of(bits: int) -> float:
    """The float32 of these bits, given as an int32."""
    return float(torch.tensor(bits, dtype=torch.int32, device="cpu").view(torch.float32))


def allocate(count: int, device: torch.device) -> Tensor:
    """Room for candidates, int64."""
    return torch.empty(count, dtype=torch.int64, device=device)


def warn_of_memory(count: int) -> None:
    """Says that a scan goes the long way; the result is the same."""
    warnings.warn(f"out of memory for {count} candidates: the scan reads the tensors more often", stacklevel=2)
