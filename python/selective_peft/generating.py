"""Texts that a model writes: beam search in batches of about equal length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from selective_peft.encoding import Rows
from selective_peft.loading import Loaded

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Search:
    """How texts are searched for.

    Attributes:
        beams: 1 is greedy.
        new_tokens: at most so many are written.
        batch_size: texts at once.
        precision: "fp32", "bf16" or "fp16", as in training.
    """

    beams: int
    new_tokens: int
    batch_size: int
    precision: str


def write(loaded: Loaded, prompts: Rows, search: Search, what: str) -> list[str]:
    """What the model writes after each prompt, without special tokens and spaces around it.

    Args:
        loaded: a causal model, or one with encoder and decoder; its mode is what it was afterwards.
        prompts: rows of tokens without labels.
        search: how.
        what: is being done, for the progress bar.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    training, device = model.training, next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]["input_ids"]), reverse=True)
    written = [""] * len(prompts)
    model.eval()
    half = torch.autocast(device.type, HALF.get(search.precision), enabled=search.precision in HALF)
    with torch.no_grad(), half, tqdm(total=len(prompts), desc=what, leave=False) as bar:
        for begin in range(0, len(order), search.batch_size):
            rows = order[begin : begin + search.batch_size]
            tokens = _generate(model, tokenizer, [prompts[row] for row in rows], search, device)
            for row, text in zip(rows, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
                written[row] = text.strip()
            bar.update(len(rows))
    model.train(training)
    return written


def _generate(model: Any, tokenizer: Any, rows: Rows, search: Search, device: torch.device) -> Any:
    batch = tokenizer.pad(
        {"input_ids": [row["input_ids"] for row in rows], "attention_mask": [row["attention_mask"] for row in rows]},
        padding_side="right" if model.config.is_encoder_decoder else "left",  # a causal model goes on at the right
        return_tensors="pt",
    ).to(device)
    found = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        num_beams=search.beams,
        do_sample=False,
        max_new_tokens=search.new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return found if model.config.is_encoder_decoder else found[:, batch["input_ids"].shape[1] :]
