"""What the step suite measures on a CPU: models, budgets, points of a run, rivals, and how many rounds each gets."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from benchmarks import rivals
from benchmarks.harness import Contender
from benchmarks.masking import DenseMasking, masking_contender
from benchmarks.masking_tuned import CompiledMasking, InPlaceMasking
from benchmarks.rivals import GradSets
from benchmarks.shapes import MODELS, copies, total

TOTAL_STEPS = 1000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FULL = ("minilm-l6", "bert-base", "deberta-v3-base", "t5-small", "smollm2-135m")
SMALL = ("minilm-l6",)
IN_16_BITS = ("minilm-l6", "bert-base")  # with the preset "full"; the others are timed in float32 only
BUDGETS = {"bert-base": (320_000, 1_000_000)}  # others: BUDGET_SHARE of the scalars
BUDGET_SHARE = 0.003
READ, FUSED, FOREACH, TOOLKIT = "read", "AdamW fused", "AdamW foreach", "selective-optimizers"
MASKING, IN_PLACE, COMPILED = "dense masking", "dense masking in place", "dense masking compiled"
MASKINGS: Mapping[str, type[DenseMasking]] = {
    MASKING: DenseMasking,
    IN_PLACE: InPlaceMasking,
    COMPILED: CompiledMasking,
}
RIVALS = (FUSED, FOREACH, *MASKINGS, TOOLKIT)
IDLE = "no selection"
PHASES = tuple(phase.name for phase in rivals.PHASES)
OURS = (*PHASES, IDLE)
TOOLKIT_MODELS = ("minilm-l6", "bert-base", "tiny")  # it takes seconds per step

WARMUPS = 2  # the first step gets an optimizer to its place in the run, the second one is an ordinary step
FOREACH_ROUNDS, TOOLKIT_ROUNDS = 5, 2
SLOW_ROUNDS, SLOW_SECONDS = (2, 5), 2.0  # of dense masking: as many as take so many seconds, within that range


@dataclass(frozen=True)
class Case:
    """One combination to measure.

    Attributes:
        model: a name of `shapes.MODELS`.
        dtype: a name of `DTYPES`.
        budget: scalars.
        rounds: of ours, the read and the fast rivals.
        left_out: rival -> why it takes no part.
    """

    model: str
    dtype: str
    budget: int
    rounds: int
    left_out: Mapping[str, str]

    @property
    def scalars(self) -> int:
        """Number of scalars of the model."""
        return total(MODELS[self.model])

    @property
    def title(self) -> str:
        """For screens."""
        return f"{self.model} ({self.scalars:,} scalars), {self.dtype}, budget {self.budget:,}"

    @property
    def slow(self) -> list[str]:
        """Rivals that get sittings of their own."""
        return [name for name in (*MASKINGS, TOOLKIT) if name not in self.left_out]

    @property
    def longest(self) -> int:
        """Most steps that ours takes after the one that brings it to its place in the run."""
        return WARMUPS - 1 + self.rounds + len(self.slow) * SLOW_ROUNDS[1]

    def begin(self, phase: str) -> int:
        """The step of a run in which the measured ones begin."""
        return next(each for each in rivals.PHASES if each.name == phase).begin(TOTAL_STEPS, self.longest)

    def without(self, rival: str, why: str) -> Case:
        """The same without a rival, unless it has no place already."""
        return replace(self, left_out={rival: why, **self.left_out})

    def expected(self, name: str, taken: int) -> int:
        """How many scalars ours has selected after so many steps, by name of `OURS`."""
        return self.budget if name == IDLE else self.budget * (self.begin(name) + taken - 1) // TOTAL_STEPS


def budgets_of(model: str) -> tuple[int, ...]:
    """The budgets that a model is measured with; bars are held against the first."""
    return BUDGETS.get(model) or (max(1, round(BUDGET_SHARE * total(MODELS[model]))),)


def toolkit_left_out(model: str, dtype: str, budget: int) -> str:
    """Why selective-optimizers is not timed, "" if it is."""
    if importlib.util.find_spec("selective_optimizers") is None:
        return "not installed"
    if model not in TOOLKIT_MODELS or dtype != "float32":
        return f"left out: seconds per step; timed in float32 on {', '.join(TOOLKIT_MODELS[:2])}"
    if budget < TOTAL_STEPS:
        return "left out: it refuses steps that select nothing"
    return ""


def case_of(model: str, dtype: str, budget: int, rounds: int, compiled: str, *, with_slow: bool) -> Case:
    """A case with all rivals that can take part.

    Args:
        model, dtype, budget, rounds: see `Case`.
        compiled: why compiled masking cannot take part, "" if it can.
        with_slow: whether dense masking and the toolkit take part.
    """
    left_out = {} if with_slow else dict.fromkeys((*MASKINGS, TOOLKIT), "left out: timed at the first budget")
    if with_slow and compiled:
        left_out[COMPILED] = compiled
    if with_slow and (why := toolkit_left_out(model, dtype, budget)):
        left_out[TOOLKIT] = why
    return Case(model, dtype, budget, rounds, left_out)


def torch_adamw(name: str, base: list[torch.Tensor], grads: GradSets) -> Contender:
    """The dense AdamW of torch, `FUSED` or `FOREACH`."""
    kind = {FUSED: "fused", FOREACH: "foreach"}[name]
    params = copies(base)
    optimizer = torch.optim.AdamW(params, lr=rivals.LR, weight_decay=0.0, **{kind: True})  # type: ignore[arg-type]
    return rivals.stepping(name, params, grads, optimizer.step, FOREACH_ROUNDS if name == FOREACH else None)


def slow_rival(case: Case, name: str, base: list[torch.Tensor], grads: GradSets) -> Contender:
    """A rival of `Case.slow`, in the middle of a run."""
    if name == TOOLKIT:
        return rivals.toolkit_contender(name, base, grads, case.budget, TOTAL_STEPS, TOOLKIT_ROUNDS)
    params = copies(base)
    return masking_contender(
        name, params, grads, MASKINGS[name](params, case.budget, TOTAL_STEPS, case.begin("middle"))
    )


def moved(case: Case, name: str) -> int:
    """Bytes that a step must read and write at least; 0 where nobody has counted them.

    A selecting step reads the gradients. One that selects nothing reads the cache lines of what is selected.
    """
    scalars, item = case.scalars, DTYPES[case.dtype].itemsize
    if name == READ:
        return 2 * item * scalars
    if name in PHASES:
        return rivals.ARRAYS_READ["cpu"] * item * scalars
    if name in (FUSED, FOREACH):
        return 7 * item * scalars
    return MASKINGS[name].moved(scalars, item) if name in MASKINGS else 0
