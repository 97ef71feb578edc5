"""What all runs on a data set share: examples as tokens, the model, and how long it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from benchmarks.quality.data import SOURCES, Example, Split
from benchmarks.workloads import CAUSAL, WORKLOADS

QUESTION, ANSWER = "Question: ", "\nAnswer:"
IGNORED = -100  # label of a token that is not to be predicted


@dataclass(frozen=True)
class Task:
    """A data set, a model, and what all runs of the two share.

    Attributes:
        load: reads and splits the examples.
        make: the model, in float32; a new head is drawn from torch's generator.
        tokenizer: of the model.
        causal: the model writes the answer; otherwise it tells 0 from 1.
        steps: of the optimizer.
        batch: examples per step.
        tokens: longer examples are cut; of two texts, the second one.
        validation, test: at most so many examples of these parts.
        fisher: examples that the scores of the FISH mask are computed from.
        budgets: whether budgets besides the usual one are compared.
        by_loss: the learning rate with the lowest loss of the validation part wins, not that with the highest accuracy.
    """

    load: Callable[[], Split]
    make: Callable[[], nn.Module]
    tokenizer: Callable[[], Any]
    causal: bool
    steps: int
    batch: int
    tokens: int
    validation: int
    test: int
    fisher: int = 1024  # as in the paper's baseline
    budgets: bool = field(default=False, kw_only=True)
    by_loss: bool = field(default=False, kw_only=True)

    def settings(self) -> dict[str, str]:
        """What a row says of them; rows with others are of another comparison."""
        return {name: str(getattr(self, name)) for name in ("steps", "batch", "tokens")}

    def model(self, seed: int) -> nn.Module:
        """The model with a head drawn from a seed, without dropout, in memory of its own."""
        torch.manual_seed(seed)
        made: Any = self.make()
        with torch.no_grad():
            for param in made.parameters():
                param.data = param.data.clone()  # what was read may be a view of a mapped file
        return made.eval()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Encoded:
    """Examples as tokens.

    Attributes:
        prompts: tokens of each.
        answers: tokens of each answer, for causal models; else empty lists.
        examples: the same, as they were read.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    examples: list[Example]

    def __len__(self) -> int:
        return len(self.prompts)

    def length(self, number: int) -> int:
        """Tokens of an example in training."""
        return len(self.prompts[number]) + len(self.answers[number])


@dataclass(frozen=True)
class Parts:
    """A split as tokens, and the tokenizer."""

    train: Encoded
    validation: Encoded
    test: Encoded
    tokenizer: Any


@functools.cache
def encoded(task: Task) -> Parts:
    """The examples of a task as tokens; the same object each time in a process.

    Raises:
        MissingData: a package or its file is not there.
    """
    split, tokenizer = task.load(), task.tokenizer()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    encode = _problems if task.causal else _pairs
    return Parts(
        encode(split.train, tokenizer, task.tokens),
        encode(split.validation[: task.validation], tokenizer, task.tokens),
        encode(split.test[: task.test], tokenizer, task.tokens),
        tokenizer,
    )


def _pairs(examples: list[Example], tokenizer: Any, tokens: int) -> Encoded:
    """One or two texts with the special tokens of the model."""
    if not any(each.second for each in examples):
        ids = tokenizer([each.text for each in examples], truncation=True, max_length=tokens)["input_ids"]
    else:
        ids = tokenizer(
            [each.text for each in examples],
            [each.second for each in examples],
            truncation="only_second",
            max_length=tokens,
        )["input_ids"]
    return Encoded(ids, [[] for _ in ids], examples)


def _problems(examples: list[Example], tokenizer: Any, tokens: int) -> Encoded:
    """A prompt, and the answer that is to follow it up to the token that ends a text."""
    prompts = tokenizer([f"{QUESTION}{each.text}{ANSWER}" for each in examples], add_special_tokens=False)["input_ids"]
    answers = tokenizer([f" {each.answer}" for each in examples], add_special_tokens=False)["input_ids"]
    answers = [[*each, tokenizer.eos_token_id] for each in answers]
    prompts = [each[-(tokens - len(answer)) :] for each, answer in zip(prompts, answers, strict=True)]
    return Encoded(prompts, answers, examples)


def _real(data: str, model: str, *numbers: int, budgets: bool = False, by_loss: bool = False) -> Task:
    work = WORKLOADS[model]
    assert work.tokenizer is not None
    made = Task(SOURCES[data].load, work.make, work.tokenizer, work.task == CAUSAL, *numbers)
    return replace(made, budgets=budgets, by_loss=by_loss)


ENOUGH = 1_000_000  # examples: all of them
FULL = {
    "reviews": _real("reviews", "minilm-l6", 200, 16, 48, ENOUGH, ENOUGH, budgets=True),
    "boolq": _real("boolq", "minilm-l6", 300, 32, 64, ENOUGH, ENOUGH, by_loss=True),
    "asdiv": _real("asdiv", "smollm2-135m", 120, 8, 128, ENOUGH, ENOUGH),
}
SMALL = {  # BoolQ takes more steps before anything is learned
    "reviews": _real("reviews", "minilm-l6", 200, 16, 48, 128, 512, 64),
    "asdiv": _real("asdiv", "smollm2-135m", 12, 8, 128, 32, 64),
}
