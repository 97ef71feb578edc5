"""What every round of an operation's timing measures beside it: how fast memory is read and copied, past all caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.bandwidth import LARGEST
from benchmarks.device import Clock, Run, free_bytes
from benchmarks.harness import Contender
from selective_kernels import Table, dispatch
from selective_kernels.testing import read_once

READ, COPY = "read", "copy"
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


def probes(clock: Clock, largest: int | None = None) -> tuple[list[Contender], dict[str, int]]:
    """Reading and copying a buffer that is larger than every cache, and the bytes that each of the two moves.

    Args:
        clock: of the device.
        largest: bytes of the buffer; by default what `bandwidth` uses, and twice the CPU's cache.
    """
    device = clock.device
    wanted = largest or (LARGEST["cuda"] if clock.on_gpu else max(LARGEST["cpu"], 2 * cache_bytes()))
    size = min(wanted, free_bytes(device) // 8) >> 20 << 20
    words = torch.ones(size // 4, dtype=torch.int32, device=device)
    other = torch.empty_like(words)
    contenders = [Contender(READ, _reader(words)), Contender(COPY, lambda: other.copy_(words))]
    return contenders, {READ: size, COPY: 2 * size}


def _reader(words: torch.Tensor) -> Callable[[], object]:
    """Our own kernels read at full speed; where there are none, a sum does nearly."""
    floats = words.view(torch.float32)
    if words.device.type == "cuda" and not dispatch.unavailable("triton", words.device):
        from benchmarks.read_kernel import read

        return lambda: read(words)
    if words.device.type == "cpu" and not dispatch.unavailable("cpu", "cpu"):
        table = Table([floats])
        return lambda: read_once(table)  # type: ignore[arg-type]
    return floats.sum
