"""Named parts of a step: torch.profiler shows them, and a stopwatch adds them up for reports."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch._C._autograd import _profiler_enabled

PREFIX = "selective_kernels::"
_P = ParamSpec("_P")
_R = TypeVar("_R")
_totals: list[dict[str, float]] = []


def ranged(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorates a function: each call is a range `selective_kernels::<name>` if somebody measures, else just a call.

    Args:
        name: "scan", "finalize", "merge", "gather" or "update".
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not _totals and not _profiler_enabled():
                return function(*args, **kwargs)
            began = time.perf_counter()
            with torch.profiler.record_function(PREFIX + name):
                result = function(*args, **kwargs)
            seconds = time.perf_counter() - began
            for total in _totals:
                total[name] = total.get(name, 0.0) + seconds
            return result

        return run

    return decorate


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Gives a dict that holds, after the block, the seconds spent in each range within it, by name.

    Host time: on a GPU, work that was only enqueued counts where somebody waits for it.
    """
    total: dict[str, float] = {}
    _totals.append(total)
    try:
        yield total
    finally:
        _totals[:] = [other for other in _totals if other is not total]
