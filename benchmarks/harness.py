"""Timing: rivals take turns in one process, so that a ratio compares moments, not hours, of a noisy machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from selective_kernels import Table
from selective_kernels.testing import read_once


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, seconds."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """Fastest round, seconds."""
        return min(self.seconds)

    @property
    def high(self) -> float:
        """Slowest round, seconds."""
        return max(self.seconds)

    def ratios(self, other: Timing) -> list[float]:
        """Of each round that both took part in: its time over the other's."""
        return [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=False)]

    def ratio(self, other: Timing) -> float:
        """Median of `ratios`."""
        return statistics.median(self.ratios(other))


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        name: unique among those measured together.
        run: what is timed.
        prepare: called before each run with the number of the round, warm-up rounds included; not timed.
        rounds: takes part in the first so many timed rounds only; None for all. For rivals that take seconds.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[int], object] = lambda _: None
    rounds: int | None = None


def host_seconds(run: Callable[[], object]) -> float:
    """Seconds until `run` returns."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    warmups: int = 1,
    after_round: Callable[[], object] = lambda: None,
    timer: Callable[[Callable[[], object]], float] = host_seconds,
) -> dict[str, Timing]:
    """Times all contenders once per round; each round begins with another one, so that nobody always follows the same.

    Args:
        contenders: what to time.
        rounds: timed rounds.
        warmups: rounds before that which are not timed; every contender takes part in them.
        after_round: called after each round, say to move a progress bar.
        timer: calls what it is given once and returns the seconds that count.

    Returns:
        Timings by name.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected an integer >= 1, got {rounds}")
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    if len(seconds) != len(contenders):
        raise ValueError(f"contenders: expected distinct names, got {[contender.name for contender in contenders]}")
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(warmups + rounds):
            first = number % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                timed = number - warmups
                if contender.rounds is not None and timed >= contender.rounds:
                    continue
                contender.prepare(number)
                elapsed = timer(contender.run)
                if timed >= 0:
                    seconds[contender.name].append(elapsed)
            after_round()
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def read_probe(params: Sequence[Tensor], grads: Sequence[Sequence[Tensor]], name: str = "read") -> Contender:
    """Reads every byte of the parameters and of one set of gradients once, with torch's number of threads.

    Args:
        params: tensors.
        grads: sets of gradients; the rounds take them in turn.
    """
    tables = [Table([*params, *each]) for each in grads]
    current = tables[:1]

    def prepare(number: int) -> None:
        current[0] = tables[number % len(tables)]

    return Contender(name, lambda: read_once(current[0]), prepare)  # type: ignore[arg-type]
