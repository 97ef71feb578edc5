"""Exponents of power laws: the slope of a straight line through logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness import Timing


@dataclass(frozen=True)
class Exponent:
    """The p of time ~ x^p, by least squares on logarithms.

    Attributes:
        value: of the medians.
        error: standard error of the slope, from how far the points lie off the line; None with fewer than 3 points.
        low, high: smallest and largest slope of a single round's times.
        points: how many x there are.
    """

    value: float
    error: float | None
    low: float
    high: float
    points: int


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float | None]:
    """Slope of log y over log x, and its standard error, None with fewer than 3 points.

    Raises:
        ValueError: there are not two different x, or a number is not above 0.
    """
    if len(set(xs)) < 2 or min(*xs, *ys) <= 0:
        raise ValueError(f"xs, ys: expected two or more different x, all numbers > 0, got {list(xs)}, {list(ys)}")
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    count, mean_u, mean_v = len(u), sum(u) / len(u), sum(v) / len(v)
    width = sum((a - mean_u) ** 2 for a in u)
    found = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / width
    if count < 3:
        return found, None
    off = sum((b - mean_v - found * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    return found, math.sqrt(off / (count - 2) / width)


def fit(points: Sequence[tuple[float, Timing]]) -> Exponent:
    """The exponent of timings at several x.

    Raises:
        ValueError: there are not two different x.
    """
    xs = [x for x, _ in points]
    value, error = slope(xs, [timing.median for _, timing in points])
    rounds = zip(*(timing.seconds for _, timing in points), strict=False)
    slopes = [slope(xs, each)[0] for each in rounds]
    return Exponent(value, error, min(slopes), max(slopes), len(xs))
