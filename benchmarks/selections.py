"""Index lists to try codes on: random positions, and what a short run of ID3 selects in the demo's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks import training
from benchmarks.reviews import Batches, load, split_by_movie
from benchmarks.training import HEAD, Method, Recipe

REVIEWS = 3000  # of the training side; enough for the steps of a short run
RANDOM, RANDOM_COLUMNS = "random positions", 1024


@dataclass(frozen=True)
class Selected:
    """Sorted int32 offsets of each tensor, its number of entries, and the length of its rows.

    Attributes:
        name: for tables.
        share: of all entries that are selected, as asked for.
    """

    name: str
    share: float
    lists: Sequence[Tensor]
    sizes: Sequence[int]
    columns: Sequence[int]

    @property
    def count(self) -> int:
        """Number of offsets."""
        return sum(len(each) for each in self.lists)

    def joined(self, name: str) -> Selected:
        """The same positions in all tensors laid end to end, as one list."""
        begins = np.cumsum([0, *self.sizes])
        moved = [each + int(begin) for each, begin in zip(self.lists, begins, strict=False)]
        return Selected(name, self.share, [torch.cat(moved)], [sum(self.sizes)], [RANDOM_COLUMNS])


def random_positions(share: float, count: int, seed: int = 0) -> Selected:
    """Positions that are each taken with the same probability, as one list."""
    steps = np.random.default_rng(seed).geometric(share, count)
    offsets = torch.from_numpy((np.cumsum(steps) - 1).astype(np.int32))
    return Selected(RANDOM, share, [offsets], [int(offsets[-1]) + 1], [RANDOM_COLUMNS])


def id3_run(share: float, steps: int, batch_size: int = 16) -> Selected:
    """What ID3 selects in all-MiniLM-L6-v2 on film reviews, by tensor; the new classifier is trained whole.

    Raises:
        MissingData: weights, text or a package is not there.
    """
    reviews = split_by_movie(load())[0][:REVIEWS]
    model, tokenizer = training.load_model(seed=0)
    params = [p for name, p in model.named_parameters() if not name.startswith(HEAD)]
    recipe = Recipe(steps, round(share * sum(p.numel() for p in params)), None, 0, batch_size, 64)
    optimizer = training.make_optimizer(model, Method("id3", 1), recipe)
    assert isinstance(optimizer, SelectiveAdamW)
    batches = Batches(reviews, tokenizer, recipe.max_length, batch_size).random(seed=0)
    model.train()
    for _ in range(steps):
        model(**next(batches)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    used = [(p, offsets.int()) for p in params if len(offsets := optimizer.selected_indices(p))]
    return Selected(
        f"MiniLM, {steps} steps of ID3",
        share,
        [offsets for _, offsets in used],
        [p.numel() for p, _ in used],
        [p.shape[-1] for p, _ in used],
    )
