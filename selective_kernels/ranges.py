"""Named parts of a step: torch.profiler shows them, and a stopwatch adds them up for reports."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch._C._autograd import _profiler_enabled

PREFIX = "selective_kernels::"
_P = ParamSpec("_P")
_R = TypeVar("_R")
Mark = Callable[[], Any]
Span = tuple[str, Any, Any]  # name of a range, and what a mark gave at its beginning and at its end
_watches: list[tuple[Mark, list[Span]]] = []


def ranged(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorates a function: each call is a range `selective_kernels::<name>` if somebody measures, else just a call.

    Args:
        name: "scan", "finalize", "merge", "gather" or "update".
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not _watches and not _profiler_enabled():
                return function(*args, **kwargs)
            marks = {mark for mark, _ in _watches}
            began = {mark: mark() for mark in marks}
            with torch.profiler.record_function(PREFIX + name):
                result = function(*args, **kwargs)
            ended = {mark: mark() for mark in marks}
            for mark, found in _watches:
                found.append((name, began[mark], ended[mark]))
            return result

        return run

    return decorate


@contextmanager
def spans(mark: Mark) -> Iterator[list[Span]]:
    """Gives a list that the ranges within the block enter, in the order in which they end.

    Args:
        mark: called where a range begins and ends: reads a clock, or records an event on a device's stream.
    """
    found: list[Span] = []
    watch = (mark, found)
    _watches.append(watch)
    try:
        yield found
    finally:
        _watches[:] = [other for other in _watches if other is not watch]


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Gives a dict that holds, after the block, the seconds spent in each range within it, by name.

    Host time: on a GPU, work that was only enqueued counts where somebody waits for it.
    """
    total: dict[str, float] = {}
    found: list[Span] = []
    try:
        with spans(time.perf_counter) as found:
            yield total
    finally:
        for name, began, ended in found:
            total[name] = total.get(name, 0.0) + ended - began
