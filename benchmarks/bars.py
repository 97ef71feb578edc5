"""Bars: what a measured number is held against. One that is missed is printed like the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A measured number and its limit.

    Attributes:
        what: what was measured, and where.
        measured, limit: in `unit`.
        least: the number must be at least the limit; otherwise at most.
        unit: for screens, such as " x".
        missing: why there is no number, "" if there is one; such a bar is not met.
    """

    what: str
    measured: float
    limit: float
    least: bool = False
    unit: str = ""
    missing: str = ""

    @property
    def met(self) -> bool:
        """Whether the limit is kept; never for NaN."""
        if self.missing:
            return False
        return self.measured >= self.limit if self.least else self.measured <= self.limit

    @property
    def shown(self) -> str:
        """The number, with more digits where three would look like the limit."""
        digits = 3 if f"{self.measured:.3g}" != f"{self.limit:.3g}" else 5
        return f"{self.measured:,.0f}" if self.measured >= 100 else f"{self.measured:.{digits}g}"

    def __str__(self) -> str:
        limit = f"bar {'>=' if self.least else '<='} {self.limit:g}{self.unit}"
        if self.missing:
            return f"{self.what}: {limit}: NOT MEASURED, {self.missing}"
        verdict = "met" if self.met else "NOT MET"
        return f"{self.what}: {self.shown}{self.unit}, {limit}: {verdict}"


def format_bars(bars: Sequence[Bar]) -> str:
    """One line per bar, those that are not met first, and how many are met."""
    ordered = sorted(bars, key=lambda bar: bar.met)
    return "\n".join([f"Bars: {sum(bar.met for bar in bars)} of {len(bars)} met", *map(str, ordered)])
