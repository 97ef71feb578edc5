"""What the scaling suite varies, and which exponents are expected; they were written down before anything was timed.

- N, scalars (with a budget of 0.3 % of N): everything that reads or writes dense tensors, and the selected scalars,
  grow in proportion, beyond the caches: 1.
- k, newly selected scalars per step: the scan hides them up to some hundredths of a percent of N (0); sorting and
  merging them shows beyond that, and stays below proportion, since the read remains (< 1).
- B, selected scalars: the same for a step that selects; a step that selects nothing touches a cache line per
  selected scalar and little else, 1 once that outweighs the fixed cost.
- tensors: one table serves all, so their number does not matter (0) until the host's work per tensor outweighs the read
  (up to 1).
- threads: time falls as 1/threads (-1) as long as one thread more can get more from the memory; a selecting step
  follows the read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

READ, SELECTING, IDLE, FUSED = "read", "selecting", "no selection", "AdamW fused"
BUDGET_SHARE, STEPS = 0.003, 1000  # of an ordinary run: half of the budget is spent, a thousandth joins in each step
TENSORS = 64
AXES = {
    "scalars": "scalars of the model, N",
    "k": "newly selected per step, k",
    "selected": "selected so far, B",
    "tensors": "tensors",
    "threads": "threads",
}


@dataclass(frozen=True)
class Point:
    """One problem.

    Attributes:
        axis: a name of `AXES`, of what varies.
        scalars, tensors: of the model; the tensors are equally long, but for the last.
        selected: scalars selected before the timed steps.
        k: scalars that each timed step adds.
        threads: of torch and the kernels; 0: as they are set.
        whats: who is timed.
    """

    axis: str
    scalars: int
    tensors: int
    selected: int
    k: int
    threads: int
    whats: tuple[str, ...]

    @property
    def x(self) -> int:
        """What varies."""
        return int(getattr(self, self.axis))

    def sizes(self) -> list[int]:
        """Lengths of the tensors."""
        each, more = divmod(self.scalars, self.tensors)
        return [each] * (self.tensors - 1) + [each + more]


@dataclass(frozen=True)
class Law:
    """An exponent that is expected.

    Attributes:
        axis, what: of which times.
        low, high: the x that take part.
        expected: the exponent; a number, or a bound such as "< 1".
    """

    axis: str
    what: str
    low: float
    high: float
    expected: str


@dataclass(frozen=True)
class Sizes:
    """What a preset measures: `base` scalars where N does not vary, `small` where the number of tensors does."""

    scalars: tuple[int, ...]
    base: int
    small: int
    ks: tuple[int, ...]
    selected: tuple[int, ...]
    tensors: tuple[int, ...]
    rounds: int


PRESETS = {
    "full": Sizes(
        scalars=(10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8, 3 * 10**8, 10**9),
        base=3 * 10**7,
        small=10**7,
        ks=(10, 100, 1000, 10_000, 30_000, 100_000, 300_000),
        selected=(300, 3000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000),
        tensors=(1, 10, 100, 1000, 3000, 10_000),
        rounds=7,
    ),
    "small": Sizes(
        scalars=(3 * 10**5, 10**6, 3 * 10**6),
        base=10**6,
        small=10**6,
        ks=(10, 100, 1000),
        selected=(300, 3000, 30_000),
        tensors=(1, 10, 100),
        rounds=3,
    ),
}
LAWS = (
    *(Law("scalars", what, 1e7, float("inf"), "1") for what in (READ, SELECTING, IDLE, FUSED)),
    Law("k", SELECTING, 0, 10_000, "0"),
    Law("k", SELECTING, 10_000, float("inf"), "< 1"),
    Law("selected", SELECTING, 0, 30_000, "0"),
    Law("selected", SELECTING, 30_000, float("inf"), "< 1"),
    Law("selected", IDLE, 100_000, float("inf"), "1"),
    *(Law("tensors", what, 0, 100, "0") for what in (READ, SELECTING, IDLE, FUSED)),
    *(Law("tensors", what, 1000, float("inf"), "<= 1") for what in (SELECTING, IDLE, FUSED)),
    *(Law("threads", what, 0, float("inf"), "-1") for what in (READ, SELECTING)),
)


def thread_counts(most: int) -> list[int]:
    """Powers of two below `most`, and `most`."""
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]


def points_of(sizes: Sizes, threads: int) -> list[Point]:
    """The problems of a preset, by axis.

    Args:
        sizes: see `PRESETS`.
        threads: most of them; 0: the threads do not vary.
    """

    def ordinary(axis: str, scalars: int, whats: Sequence[str], tensors: int = TENSORS, count: int = 0) -> Point:
        budget = BUDGET_SHARE * scalars
        return Point(axis, scalars, tensors, int(budget / 2), max(1, round(budget / STEPS)), count, tuple(whats))

    base, everybody = sizes.base, (READ, SELECTING, IDLE, FUSED)
    k = max(1, round(BUDGET_SHARE * base / STEPS))
    return [
        *(ordinary("scalars", scalars, everybody) for scalars in sizes.scalars),
        *(Point("k", base, TENSORS, each, each, 0, (READ, SELECTING)) for each in sizes.ks),
        *(Point("selected", base, TENSORS, each, k, 0, (READ, SELECTING, IDLE)) for each in sizes.selected),
        *(ordinary("tensors", sizes.small, everybody, each) for each in sizes.tensors),
        *(
            ordinary("threads", base, (READ, SELECTING), count=count)
            for count in (thread_counts(threads) if threads else ())
        ),
    ]
