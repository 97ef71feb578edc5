"""Batches of tokens: in random order for training, short ones first for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.quality.tasks import IGNORED, Encoded

GROUP = 16  # batches that are drawn together and sorted by length, so that little is padded
Batch = dict[str, Tensor]


def collated(part: Encoded, numbers: Sequence[int], pad: int, causal: bool) -> Batch:
    """A batch to train on: int64 of shape (examples, longest), and labels."""
    rows = [part.prompts[i] + part.answers[i] for i in numbers]
    batch = _padded(rows, pad, left=False)
    if causal:
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, i in enumerate(numbers):
            begin, end = len(part.prompts[i]), part.length(i)
            labels[row, begin:end] = torch.tensor(part.answers[i])
    else:
        labels = torch.tensor([int(part.examples[i].answer) for i in numbers])
    return {**batch, "labels": labels}


def prompts(part: Encoded, numbers: Sequence[int], pad: int) -> Batch:
    """A batch that a causal model goes on with: padded at the left, without answers."""
    return _padded([part.prompts[i] for i in numbers], pad, left=True)


def _padded(rows: Sequence[list[int]], pad: int, left: bool) -> Batch:
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill, zeros = [pad] * (longest - len(row)), [0] * (longest - len(row))
        ids.append(fill + row if left else row + fill)
        mask.append(zeros + [1] * len(row) if left else [1] * len(row) + zeros)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def in_random_order(part: Encoded, size: int, seed: int) -> Iterator[list[int]]:
    """Numbers of the examples of each batch, without end; no example comes again before the next round over all.

    GROUP batches are sorted by length together and then come in random order. What is left over at the end of a round,
    less than a batch, is not shown in it.

    Raises:
        ValueError: fewer examples than a batch has.
    """
    if len(part) < size:
        raise ValueError(f"size: expected at most {len(part)} examples per batch, got {size}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(part), generator=generator).tolist()
        for begin in range(0, len(order), GROUP * size):
            group = sorted(order[begin : begin + GROUP * size], key=part.length)
            batches = [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
            for number in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[number]


def by_length(part: Encoded, size: int) -> Iterator[list[int]]:
    """Numbers of all examples once, short ones first."""
    order = sorted(range(len(part)), key=part.length)
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]
