"""Time and memory on a device: events on its stream, a flushed cache, and what an optimizer allocates."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from benchmarks.harness import host_seconds
from benchmarks.report import driver, version

Run = Callable[[], object]
LEAST_FLUSH = 256 << 20  # bytes written to flush the cache, or twice the cache if that is more
AHEAD = 0.010  # seconds of work that the device still has when a step is enqueued, as it has after a backward pass


def gpu_environment(device: torch.device) -> dict[str, str]:
    """What a number measured on a device depends on besides `report.environment`; no values without a GPU."""
    names = ("gpu", "capability", "gpu_memory_gb", "l2_mb", "driver", "cuda", "triton")
    if device.type != "cuda":
        return dict.fromkeys(names[:-1], "") | {"triton": version("triton")}
    found = torch.cuda.get_device_properties(device)
    values = (
        found.name,
        f"{found.major}.{found.minor}",
        f"{found.total_memory / 1e9:.1f}",
        f"{found.L2_cache_size / 1e6:.0f}",
        driver(),
        str(torch.version.cuda),
        version("triton"),
    )
    return dict(zip(names, values, strict=True))


def mark() -> torch.cuda.Event:
    """An event on the current stream, which `elapsed_time` compares with another one."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


class Clock:
    """Times what runs on a device; on the CPU there is only the host's clock, and nothing is flushed.

    Args:
        device: of the tensors that are timed; the current CUDA device, if it is one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self._fills = 0
        if not self.on_gpu:
            return
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = torch.empty(max(LEAST_FLUSH, 2 * cache), dtype=torch.int8, device=device)
        once = min(self.queued(self._buffer.zero_) for _ in range(5))
        self._fills = int(AHEAD / once) + 1

    def synchronize(self) -> None:
        """Waits until the device is idle."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Gives the memory of what nobody uses any more back to the device."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def queued(self, run: Run) -> float:
        """Seconds between two events on the device's stream, before and after the work that `run` enqueues.

        The device is busy writing a buffer larger than its cache when `run` is called, and has been ahead of the host
        for `AHEAD` seconds: launching costs time only where `run` waits for the device or is slower than that.
        """
        if not self.on_gpu:
            return host_seconds(run)
        for _ in range(self._fills):
            self._buffer.zero_()
        began = mark()
        run()
        ended = mark()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3

    def alone(self, run: Run) -> float:
        """Seconds of the host's clock from an idle device with a flushed cache until all work of `run` is done."""
        if not self.on_gpu:
            return host_seconds(run)
        self._buffer.zero_()
        self.synchronize()
        began = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - began


class MemoryWatch:
    """What each of several contenders allocates on a CUDA device, by name; nothing is noted on other devices.

    Attributes:
        held: bytes that its runs so far left allocated.
        peak: most bytes allocated in one of its runs, with what earlier ones left, since `forget_peaks`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._name = ""
        self.held: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    def enter(self, name: str) -> None:
        """The next run is this contender's."""
        self._name = name

    def forget_peaks(self) -> dict[str, int]:
        """The peaks so far, which no longer count."""
        before, self.peak = self.peak, {}
        return before

    def around(self, timer: Callable[[Run], float]) -> Callable[[Run], float]:
        """The timer, with the bytes noted outside of what it times."""
        if self._device.type != "cuda":
            return timer

        def timed(run: Run) -> float:
            held = self.held.get(self._name, 0)
            before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            seconds = timer(run)
            peak = torch.cuda.max_memory_allocated(self._device) - before
            self.peak[self._name] = max(self.peak.get(self._name, 0), held + peak)
            self.held[self._name] = held + torch.cuda.memory_allocated(self._device) - before
            return seconds

        return timed


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated; on the CPU a number that never is too small."""
    if device.type != "cuda":
        return 1 << 62
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused
