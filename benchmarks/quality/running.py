"""One run: a fresh model is trained, then asked for all answers."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from selective_peft import SelectiveAdamW, fisher_scores
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from benchmarks import ROOT
from benchmarks.quality import batches
from benchmarks.quality.asking import Answers, ask
from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.methods import METHODS, adapt, optimizer_for, trainable
from benchmarks.quality.tasks import Parts, Task, encoded
from benchmarks.resident import state_bytes

CACHE = ROOT / "build" / "quality"


@dataclass
class Trained:
    """A run's model and what its training told.

    Attributes:
        model: after training.
        optimizer: None for NONE.
        loss: mean of the last tenth of the steps; NaN for NONE.
        budget, trained: scalars to be selected, and trained in all, a new head included.
        forward_backward, step: medians in seconds.
    """

    model: nn.Module
    optimizer: Optimizer | None = None
    loss: float = math.nan
    budget: int = 0
    trained: int = 0
    forward_backward: float = math.nan
    step: float = math.nan


def half_precision(device: str) -> Any:
    """bfloat16 wherever autocast has it; parameters, gradients and optimizers stay float32."""
    return torch.autocast(device, torch.bfloat16)


def run(job: Job, task: Task, device: str = "cpu") -> dict[str, str]:
    """Trains, asks for the answers of validation and test part, and returns a row's results.

    The same job gives the same accuracies on the same machine, with one thread.

    Raises:
        MissingData: a package or its file is not there.
    """
    began, parts = time.perf_counter(), encoded(task)
    done = train(job, task, device)
    found = {
        name: ask(done.model, getattr(parts, name), parts.tokenizer, task.causal) for name in ("validation", "test")
    }
    return {
        **task.settings(),
        **_answers(found),
        "train_loss": f"{done.loss:.6g}",
        "budget": str(done.budget),
        "trained": str(done.trained),
        "state_bytes": str(state_bytes(done.optimizer) if done.optimizer else 0),
        "forward_backward_seconds": f"{done.forward_backward:.4g}",
        "optimizer_seconds": f"{done.step:.4g}",
        "seconds": f"{time.perf_counter() - began:.1f}",
    }


def _answers(found: Mapping[str, Answers]) -> dict[str, str]:
    cells = {}
    for name, answers in found.items():
        cells[name] = f"{answers.accuracy:.6f}"
        cells[f"{name}_loss"] = f"{answers.loss:.6g}"
    return cells


def train(job: Job, task: Task, device: str = "cpu", after: Callable[[int], object] = lambda step: None) -> Trained:
    """A fresh model, trained with a learning rate that falls linearly to zero; `after` is called after each step."""
    parts, model = encoded(task), task.model(job.seed)
    if device == "cpu":
        model.set_attn_implementation("eager")  # type: ignore[operator]  # torch's fused attention is slow in bfloat16
    scalars = sum(param.numel() for param in model.parameters())
    if job.method == NONE:
        return Trained(model.to(device))
    fisher = None
    if METHODS[job.method].method == "fish":
        fisher = _fisher(job, model, parts, task)
    model = adapt(model, METHODS[job.method].adapter, job.seed).to(device)
    budget = int(job.share * scalars)
    optimizer = optimizer_for(model, job, budget, task.steps, fisher)
    schedule = LambdaLR(optimizer, lambda step: 1.0 - step / task.steps)
    order = batches.in_random_order(parts.train, task.batch, job.seed)
    losses, forward, steps = [], [], []
    for number in range(task.steps):
        batch = batches.collated(parts.train, next(order), parts.tokenizer.pad_token_id, task.causal)
        start = time.perf_counter()
        with half_precision(device):
            loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
        loss.backward()
        middle = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        forward.append(middle - start)
        steps.append(end - middle)
        after(number)
    last = losses[-max(1, task.steps // 10) :]
    selected = optimizer.num_selected if isinstance(optimizer, SelectiveAdamW) else None
    ready = trainable(model)
    whole = ready["head"] if selected is not None else [pair for part in ready.values() for pair in part]
    return Trained(
        model,
        optimizer,
        statistics.fmean(last),
        budget,
        (selected or 0) + sum(param.numel() for _, param in whole),
        statistics.median(forward),
        statistics.median(steps),
    )


def _fisher(job: Job, model: nn.Module, parts: Parts, task: Task) -> dict[str, Tensor]:
    """Scores of a fresh model, which all runs of a seed share; kept in a file named by all that they hang on."""
    weights = [(name, float(param.detach().double().sum())) for name, param in model.named_parameters()]
    answers = [each.answer for each in parts.train.examples]
    made_of = hashlib.sha256(repr((weights, parts.train.prompts, answers)).encode()).hexdigest()[:16]
    path = CACHE / f"fisher-{job.data}-{made_of}-{task.fisher}-{job.seed}.safetensors"
    if path.exists():
        return load_file(path)
    order = batches.in_random_order(parts.train, 1, job.seed)
    rows = (batches.collated(parts.train, next(order), parts.tokenizer.pad_token_id, task.causal) for _ in range(2**62))
    scores = fisher_scores(model, rows, min(task.fisher, len(parts.train)), progress=False)
    wanted = {name for name, _ in trainable(model)["body"]}
    kept = {name: value.contiguous() for name, value in scores.items() if name in wanted}
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(kept, partial)
    partial.replace(path)
    return kept
