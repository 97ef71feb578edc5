"""The ways to fine-tune that are compared: each makes a model ready and says how it steps and what it trains.

All train a new head whole. Dense AdamW and dense masking use torch's fused kernel; no weight decay anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from selective_peft import SelectiveAdamW
from selective_peft.scores import Biases
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import peft_methods, rivals
from benchmarks.device import gpu_environment
from benchmarks.masking_tuned import InPlaceMasking
from benchmarks.peft_methods import Unavailable
from benchmarks.report import version
from benchmarks.resident import state_bytes
from benchmarks.workloads import Workload
from selective_kernels.ranges import ranged

TOTAL_STEPS = 1000
SHARE = 0.003  # of the scalars: the budget
DENSE_LR = 5e-5
RARELY = 15  # select_every of the second of ours
SELECT = "select"  # range of a rival's selection
SELECTING = ("scan", "finalize", "merge", SELECT)  # ranges that are selection; all the rest of a step is update
Named = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """A point of a run: `budget` scalars over TOTAL_STEPS steps; the first step selects what `done` would have."""

    budget: int
    done: int

    def selected(self, more: int = 0) -> int:
        """How many scalars the budget's schedule has selected after the first step and so many more."""
        return self.budget * min(self.done + more, TOTAL_STEPS) // TOTAL_STEPS


def plan_for(model: nn.Module, done: int) -> Plan:
    """The plan of a model: SHARE of its scalars, but one in each step at least, or selective-optimizers cannot run."""
    return Plan(max(int(SHARE * sum(param.numel() for param in model.parameters())), TOTAL_STEPS), done)


@dataclass
class Fitted:
    """A model that is ready to be trained.

    Attributes:
        model: takes batches.
        optimizers: to be stepped one after the other.
        expected: scalars that are to be trained after the first step.
        trained: counts the scalars that are trained by now.
        select_every: how often it selects, for the mean over a period; 1 for all that does the same in each step.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer | InPlaceMasking]
    expected: int
    trained: Callable[[], int]
    select_every: int = 1
    params: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.params = list(self.model.parameters())

    def step(self) -> None:
        """Updates what is trained, from the gradients as they stand."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Lets go of the gradients."""
        for param in self.params:
            param.grad = None

    def state_bytes(self) -> int:
        """Bytes held between steps besides parameters, dense masks included."""
        return sum(
            each.state_nbytes() if isinstance(each, InPlaceMasking) else state_bytes(each) for each in self.optimizers
        )


def _split(model: nn.Module, work: Workload) -> tuple[Named, Named]:
    """Named parameters: those of the checkpoint, and those of the new head."""
    named = list(model.named_parameters())
    in_head = [bool(work.head) and name.startswith(work.head) for name, _ in named]
    return (
        [pair for pair, new in zip(named, in_head, strict=True) if not new],
        [pair for pair, new in zip(named, in_head, strict=True) if new],
    )


def _count(named: Named) -> int:
    return sum(param.numel() for _, param in named)


def _params(named: Named) -> list[Tensor]:
    return [param for _, param in named]


def _dense(params: Sequence[Tensor], lr: float) -> Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=0.0, fused=True)


def _of_groups(optimizer: Optimizer) -> int:
    return sum(param.numel() for group in optimizer.param_groups for param in group["params"] if param.requires_grad)


def _full(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
    optimizer = _dense(list(model.parameters()), DENSE_LR)
    expected = sum(param.numel() for param in model.parameters())
    return Fitted(model, (optimizer,), expected, lambda: _of_groups(optimizer))


def _eight_bit(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
    try:
        import bitsandbytes
    except ImportError as error:
        raise Unavailable(f"bitsandbytes cannot be imported ({error})") from error
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(model.parameters(), lr=DENSE_LR, weight_decay=0.0)
    expected = sum(param.numel() for param in model.parameters())
    return Fitted(model, (optimizer,), expected, lambda: _of_groups(optimizer))


def _peft(make: peft_methods.Adapt) -> Callable[[nn.Module, Workload, Plan], Fitted]:
    def fit(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
        _, head = _split(model, work)
        adapted, expected = make(model, work)
        optimizer = _dense([param for param in adapted.parameters() if param.requires_grad], rivals.LR)
        return Fitted(adapted, (optimizer,), expected + _count(head), lambda: _of_groups(optimizer))

    return fit


def _selective(body: Named, head: Named, select_every: int = 1, **options: object) -> SelectiveAdamW:
    groups = [{"params": body}, *([{"params": head, "selective": False}] if head else [])]
    return SelectiveAdamW(groups, lr=rivals.LR, select_every=select_every, **options)  # type: ignore[arg-type]


def ours(params: Named, head: Named, plan: Plan, select_every: int = 1, backend: str = "auto") -> SelectiveAdamW:
    """ID3 from a point of its run on, as `rivals.at_step`, with a head that is trained whole."""
    return _selective(
        params,
        head,
        select_every,
        budget=plan.budget,
        total_steps=TOTAL_STEPS - plan.done + 1,
        score=rivals.SCORE,
        schedule=lambda step, _, whole: whole * (plan.done + step) // TOTAL_STEPS,
        backend=backend,
    )


def _id3(select_every: int) -> Callable[[nn.Module, Workload, Plan], Fitted]:
    def fit(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
        body, head = _split(model, work)
        optimizer = ours(body, head, plan, select_every)
        expected = plan.selected(select_every - 1) + _count(head)
        trained = lambda: optimizer.num_selected + _count(head)  # noqa: E731
        return Fitted(model, (optimizer,), expected, trained, select_every=select_every)

    return fit


def _pafi(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
    body, head = _split(model, work)
    optimizer = _selective(body, head, method="pafi", budget=plan.budget, total_steps=TOTAL_STEPS)
    return Fitted(model, (optimizer,), plan.budget + _count(head), lambda: optimizer.num_selected + _count(head))


def _bitfit(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
    """What is no bias gets no gradient: backward then skips it."""
    body, head = _split(model, work)
    biases = [(name, param) for name, param in body if Biases().only(name)]
    if not biases:
        raise Unavailable("the model has no biases")
    trained = {id(param) for _, param in [*biases, *head]}
    for param in model.parameters():
        param.requires_grad_(id(param) in trained)
    optimizer = _selective(biases, head, method="bitfit", total_steps=TOTAL_STEPS)
    expected = _count(biases) + _count(head)
    return Fitted(model, (optimizer,), expected, lambda: optimizer.num_selected + _count(head))


def _masking(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
    body, head = _split(model, work)
    rival = InPlaceMasking(_params(body), plan.budget, TOTAL_STEPS, plan.done)
    rival._best = ranged(SELECT)(rival._best)  # type: ignore[method-assign]
    optimizers: list[Optimizer | InPlaceMasking] = [rival, *([_dense(_params(head), rivals.LR)] if head else [])]
    trained = lambda: int(rival.mask.sum()) + _count(head)  # noqa: E731
    return Fitted(model, optimizers, plan.selected() + _count(head), trained)


def _toolkit(model: nn.Module, work: Workload, plan: Plan) -> Fitted:
    """It cannot begin in the middle of a run, which makes its steps no cheaper; its budget counts the head."""
    body, head = _split(model, work)
    groups = [{"params": _params(body)}, *([{"params": _params(head), "choose_all": True}] if head else [])]
    try:
        optimizer = rivals.toolkit(
            groups,  # type: ignore[arg-type]
            plan.budget + _count(head),
            TOTAL_STEPS,
        )
    except ImportError as error:
        raise Unavailable(f"selective-optimizers cannot be imported ({error})") from error
    optimizer.update_chosen = ranged(SELECT)(optimizer.update_chosen)  # type: ignore[attr-defined]
    per_step = -(-plan.budget // TOTAL_STEPS)
    return Fitted(model, (optimizer,), per_step + _count(head), optimizer.get_budget_used)  # type: ignore[attr-defined]


FULL, OURS, OURS_RARELY = "AdamW fused", "ours", f"ours, select_every={RARELY}"
BITFIT, PAFI, MASKING, TOOLKIT = "BitFit (ours)", "PaFi (ours)", "dense masking", "selective-optimizers"
ON_GPU = "AdamW 8-bit"  # on the CPU there is no row of it
METHODS: dict[str, Callable[[nn.Module, Workload, Plan], Fitted]] = {
    FULL: _full,
    ON_GPU: _eight_bit,
    **{name: _peft(make) for name, make in peft_methods.METHODS.items()},
    BITFIT: _bitfit,
    PAFI: _pafi,
    MASKING: _masking,
    TOOLKIT: _toolkit,
    OURS: _id3(1),
    OURS_RARELY: _id3(RARELY),
}


def import_late() -> None:
    """Imports what the methods import late, as far as it is installed."""
    for name in ("peft", "selective_optimizers.wrap", "bitsandbytes"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def add_methods(parser: argparse.ArgumentParser) -> None:
    """`--methods WORD ...`."""
    parser.add_argument(
        "--methods", nargs="+", metavar="WORD", help=f"only methods with such a word in their name, and {FULL}"
    )


def method_stamp(device: torch.device) -> dict[str, str]:
    """What a row's numbers depend on besides `report.environment`."""
    versions = {name: version(name) for name in ("transformers", "peft", "bitsandbytes")}
    return {**versions, "gpu": gpu_environment(device)["gpu"]}


def methods_for(device: str, asked: Sequence[str] | None = None) -> list[str]:
    """Names of METHODS that run on a device; of these, the ones that contain one of the words that are asked for.

    Dense AdamW, which the others are compared with, is always there, and the first.
    """
    names = [name for name in METHODS if name != ON_GPU or device == "cuda"]
    if asked is None:
        return names
    return [name for name in names if name == FULL or any(word.lower() in name.lower() for word in asked)]
