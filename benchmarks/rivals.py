"""What is timed in a step benchmark: our optimizer at several points of a training run, and what else could be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from selective_peft import D3, SelectiveAdamW
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.harness import Contender
from benchmarks.shapes import copies

LR = 3e-4
SCORE = D3(exp=2.0, eps=1.0)
# Arrays as large as the parameters that a scan for this score reads: gradients decide nearly everything, and only the
# kernels for GPUs read all parameters, too.
ARRAYS_READ = {"cpu": 1, "cuda": 2}
GradSets = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Phase:
    """A point of a run of `total_steps` steps: where it begins when `measured` steps are to be taken there."""

    name: str
    begin: Callable[[int, int], int]


PHASES = (
    Phase("early", lambda total_steps, measured: total_steps // 10),
    Phase("middle", lambda total_steps, measured: total_steps // 2),
    Phase("last", lambda total_steps, measured: total_steps - measured),
)


def at_step(params: Sequence[Tensor], budget: int, total_steps: int, done: int, backend: str = "cpu") -> SelectiveAdamW:
    """ID3 with uniform schedule that gets to step `done` of `total_steps` in one step.

    Its first step selects what `done` steps would have, each later one its ordinary share budget / total_steps, until
    the budget is spent after `total_steps - done` more.
    """
    return SelectiveAdamW(
        params,
        lr=LR,
        budget=budget,
        total_steps=total_steps - done + 1,
        score=SCORE,
        schedule=lambda step, _, whole: whole * (done + step) // total_steps,
        backend=backend,
    )


def whole_run(
    params: Sequence[Tensor], budget: int, total_steps: int, strategy: str, backend: str = "cpu"
) -> SelectiveAdamW:
    """AdamW from the first step on: "increment" with uniform schedule (ID3), or "static"."""
    return SelectiveAdamW(
        params, lr=LR, budget=budget, total_steps=total_steps, score=SCORE, strategy=strategy, backend=backend
    )


def after(params: Sequence[Tensor], first: int, share: int, steps: int, backend: str = "auto") -> SelectiveAdamW:
    """Selects `first` scalars in its first step and `share` more in each of the `steps - 1` that follow."""
    return SelectiveAdamW(
        params,
        lr=LR,
        budget=first + share * (steps - 1),
        total_steps=steps,
        score=SCORE,
        schedule=lambda step, _, whole: min(whole, first + share * step),
        backend=backend,
    )


def all_selected(params: Sequence[Tensor], budget: int, backend: str = "cpu") -> SelectiveAdamW:
    """Selects the whole budget in its first step and nothing later: a step between two selections, or after them."""
    return SelectiveAdamW(params, lr=LR, budget=budget, total_steps=1, score=SCORE, strategy="static", backend=backend)


def toolkit(params: Sequence[Tensor], budget: int, total_steps: int) -> Optimizer:
    """AdamW "id3" of selective-optimizers 0.4, the authors' implementation.

    Raises:
        ImportError: it is not installed.
    """
    from selective_optimizers.wrap import get_selective_optimizer

    made: Optimizer = get_selective_optimizer(torch.optim.AdamW, "id3")(
        list(params), lr=LR, budget=budget, max_steps=total_steps, exp=SCORE.exp, eps=SCORE.eps, verify=False
    )
    return made


def contender(
    name: str, base: Sequence[Tensor], grads: GradSets, make: Callable[[list[Tensor]], Optimizer]
) -> Contender:
    """The `step()` of an optimizer on its own copy of the parameters; gradient sets are used in turn, by pointer."""
    params = copies(base)
    return stepping(name, params, grads, make(params).step)


def stepping(
    name: str, params: Sequence[Tensor], grads: GradSets, step: Callable[[], object], rounds: int | None = None
) -> Contender:
    """The step of an optimizer of these parameters; gradient sets are used in turn, by pointer."""

    def prepare(number: int) -> None:
        for param, grad in zip(params, grads[number % len(grads)], strict=True):
            param.grad = grad

    return Contender(name, step, prepare, rounds)


def toolkit_contender(
    name: str, base: Sequence[Tensor], grads: GradSets, budget: int, total_steps: int, rounds: int
) -> Contender:
    """The same for selective-optimizers, which overwrites gradients: it gets fresh copies, outside the timing."""
    params = copies(base)
    optimizer = toolkit(params, budget, total_steps)

    def prepare(number: int) -> None:
        for param, grad in zip(params, grads[number % len(grads)], strict=True):
            param.grad = grad.clone()

    return Contender(name, optimizer.step, prepare, rounds)
