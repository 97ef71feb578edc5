"""How the budget is spent over the steps: the cumulative target c_t after each step (C5)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = str | Callable[[int, int, int], int]


def _uniform(step: int, total_steps: int, budget: int) -> int:
    return budget * (step + 1) // total_steps


def _linear(step: int, total_steps: int, budget: int) -> int:
    left = total_steps - step - 1
    return budget * (total_steps * total_steps - left * left) // (total_steps * total_steps)


def _cosine(step: int, total_steps: int, budget: int) -> int:
    x = (step + 1) / total_steps
    return math.floor(budget * (x + math.sin(math.pi * x) / math.pi))


def _front(step: int, total_steps: int, budget: int) -> int:
    return min(budget, 10 * budget * (step + 1) // total_steps)


SCHEDULES: dict[str, Callable[[int, int, int], int]] = {
    "uniform": _uniform,
    "linear": _linear,
    "cosine": _cosine,
    "front": _front,
}


def check_schedule(schedule: Schedule) -> None:
    """Raises ValueError for an unknown name, TypeError for what is neither a name nor callable."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {sorted(SCHEDULES)} or a callable, got {schedule!r}")
    elif not callable(schedule):
        raise TypeError(f"schedule: expected a name or a callable, got {type(schedule).__name__}")


def schedule_name(schedule: Schedule) -> str:
    """The schedule's name; "custom" for a callable, which a checkpoint knows by its table."""
    return schedule if isinstance(schedule, str) else "custom"


def tabulate(schedule: Schedule, total_steps: int, budget: int, *, static: bool = False) -> Tensor:
    """Cumulative targets c_0 .. c_{T-1}, int64, shape (total_steps,); the last one is the budget.

    Args:
        schedule: a name, or a callable(step, total_steps, budget) -> cumulative target after that step.
        total_steps: T >= 1.
        budget: B >= 1.
        static: everything is selected in the first step, whatever the schedule.

    Raises:
        ValueError: the schedule falls, is negative or passes the budget.
    """
    check_schedule(schedule)
    if static:
        return torch.full((total_steps,), budget, dtype=torch.int64, device="cpu")
    target = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    values = [int(target(step, total_steps, budget)) for step in range(total_steps)]
    before = 0
    for step, value in enumerate(values):
        if not before <= value <= budget:
            raise ValueError(
                f"schedule: expected targets that never fall and stay within [0, {budget}], "
                f"got {value} after {before} in step {step}"
            )
        before = value
    values[-1] = budget
    return torch.tensor(values, dtype=torch.int64, device="cpu")


def quota(table: Tensor, step: int, selected: int, select_every: int) -> int:
    """How many scalars step `step` (from 0) selects when `selected` are selected already.

    Args:
        table: what `tabulate` gave.
        step: number of completed steps.
        selected: size of the selected set.
        select_every: K; only steps 0, K, 2K, ... select, for the K steps ahead.
    """
    total_steps = len(table)
    if step >= total_steps or step % select_every != 0:
        return 0
    return max(0, int(table[min(step + select_every, total_steps) - 1]) - selected)
