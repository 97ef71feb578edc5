"""Over how many steps a run spends its budget: given at construction, said before the first step, or a checkpoint's."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass

LATER = "later"


def whole_number(name: str, value: object) -> int:
    """The value. Raises ValueError, naming the argument, unless it is an integer >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
    return value


@dataclass
class Horizon:
    """The number of steps T of a schedule (C5).

    Attributes:
        given: at construction; None if it was left open.
        said: meanwhile, if it was left open.
    """

    given: int | None
    said: int | None = None
    _warned: bool = False

    @property
    def steps(self) -> int | None:
        """T, as far as it is known."""
        return self.said if self.given is None else self.given

    def required(self) -> int:
        """T. Raises RuntimeError if nobody has said it."""
        if self.steps is None:
            raise RuntimeError(
                "total_steps: expected a number before the first step, got 'later' and nothing since: give "
                "total_steps, call set_total_steps, or add selective_peft.hf.SelectiveCallback() to the Trainer's "
                "callbacks, which does"
            )
        return self.steps

    def say(self, steps: int, *, begun: bool) -> None:
        """Fixes what was left open; once the run has begun, only warns if it is something else."""
        if self.given is not None:
            return
        if begun:
            self._warn(steps, self.required())
        else:
            self.said = steps

    def restore(self, steps: int) -> None:
        """What a checkpoint says replaces what was said; warns if it is something else."""
        if self.given is None:
            if self.said is not None:
                self._warn(self.said, steps)
            self.said = steps

    def _warn(self, said: int, kept: int) -> None:
        if said != kept and not self._warned:
            self._warned = True
            warnings.warn(
                f"total_steps: {kept:,}, with which this run began, stays its value, not {said:,}: the budget is spent "
                "along the schedule of the run's first step",
                stacklevel=4,
            )


class Timed:
    """An optimizer with a horizon."""

    _horizon: Horizon

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether there was a first step, here or before a checkpoint that was loaded."""

    @property
    def total_steps(self) -> int | None:
        """Number of steps over which the budget is spent; None while nobody has said it."""
        return self._horizon.steps

    def set_total_steps(self, total_steps: int) -> None:
        """Says what `total_steps="later"` has left open, before the first step.

        A number that was given at construction stays. So does that of a run which has begun, here or in a checkpoint
        that was loaded; if it differs, a warning says so once.

        Raises:
            ValueError: not an integer >= 1.
        """
        self._horizon.say(whole_number("total_steps", total_steps), begun=self.begun)
