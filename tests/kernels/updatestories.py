"""Steps of selective training by the operations, and torch's dense optimizers restricted to the same entries (C6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tritontests import placed

from selective_kernels import (
    AdamGroup,
    Ages,
    SgdGroup,
    SparseIndex,
    Table,
    Update,
    adam_,
    gather,
    gather_grads,
    merge_,
    sgd_,
)

# Two pieces of work (2048 entries) and a rest, nothing, several dimensions and one block of 256, a single entry.
SHAPES = [(61, 71), (0,), (4, 8, 8), (1,), (2049,)]
GROUP_OF = [0, 0, 1, 1, 0]
RATES = [1e-2, 3e-3]  # learning rates of the groups
STEPS = 8
MISSED = {0: {4}, 2: {0, 2, 3}, 4: {7}}  # steps in which a tensor has no gradient: early, in the middle, at the end
CLIP = 0.625  # exact in float32, so that scaling first or later is the same


class Kind(NamedTuple):
    """An optimizer in both worlds, from a learning rate."""

    group: Callable[[float], AdamGroup | SgdGroup]
    torch: Callable[[float], dict]
    optimizer: type[torch.optim.Optimizer]


BETAS = {"betas": (0.9, 0.999), "eps": 1e-8}

KINDS = {
    "adamw": Kind(
        lambda lr: AdamGroup(lr, 0.9, 0.999, 1e-8, decay=0.1),
        lambda lr: {"lr": lr, "weight_decay": 0.1, **BETAS},
        torch.optim.AdamW,
    ),
    "adam_l2": Kind(
        lambda lr: AdamGroup(lr, 0.9, 0.999, 1e-8, l2=0.1),
        lambda lr: {"lr": lr, "weight_decay": 0.1, **BETAS},
        torch.optim.Adam,
    ),
    "adam_without_momentum": Kind(  # beta1 = 0, and a large eps
        lambda lr: AdamGroup(lr, 0.0, 0.5, 1e-2),
        lambda lr: {"lr": lr, "betas": (0.0, 0.5), "eps": 1e-2},
        torch.optim.Adam,
    ),
    "sgd": Kind(lambda lr: SgdGroup(lr), lambda lr: {"lr": lr}, torch.optim.SGD),
    "sgd_decay": Kind(
        lambda lr: SgdGroup(lr, weight_decay=0.1), lambda lr: {"lr": lr, "weight_decay": 0.1}, torch.optim.SGD
    ),
    "momentum": Kind(
        lambda lr: SgdGroup(lr, 0.9, weight_decay=0.1),
        lambda lr: {"lr": lr, "momentum": 0.9, "weight_decay": 0.1},
        torch.optim.SGD,
    ),
    "dampening": Kind(
        lambda lr: SgdGroup(lr, 0.9, 0.5), lambda lr: {"lr": lr, "momentum": 0.9, "dampening": 0.5}, torch.optim.SGD
    ),
    "nesterov": Kind(
        lambda lr: SgdGroup(lr, 0.9, nesterov=True),
        lambda lr: {"lr": lr, "momentum": 0.9, "nesterov": True},
        torch.optim.SGD,
    ),
}


class Story:
    """What happens in the steps: gradients (None where a tensor has none), entries selected, entries overwritten."""

    def __init__(self, dtype, seed=0, overwrite=False):
        rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.start = [torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype) for shape in SHAPES]
        self.grads, self.new, self.overwritten = [], [], []
        taken = [np.zeros(tensor.numel(), bool) for tensor in self.start]
        for step in range(STEPS):
            grads = [torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype) for shape in SHAPES]
            self.grads.append([None if step in MISSED.get(i, ()) else grad for i, grad in enumerate(grads)])
            # A third of the entries at first, then some in each step but one; the single entry in step 1.
            share = {0: 0.3, 5: 0.0}.get(step, 0.1)
            new = [(rng.random(len(old)) < (share if len(old) > 1 else step == 1)) & ~old for old in taken]
            for old, mask in zip(taken, new, strict=True):
                old |= mask
            self.new.append(new)
            # Somebody writes to the model: every seventh entry, selected or not, before step 4.
            self.overwritten.append(overwrite and step == 4)

    def overwrite(self, params):
        for param in params:
            param.view(-1)[::7] = 17.0  # no rounded master copy has this value by itself


class Selective:
    """The sparse optimizer on index lists: what a training loop does with the operations."""

    def __init__(self, kind, per_entry, backend, device):
        self.kind, self.per_entry, self.backend, self.device = kind, per_entry, backend, device

    def run(self, story):
        device = self.device
        self.params = [tensor.to(device, copy=True) for tensor in story.start]
        table, total = Table(self.params), sum(int(mask.sum()) for new in story.new for mask in new)
        self.index = SparseIndex.empty(len(SHAPES), total, device)
        # Poisoned: an entry's state has to be written when it is selected.
        self.first, self.second, self.master = (torch.full((total,), math.nan, device=device) for _ in range(3))
        self.chosen = torch.full((total,), 10**9, dtype=torch.int32, device=device)
        counts, missed = [0] * len(SHAPES), {i: [] for i in range(len(SHAPES))}
        for step, (grads, new, overwritten) in enumerate(zip(story.grads, story.new, story.overwritten, strict=True)):
            if overwritten:
                story.overwrite(self.params)
            fresh = placed(SparseIndex.from_lists([torch.from_numpy(np.flatnonzero(m)) for m in new]), device)
            born = torch.full((fresh.count,), step, dtype=torch.int32, device=device)
            values = gather(table, fresh, backend=self.backend)
            arrays = [(self.first, None), (self.second, None), (self.master, values), (self.chosen, born)]
            merge_(self.index, fresh, arrays, backend=self.backend)
            tensors = [i for i, grad in enumerate(grads) if grad is not None]
            for i in range(len(SHAPES)):
                counts[i] += i in tensors
                missed[i] += [] if i in tensors else [step]
            selected = torch.full(
                (self.index.count,), math.nan, device=device
            )  # so that an update without gradient shows
            there = [grads[i].to(device) for i in tensors]
            gather_grads(table, self.index, tensors, there, selected, backend=self.backend)
            ages = Ages(self.chosen, missed, step) if self.per_entry else None
            master = None if story.dtype is torch.float32 else self.master
            update = Update(table, self.index, tensors, selected, master, GROUP_OF, list(counts), ages, CLIP)
            groups = [self.kind.group(lr) for lr in RATES]
            if isinstance(groups[0], AdamGroup):
                adam_(update, self.first, self.second, groups, backend=self.backend)
            else:
                buffer = self.first if groups[0].momentum else None
                sgd_(update, buffer, groups, backend=self.backend)
        self.params = [param.cpu() for param in self.params]
        self.first, self.second, self.master = self.first.cpu(), self.second.cpu(), self.master.cpu()
        return self

    def arrays(self):
        return [*self.params, self.first, self.second, self.master]


def dense(kind, story, masks_by_step):
    """torch's dense optimizer in float32 on gradients masked by each step's entries; a step without masks is not taken.

    After each step whatever is not selected gets its old value and empty state back: "restricted to Lambda".
    """
    params = [torch.nn.Parameter(tensor.float().clone()) for tensor in story.start]
    groups = [
        {"params": [p for p, of in zip(params, GROUP_OF, strict=True) if of == number], **kind.torch(lr)}
        for number, lr in enumerate(RATES)
    ]
    optimizer = kind.optimizer(groups, foreach=False)
    for grads, masks, overwritten in zip(story.grads, masks_by_step, story.overwritten, strict=True):
        if overwritten:
            story.overwrite([p.data for p in params])
        if masks is None:
            continue
        before = [p.detach().clone() for p in params]
        for p, grad, mask in zip(params, grads, masks, strict=True):
            p.grad = None if grad is None else torch.where(mask, grad.float() * CLIP, 0.0)
        optimizer.step()
        for p, old, mask in zip(params, before, masks, strict=True):
            p.data = torch.where(mask, p.data, old)
            for state in optimizer.state[p].values():
                if isinstance(state, torch.Tensor) and state.shape == p.shape:
                    state[~mask] = 0.0
    return [p.detach() for p in params]


def oracle(kind, story, per_entry):
    """ "global": one dense optimizer; "per_entry": one for the entries of each step, which starts in that step."""
    new = [[torch.from_numpy(m).view(t.shape) for m, t in zip(ms, story.start, strict=True)] for ms in story.new]
    selected = [[torch.stack(each[: step + 1]).any(0) for each in zip(*new, strict=True)] for step in range(STEPS)]
    result = dense(kind, story, selected)
    for born in range(STEPS if per_entry else 0):
        cohort = dense(kind, story, [None] * born + [new[born]] * (STEPS - born))
        result = [torch.where(m, mine, all_) for m, mine, all_ in zip(new[born], cohort, result, strict=True)]
    return result, selected[-1]
