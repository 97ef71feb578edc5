"""What the GPU benchmark measures: shapes, budgets, points of a run, and who takes part."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks import rivals
from benchmarks.device import free_bytes
from benchmarks.harness import Contender
from benchmarks.masking import DenseMasking, masking_contender
from benchmarks.masking_tuned import CompiledMasking, InPlaceMasking
from benchmarks.resident import state_bytes
from benchmarks.room import lack
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, random_tensors, total

TOTAL_STEPS = 1000
SHAPES = {  # name on the command line: model, dtype
    "deberta": ("deberta-v3-base", torch.float32),
    "qwen1.5b": ("qwen2.5-1.5b", torch.bfloat16),
    "qwen7b": ("qwen2.5-7b", torch.bfloat16),
    "bert": ("bert-base", torch.float32),
    "minilm": ("minilm-l6", torch.float32),
    "t5": ("t5-small", torch.float32),
    "smollm2": ("smollm2-135m", torch.float32),
    "tiny": ("tiny", torch.float32),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SPENT = "budget spent"
OURS, FUSED, FOREACH, TOOLKIT = "ours", "AdamW fused", "AdamW foreach", "selective-optimizers"
MASKING, IN_PLACE, COMPILED = "dense masking", "dense masking in place", "dense masking compiled"
TOOLKIT_LARGEST = 200_000_000  # scalars; it keeps dense moments and masks and takes seconds per step
SLOW_ROUNDS, TOOLKIT_ROUNDS = 5, 3


@dataclass(frozen=True)
class Case:
    """The shapes of a model with all that is measured on them.

    Attributes:
        model, dtype: of the parameters and gradients.
        budgets: in scalars.
        steps: names of `rivals.PHASES`, or `SPENT`.
        backend: of ours.
        measured: steps that an optimizer takes after the one that brings it to its place in the run.
        compiler: backend of torch.compile.
        others: further backends of ours, which take their turns beside `backend`.
    """

    model: str
    dtype: torch.dtype
    budgets: tuple[int, ...]
    steps: tuple[str, ...]
    backend: str
    measured: int
    compiler: str = "inductor"
    others: tuple[str, ...] = ()

    @property
    def scalars(self) -> int:
        """Number of scalars of the model."""
        return total(MODELS[self.model])

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters; gradients have as many."""
        return self.scalars * self.dtype.itemsize

    @property
    def title(self) -> str:
        """For screens."""
        return f"{self.model} ({self.scalars:,} scalars, {str(self.dtype).removeprefix('torch.')})"

    def begin(self, step: str) -> int:
        """The step of a run in which the measured ones begin."""
        phase = next(phase for phase in rivals.PHASES if phase.name == step)
        return phase.begin(TOTAL_STEPS, self.measured)


def ours_on(backend: str) -> str:
    """The method's name on a backend that takes its turns beside the one that `OURS` stands for."""
    return f"{OURS} on {backend}"


def parse_budget(text: str, scalars: int) -> int:
    """A number of scalars, or a share of them such as "0.1%".

    Raises:
        ValueError: it is neither, or does not leave 1 to `scalars`.
    """
    budget = int(float(text[:-1]) / 100 * scalars) if text.endswith("%") else int(text)
    if not 1 <= budget <= scalars:
        raise ValueError(f"budget: expected 1 to {scalars} scalars, got {text!r} ({budget})")
    return budget


Made = tuple[Any, Contender]  # an optimizer, and its step


@dataclass(frozen=True)
class Entry:
    """One that takes part, or why it cannot.

    Attributes:
        method: `OURS` or a rival.
        budget, step: 0 and "" where the method has none.
        moved: bytes that its step must read and write at least; 0 if that is not known.
        make: makes it under a name; None if `note` says why it takes no part.
        note: for the row.
    """

    method: str
    budget: int
    step: str
    moved: int
    make: Callable[[str], Made] | None
    note: str = ""

    @property
    def name(self) -> str:
        """Unique in a case."""
        return f"{self.method}, {self.step}, {self.budget}"


def tensors_of(case: Case, device: torch.device) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters, and two sets of gradients, or one where two would leave no room for a dense optimizer's moments."""
    sets = 2 if free_bytes(device) > 5.6 * case.nbytes else 1
    shapes = MODELS[case.model]
    params = random_tensors(shapes, PARAM_STD, case.dtype, 0, device)
    grads = [random_tensors(shapes, GRAD_STD, case.dtype, 1 + i, device) for i in range(sets)]
    return [param.requires_grad_() for param in params], grads


def make_ours(case: Case, budget: int, step: str, params: Sequence[Tensor], backend: str) -> SelectiveAdamW:
    """Our optimizer, about to take the one step that brings it to its place in the run."""
    if step == SPENT:
        return rivals.all_selected(params, budget, backend)
    return rivals.at_step(params, budget, TOTAL_STEPS, case.begin(step), backend)


def expected(case: Case, budget: int, step: str, taken: int) -> int:
    """How many scalars ours has selected after so many steps."""
    if step == SPENT:
        return budget
    return budget * (case.begin(step) + taken - 1) // TOTAL_STEPS


def entries(case: Case, params: Sequence[Tensor], grads: rivals.GradSets) -> list[Entry]:
    """Ours at each budget and step, then the rivals; they share parameters and gradients, never state."""

    def ours(budget: int, step: str, backend: str, name: str) -> Made:
        optimizer = make_ours(case, budget, step, params, backend)
        return optimizer, rivals.stepping(name, params, grads, optimizer.step)

    found = []
    for budget in case.budgets:
        for step in case.steps:
            # A step that selects nothing reads the cache lines of the selected scalars, which nobody has counted.
            moved = 0 if step == SPENT else 2 * case.nbytes
            found.append(Entry(OURS, budget, step, moved, partial(ours, budget, step, case.backend)))
            for other in case.others:
                found.append(Entry(ours_on(other), budget, step, moved, partial(ours, budget, step, other)))
    return [*found, *_rivals(case, params, grads)]


def _rivals(case: Case, params: Sequence[Tensor], grads: rivals.GradSets) -> list[Entry]:
    scalars, item, budget = case.scalars, case.dtype.itemsize, case.budgets[0]
    moments = 2 * case.nbytes
    room = [free_bytes(params[0].device)]

    def adamw(kind: str, name: str) -> Made:
        optimizer = torch.optim.AdamW(params, lr=rivals.LR, weight_decay=0.0, **{kind: True})  # type: ignore[arg-type]
        return optimizer, rivals.stepping(name, params, grads, optimizer.step)

    def masking(kind: Callable[..., DenseMasking], name: str) -> Made:
        optimizer = kind(params, budget, TOTAL_STEPS, TOTAL_STEPS // 2)
        return optimizer, masking_contender(name, params, grads, optimizer, SLOW_ROUNDS)

    def toolkit(name: str) -> Made:
        base = [param.detach() for param in params]
        return None, rivals.toolkit_contender(name, base, grads, budget, TOTAL_STEPS, TOOLKIT_ROUNDS)

    def entry(method: str, of: int, step: str, moved: int, needs: int, make: Callable[[str], Made]) -> Entry:
        why = lack(needs, room[0])
        room[0] -= 0 if why else needs  # what takes part stays in memory
        return Entry(method, of, step, moved, None if why else make, why)

    found = [entry(FUSED, 0, "", moments * 7 // 2, moments, partial(adamw, "fused"))]
    ways: dict[str, tuple[type[DenseMasking], Callable[..., DenseMasking]]] = {
        MASKING: (DenseMasking, DenseMasking),
        IN_PLACE: (InPlaceMasking, InPlaceMasking),
        COMPILED: (CompiledMasking, partial(CompiledMasking, backend=case.compiler)),
    }
    for method, (kind, make) in ways.items():
        needs = kind.nbytes(scalars, item) + case.nbytes * kind.spoils_gradients
        found.append(entry(method, budget, "middle", kind.moved(scalars, item), needs, partial(masking, make)))
    found.append(entry(FOREACH, 0, "", moments * 7 // 2, moments + case.nbytes, partial(adamw, "foreach")))
    possible = budget >= TOTAL_STEPS and scalars <= TOOLKIT_LARGEST  # it refuses steps that select nothing
    if possible and importlib.util.find_spec("selective_optimizers") is not None:
        found.append(Entry(TOOLKIT, budget, "early", 0, toolkit))
    return found


def state_at_capacity(optimizer: Any, budget: int) -> int:
    """Bytes of state of an optimizer made here, with the room that ours has for scalars still to be selected."""
    if isinstance(optimizer, DenseMasking):
        return optimizer.state_nbytes()
    if not isinstance(optimizer, SelectiveAdamW):
        return state_bytes(optimizer)
    per_scalar = optimizer.state_nbytes() // max(1, optimizer.num_selected)
    return optimizer.state_nbytes() + per_scalar * (budget - optimizer.num_selected)
