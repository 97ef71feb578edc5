"""How many answers of a model are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.quality import batches
from benchmarks.quality.data import first_number
from benchmarks.quality.tasks import Encoded

BATCH = 32
NEW_TOKENS = 12


@dataclass(frozen=True)
class Answers:
    """Share of right answers, and the mean loss: of each example, or of each token of the right answers."""

    accuracy: float
    loss: float


@torch.no_grad()
def ask(model: nn.Module, part: Encoded, tokenizer: Any, causal: bool) -> Answers:
    """Asks a model for the answers of all examples of a part; half precision as in training."""
    device = next(model.parameters()).device
    right, loss, weight = 0, 0.0, 0
    for numbers in batches.by_length(part, BATCH):
        batch = batches.collated(part, numbers, tokenizer.pad_token_id, causal)
        with torch.autocast(device.type, torch.bfloat16):
            output = model(**{name: value.to(device) for name, value in batch.items()})
        counted = sum(len(part.answers[i]) for i in numbers) if causal else len(numbers)
        loss += float(output.loss) * counted
        weight += counted
        if causal:
            right += _written(model, part, numbers, tokenizer)
        else:
            right += int((output.logits.argmax(-1).cpu() == batch["labels"]).sum())
    return Answers(right / len(part), loss / weight)


def _written(model: Any, part: Encoded, numbers: list[int], tokenizer: Any) -> int:
    """How often the first number that a model writes is the right one, in greedy search."""
    batch = batches.prompts(part, numbers, tokenizer.pad_token_id)
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        found = model.generate(
            **{name: value.to(device) for name, value in batch.items()},
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    texts = tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return sum(first_number(text) == part.examples[i].answer for text, i in zip(texts, numbers, strict=True))
