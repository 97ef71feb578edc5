"""One fine-tuning run of the demo: model, optimizer, training loop, accuracy, and where the time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from selective_peft import D3, SelectiveAdamW
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.reviews import WEIGHTS, Batches, MissingData, Review, package_file

HEAD = "classifier."  # the only part that the checkpoint does not have; trained whole
METHODS = ("id3", "d3-static", "full")
DEFAULT_LR = {"id3": 1e-3, "d3-static": 1e-3, "full": 5e-5}
SCORE = D3(exp=2.0, eps=1.0)


@dataclass(frozen=True)
class Method:
    """A name of METHODS, and how often it selects."""

    name: str
    select_every: int

    @property
    def label(self) -> str:
        """For tables."""
        return self.name + (f", select_every={self.select_every}" if self.select_every > 1 else "")


@dataclass(frozen=True)
class Recipe:
    """What all methods of a comparison share; `lr` None means the method's default."""

    steps: int
    budget: int
    lr: float | None
    seed: int
    batch_size: int
    max_length: int


@dataclass(frozen=True)
class Outcome:
    """Result of one run; times are medians in seconds per step, state in bytes."""

    method: Method
    accuracy_before: float
    accuracy: float
    scalars: int
    trained: int
    state_bytes: int
    forward_backward: float
    optimizer: float


def load_model(seed: int) -> tuple[Any, Any]:
    """Model with a new two-label classifier drawn from `seed`, and its tokenizer.

    Raises:
        MissingData: transformers or the weights are not installed.
    """
    folder = str(package_file(*WEIGHTS))
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging
    except ImportError as error:
        raise MissingData(f"transformers cannot be imported ({error}); pip install transformers") from error
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise MissingData(f"The weights in {folder} do not load ({first_line}); reinstall {WEIGHTS[1]}") from error


def make_optimizer(model: torch.nn.Module, method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW on everything, or on selected scalars plus the whole classifier."""
    lr = DEFAULT_LR[method.name] if recipe.lr is None else recipe.lr
    named = list(model.named_parameters())
    if method.name == "full":
        return torch.optim.AdamW(named, lr=lr, weight_decay=0.0, fused=True)
    groups = [
        {"params": [(name, p) for name, p in named if not name.startswith(HEAD)]},
        {"params": [(name, p) for name, p in named if name.startswith(HEAD)], "selective": False},
    ]
    return SelectiveAdamW(
        groups,
        lr=lr,
        budget=recipe.budget,
        total_steps=recipe.steps,
        score=SCORE,
        strategy="static" if method.name == "d3-static" else "increment",
        select_every=method.select_every,
    )


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that an optimizer holds between steps."""
    selective: int = optimizer.state_nbytes() if isinstance(optimizer, SelectiveAdamW) else 0
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return selective + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def trained_scalars(optimizer: torch.optim.Optimizer) -> int:
    """Scalars that the optimizer has trained."""
    if not isinstance(optimizer, SelectiveAdamW):
        return sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    dense = sum(p.numel() for group in optimizer.param_groups if not group["selective"] for p in group["params"])
    return int(optimizer.num_selected + dense)


@torch.no_grad()
def accuracy(model: Any, batches: Batches) -> float:
    """Share of right answers."""
    model.eval()
    right = 0
    for batch in batches.by_length():
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(batches.labels)


def train(method: Method, recipe: Recipe, training: Sequence[Review], test: Sequence[Review]) -> Outcome:
    """Trains a fresh copy of the model with linear decay of the learning rate."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    model, tokenizer = load_model(recipe.seed)
    train_batches = Batches(training, tokenizer, recipe.max_length, recipe.batch_size)
    test_batches = Batches(test, tokenizer, recipe.max_length, recipe.batch_size)
    optimizer = make_optimizer(model, method, recipe)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 - step / recipe.steps)
    before = accuracy(model, test_batches)
    model.train()
    forward_backward, steps, losses = [], [], []
    batches = train_batches.random(recipe.seed)
    with tqdm(total=recipe.steps, desc=f"{method.label}, seed {recipe.seed}", unit="step") as bar:
        for _ in range(recipe.steps):
            batch = next(batches)
            start = time.perf_counter()
            loss = model(**batch).loss
            loss.backward()
            middle = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            optimizer.zero_grad()
            scheduler.step()
            forward_backward.append(middle - start)
            steps.append(end - middle)
            losses.append(loss.item())
            bar.set_postfix(loss=f"{statistics.fmean(losses[-20:]):.3f}", refresh=False)
            bar.update()
    return Outcome(
        method,
        before,
        accuracy(model, test_batches),
        sum(p.numel() for p in model.parameters()),
        trained_scalars(optimizer),
        state_bytes(optimizer),
        statistics.median(forward_backward),
        statistics.median(steps),
    )
