"""Exponents come out as they were put in."""

import math
import random

import pytest

from benchmarks.fitting import fit, slope
from benchmarks.harness import Timing

XS = [1e6, 3e6, 1e7, 3e7, 1e8]


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_a_power_law_is_found_without_error(exponent):
    value, error = slope(XS, [3e-9 * x**exponent for x in XS])
    assert value == pytest.approx(exponent, abs=1e-12)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_the_standard_error_says_how_far_off_the_slope_usually_is():
    """Of many noisy lines about 68 % have a slope within one standard error of the true one (62 % with 5 points)."""
    generator, inside, count = random.Random(0), 0, 4000
    for _ in range(count):
        value, error = slope(XS, [x**0.7 * math.exp(generator.gauss(0, 0.1)) for x in XS])
        inside += abs(value - 0.7) <= error
    assert 0.58 < inside / count < 0.64


def test_slope_and_error_are_those_of_the_formula():
    """By hand: u = 0, 1, 2 and v = 0, 1, 3: slope 3/2, residuals 1/6, -1/3, 1/6, error sqrt(1/6 / 2)."""
    value, error = slope([1, math.e, math.e**2], [1, math.e, math.e**3])
    assert value == pytest.approx(1.5)
    assert error == pytest.approx(math.sqrt(1 / 12))


def test_two_points_have_no_error():
    assert slope([1, 10], [1, 100]) == (pytest.approx(2.0), None)


@pytest.mark.parametrize(("xs", "ys"), [([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1]), ([-1, 2], [1, 1])])
def test_what_has_no_exponent_is_refused(xs, ys):
    with pytest.raises(ValueError, match="xs, ys: expected two or more different x, all numbers > 0"):
        slope(xs, ys)


def test_rounds_give_the_range():
    """The second round goes as x^2, the others as x; one point has fewer rounds."""
    points = [(x, Timing((x, x * x, x)[: 3 if x < 100 else 2])) for x in (1.0, 10.0, 100.0)]
    found = fit(points)
    assert (found.low, found.high, found.points) == (pytest.approx(1.0), pytest.approx(2.0), 3)
    assert found.value == pytest.approx(slope([1, 10, 100], [1, 10, (100 + 10_000) / 2])[0])
