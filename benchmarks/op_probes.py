"""What every round of an operation's timing measures beside it: how fast memory is read and copied, past all caches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.bandwidth import LARGEST
from benchmarks.cold import cache_bytes
from benchmarks.device import Clock, free_bytes
from benchmarks.harness import Contender
from selective_kernels import Table, dispatch
from selective_kernels.testing import read_once

READ, COPY = "read", "copy"


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
