"""How fast a device reads and copies memory, so that a step can be compared with what its bytes must cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.device import Clock, free_bytes
from selective_kernels import dispatch

LARGEST = {"cuda": 4 << 30, "cpu": 64 << 20}  # bytes of a buffer: far larger than a cache
REPEATS = 10


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second. `copy` counts what is read and what is written; `reader` is what read the fastest."""

    read: float
    copy: float
    reader: str


def measure(clock: Clock) -> Bandwidth:
    """Medians over some repeats on a large buffer; the fastest way to read counts, so that no aim is easy to meet."""
    device = clock.device
    size = min(LARGEST[device.type], free_bytes(device) // 8) >> 20 << 20
    words = torch.ones(size // 4, dtype=torch.int32, device=device)
    other = torch.empty_like(words)
    readers: dict[str, Callable[[], object]] = {"torch.sum": words.view(torch.float32).sum}
    if device.type == "cuda" and not dispatch.unavailable("triton", device):
        from benchmarks.read_kernel import read

        readers["a Triton kernel"] = lambda: read(words)
    seconds = {name: _median(clock, run) for name, run in readers.items()}
    reader = min(seconds, key=lambda name: seconds[name])
    return Bandwidth(size / seconds[reader], 2 * size / _median(clock, lambda: other.copy_(words)), reader)


def _median(clock: Clock, run: Callable[[], object]) -> float:
    run()
    return statistics.median(clock.queued(run) for _ in range(REPEATS))
