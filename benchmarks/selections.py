"""Index lists to try codes on: random positions, and what a short run of ID3 selects in the demo's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks.quality.jobs import EPS, EXP, Job
from benchmarks.quality.methods import METHODS, trainable
from benchmarks.quality.running import train
from benchmarks.quality.tasks import FULL

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


def id3_run(share: float, steps: int, batch_size: int = 16, tokens: int = 64) -> Selected:
    """What ID3 selects in all-MiniLM-L6-v2 on film reviews, by tensor; the new head is trained whole.

    Raises:
        MissingData: weights, text or a package is not there.
    """
    task = replace(FULL["reviews"], steps=steps, batch=batch_size, tokens=tokens)
    done = train(Job("reviews", "ID3", share, METHODS["ID3"].lr, 0, EXP, EPS), task)
    assert isinstance(done.optimizer, SelectiveAdamW)
    body = [param for _, param in trainable(done.model)["body"]]
    used = [(param, offsets.int()) for param in body if len(offsets := done.optimizer.selected_indices(param))]
    return Selected(
        f"MiniLM, {steps} steps of ID3",
        share,
        [offsets for _, offsets in used],
        [param.numel() for param, _ in used],
        [param.shape[-1] for param, _ in used],
    )
