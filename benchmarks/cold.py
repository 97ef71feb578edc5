"""Runs that find nothing in the CPU's caches."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.device import Clock, Run

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_CACHE = 16 << 20  # bytes, where the system does not say


def cache_bytes() -> int:
    """Size of the CPU's largest cache."""
    sizes = [int(path.read_text(encoding="ascii").strip().rstrip("K")) << 10 for path in CACHES.glob("index*/size")]
    return max([LEAST_CACHE, *sizes])


class Cold:
    """Times runs that find nothing in the cache, wherever they run.

    Args:
        clock: of the device; on a GPU it flushes the cache itself.
        nbytes: written before each run on the CPU; by default twice its cache.
    """

    def __init__(self, clock: Clock, nbytes: int | None = None) -> None:
        self._clock = clock
        self._buffer = torch.zeros(0 if clock.on_gpu else nbytes or 2 * cache_bytes(), dtype=torch.int8)

    def flush(self) -> None:
        """Leaves nothing useful in the CPU's caches."""
        self._buffer.add_(1)

    def __call__(self, run: Run) -> float:
        """Seconds."""
        self.flush()
        return self._clock.queued(run)
