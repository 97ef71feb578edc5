"""A training step by its parts: forward, backward, selection, update."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.finetuning import SELECTING, Fitted
from benchmarks.harness import Timing
from benchmarks.workloads import Batch
from selective_kernels.ranges import spans


@dataclass(frozen=True)
class Phases:
    """Seconds of a step.

    Attributes:
        forward: the model's, loss included.
        backward: the gradients, and letting go of them after the step.
        selection: scores, top-k and what keeps them.
        update: all the rest of the optimizer's step.
    """

    forward: float
    backward: float
    selection: float
    update: float

    @property
    def optimizer(self) -> float:
        """Selection and update."""
        return self.selection + self.update

    @property
    def whole(self) -> float:
        """All four."""
        return self.forward + self.backward + self.selection + self.update


class Trainee:
    """Takes training steps and notes how long their parts take.

    Args:
        fitted: model and optimizers.
        batches: the steps take them in turn.
        device: of the model; on a GPU the clock is read when the device is idle, after each part.
    """

    def __init__(self, fitted: Fitted, batches: Sequence[Batch], device: torch.device) -> None:
        self.fitted, self.batches, self.device = fitted, batches, device
        self.steps: list[Phases] = []
        self.selects: list[bool] = []  # whether the step selected anything
        self._batch = batches[0]

    def prepare(self, number: int) -> None:
        """Says which batch the next step takes."""
        self._batch = self.batches[number % len(self.batches)]

    def clock(self) -> float:
        """Seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step(self) -> Tensor:
        """One training step; the loss before it."""
        marks = [self.clock()]
        loss: Tensor = self.fitted.model(**self._batch).loss
        marks.append(self.clock())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(self.clock())
        with spans(self.clock) as found:
            self.fitted.step()
        marks.append(self.clock())
        self.fitted.zero_grad()
        marks.append(self.clock())
        forward, backward, optimizer, release = (end - begin for begin, end in pairwise(marks))
        selection = sum(end - begin for name, begin, end in found if name in SELECTING)
        self.steps.append(Phases(forward, backward + release, selection, optimizer - selection))
        self.selects.append(any(name in SELECTING for name, _, _ in found))
        return loss.detach()


def _medians(steps: Sequence[Phases]) -> Phases:
    return Phases(*(statistics.median(getattr(step, part.name) for step in steps) for part in fields(Phases)))


def typical(steps: Sequence[Phases], selects: Sequence[bool], every: int) -> Phases:
    """Median of each part; of the optimizer's parts, the mean over a period in which one of `every` steps selects.

    Raises:
        ValueError: `every` is more than 1, and not both kinds of step are there.
    """
    found = _medians(steps)
    if every == 1:
        return found
    kinds = [[step for step, mine in zip(steps, selects, strict=True) if mine == kind] for kind in (True, False)]
    if not all(kinds):
        raise ValueError(f"steps: expected some that select and some that do not, got {list(selects)}")
    selecting, idle = map(_medians, kinds)
    selection, update = (
        (getattr(selecting, part) + (every - 1) * getattr(idle, part)) / every for part in ("selection", "update")
    )
    return Phases(found.forward, found.backward, selection, update)


def rounds_of(steps: Sequence[Phases], selects: Sequence[bool], every: int) -> Timing:
    """Seconds of the whole step, round by round; with a period, the optimizer's part is the mean over it in each."""
    if every == 1:
        return Timing(tuple(step.whole for step in steps))
    optimizer = typical(steps, selects, every).optimizer
    return Timing(tuple(step.forward + step.backward + optimizer for step in steps))
