"""No time without a right result, of whole methods: counts, losses, and ours against the reference."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import certificate, finetuning, gate, peft_methods, room
from benchmarks.finetuning import FULL, MASKING, METHODS, RARELY, TOOLKIT, TOTAL_STEPS, Fitted, plan_for
from benchmarks.gate import Mismatch
from benchmarks.peft_methods import Unavailable
from benchmarks.phases import Trainee
from benchmarks.suites import CannotRun
from benchmarks.workloads import Batch, Workload

DONE = TOTAL_STEPS // 2
LESSONS = 3  # steps on one small batch, after which its loss must be lower
LESSON = (2, 32)  # sequences and tokens of it, at most
REFERENCE_LIMIT = 25_000_000  # scalars; the reference sorts all of them, which takes minutes on a larger model
HELD = {FULL: 3.0, MASKING: 3.5, TOOLKIT: 4.25}  # bytes of a method per byte of the model; 1 of the others, beside PEFT
SHARED = 6.0  # the base model, what all adapters share, gradients, activations and temporaries of one step


@dataclass
class Pupil:
    """A method that has passed its test.

    Attributes:
        trainee: takes and times its steps.
        made: seconds in which the model was adapted and the optimizer made.
        first_step: seconds of the optimizer's first step.
    """

    trainee: Trainee
    made: float
    first_step: float


def check_room(methods: Sequence[str], scalars: int, itemsize: int, device: torch.device) -> None:
    """Raises CannotRun if the methods' models do not fit into memory together."""
    alone = [HELD.get(method, 1.0) for method in methods if method not in peft_methods.METHODS]
    needs = int(scalars * itemsize * (sum(alone) + SHARED))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else room.available_bytes()
    if needs > free:
        raise CannotRun(f"{room.lack(needs, free)}; name fewer methods with --methods")


def lesson(batch: Batch) -> Batch:
    """A small part of a batch."""
    sequences, tokens = LESSON
    return {
        name: tensor[:sequences, :tokens] if tensor.dim() > 1 else tensor[:sequences] for name, tensor in batch.items()
    }


def check_ours(model: nn.Module, work: Workload, batches: Sequence[Batch]) -> int:
    """Two selecting steps of ours on gradients of the model, from the middle of a run on; returns the run's budget.

    Lists and values must be those of the reference backend; on a model too large for that, no scalar that was left out
    may come before one that was selected, and values must be those of torch's AdamW on masked gradients.

    Raises:
        Mismatch: they are not.
    """
    params = [param for name, param in model.named_parameters() if not (work.head and name.startswith(work.head))]
    plan = plan_for(model, DONE)
    grads = [_gradients(model, params, lesson(batch)) for batch in (batches[0], batches[-1])]
    base = [param.detach() for param in params]
    kernels = "cpu" if base[0].device.type == "cpu" else "triton"

    def make(copies: list[Tensor], backend: str = kernels) -> SelectiveAdamW:
        return finetuning.ours([(str(i), each) for i, each in enumerate(copies)], [], plan, backend=backend)

    if sum(param.numel() for param in base) <= REFERENCE_LIMIT:
        gate.agree(base, grads, make, plan.selected(1), kernels=kernels)
    else:
        certificate.certify(base, grads, make, [plan.selected(), plan.selected(1)])
    return plan.budget


def _gradients(model: nn.Module, params: Sequence[Tensor], batch: Batch) -> list[Tensor]:
    model(**batch).loss.backward()
    grads = []
    for param in params:
        grads.append(torch.zeros_like(param) if param.grad is None else param.grad)
    for each in model.parameters():
        each.grad = None
    return grads


def copy_for(method: str, model: nn.Module) -> nn.Module:
    """A model to train. Adapters of PEFT leave the weights as they are, and share them; a model is for them or not."""
    if method in peft_methods.METHODS:
        return copy.deepcopy(model, {id(param): param for param in model.parameters()})
    return copy.deepcopy(model)


def ready(
    method: str, model: nn.Module, work: Workload, batches: Sequence[Batch], device: torch.device, warmups: int
) -> Pupil | str:
    """A method that has learnt something on a copy of the model, or why it cannot be run.

    Where only one of RARELY steps selects, further steps of the optimizer with lr 0 are made, so that the second step
    after `warmups` more selects, and the first does not.

    Raises:
        Mismatch: it trains more or fewer scalars than it should, or the loss does not fall.
    """
    mine, plan = copy_for(method, model), plan_for(model, DONE)
    began = time.perf_counter()
    try:
        fitted = METHODS[method](mine, work, plan)
    except Unavailable as error:
        return str(error)
    made = time.perf_counter() - began
    trainee = Trainee(fitted, batches, device)
    first = _learn(method, trainee, lesson(batches[0]))
    if fitted.select_every > 1:
        _wait(fitted, RARELY - 1 - LESSONS - warmups)
    fitted.zero_grad()
    fitted.model.train()
    return Pupil(trainee, made, first)


def _learn(method: str, trainee: Trainee, batch: Batch) -> float:
    """Steps on one batch, without dropout, the gradients of the last one kept; seconds of the first optimizer step."""
    fitted, losses, seconds = trainee.fitted, [], []
    fitted.model.eval()
    for number in range(LESSONS):
        fitted.zero_grad()
        loss = fitted.model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        began = trainee.clock()
        fitted.step()
        seconds.append(trainee.clock() - began)
        if number == 0 and fitted.trained() != fitted.expected:
            raise Mismatch(f"{method}: expected {fitted.expected} trained scalars, got {fitted.trained()}")
    with torch.no_grad():
        losses.append(fitted.model(**batch).loss.item())
    if not losses[-1] < losses[0]:
        raise Mismatch(f"{method}: expected the loss to fall in {LESSONS} steps, got {losses}")
    return seconds[0]


def _wait(fitted: Fitted, steps: int) -> None:
    """Steps of the optimizers with lr 0, on the gradients as they are."""
    groups = [group for each in fitted.optimizers if isinstance(each, Optimizer) for group in each.param_groups]
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
    for _ in range(steps):
        fitted.step()
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
