"""Sparse updates (C6, C7) against torch's dense optimizers with masked gradients, restricted to the selection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

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
    square_sum,
)
from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

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

    def __init__(self, kind, per_entry, backend):
        self.kind, self.per_entry, self.backend = kind, per_entry, backend

    def run(self, story):
        self.params = [tensor.clone() for tensor in story.start]
        table, total = Table(self.params), sum(int(mask.sum()) for new in story.new for mask in new)
        self.index = SparseIndex.empty(len(SHAPES), total)
        # Poisoned: an entry's state has to be written when it is selected.
        self.first, self.second, self.master = (torch.full((total,), math.nan) for _ in range(3))
        self.chosen = torch.full((total,), 10**9, dtype=torch.int32)
        counts, missed = [0] * len(SHAPES), {i: [] for i in range(len(SHAPES))}
        for step, (grads, new, overwritten) in enumerate(zip(story.grads, story.new, story.overwritten, strict=True)):
            if overwritten:
                story.overwrite(self.params)
            fresh = SparseIndex.from_lists([torch.from_numpy(np.flatnonzero(mask)) for mask in new])
            born = torch.full((fresh.count,), step, dtype=torch.int32)
            arrays = [(self.first, None), (self.second, None), (self.master, gather(table, fresh)), (self.chosen, born)]
            merge_(self.index, fresh, arrays, backend=self.backend)
            tensors = [i for i, grad in enumerate(grads) if grad is not None]
            for i in range(len(SHAPES)):
                counts[i] += i in tensors
                missed[i] += [] if i in tensors else [step]
            selected = torch.full((self.index.count,), math.nan)  # so that an update without gradient shows
            gather_grads(table, self.index, tensors, [grads[i] for i in tensors], selected, backend=self.backend)
            ages = Ages(self.chosen, missed, step) if self.per_entry else None
            master = None if story.dtype is torch.float32 else self.master
            update = Update(table, self.index, tensors, selected, master, GROUP_OF, list(counts), ages, CLIP)
            groups = [self.kind.group(lr) for lr in RATES]
            if isinstance(groups[0], AdamGroup):
                adam_(update, self.first, self.second, groups, backend=self.backend)
            else:
                buffer = self.first if groups[0].momentum else None
                sgd_(update, buffer, groups, backend=self.backend)
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


@pytest.mark.parametrize("per_entry", [False, True], ids=["global", "per_entry"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwritten"])
def test_c6_c7_equals_dense_restricted(everywhere, name, dtype, per_entry, overwrite):
    """C6: torch's result on the selected entries, to rounding; the master copy of a parameter that somebody wrote to
    follows it. C7: the others keep every bit. All instruction sets and thread counts give the same bits."""
    story = Story(dtype, overwrite=overwrite)
    expected, masks = oracle(KINDS[name], story, per_entry)
    results = everywhere(lambda: Selective(KINDS[name], per_entry, "cpu").run(story))
    first = next(iter(results.values()))
    for result in results.values():
        for actual, other in zip(result.arrays(), first.arrays(), strict=True):
            assert_bitwise_equal(actual, other)
    for result in (first, Selective(KINDS[name], per_entry, "reference").run(story)):
        for i, (actual, dense_result, mask) in enumerate(zip(result.params, expected, masks, strict=True)):
            assert_bitwise_equal(actual[~mask], dense_result.to(dtype)[~mask], "frozen entries")
            rounded = dense_result.to(dtype)[mask].float()
            torch.testing.assert_close(actual[mask].float(), rounded, **TOLERANCES[dtype])
            if dtype is not torch.float32:
                master = result.master[result.index.starts[i] : result.index.starts[i + 1]]
                torch.testing.assert_close(master, dense_result[mask], **TOLERANCES[torch.float32])
                assert_bitwise_equal(actual[mask], master.to(dtype), "rounded master copy")


def test_c6_master_keeps_updates_that_rounding_would_lose(everywhere):
    """C6: a thousand updates of a hundredth of bfloat16's spacing move the parameter as far as float32's."""

    def run():
        param, master, one = torch.ones(300, dtype=torch.bfloat16), torch.ones(300), SgdGroup(1.0)
        index = SparseIndex.from_lists([torch.arange(300)])
        for _ in range(1000):
            adds = torch.full((300,), -(2.0**-7) / 100)
            sgd_(Update(Table([param]), index, [0], adds, master, [0], [1]), None, [one])
        return param

    for param in everywhere(run).values():
        assert param.float().tolist() == [1.0 + 10 * 2.0**-7] * 300


@pytest.mark.parametrize("beta2", [0.999, 0.9999])  # the second one's correction changes for 276,000 steps
def test_c6_old_entries_have_no_correction(everywhere, beta2):
    """C6: after a million steps per-entry and global correction agree bit for bit, in a table that has an end."""
    grads = torch.linspace(-1.0, 1.0, 700)
    index = SparseIndex.from_lists([torch.arange(700)])

    def run():
        results = []
        for ages in (None, Ages(torch.zeros(700, dtype=torch.int32), {}, 10**6 - 1)):
            param, first, second = torch.ones(700), torch.full((700,), 0.1), torch.full((700,), 0.2)
            update = Update(Table([param]), index, [0], grads, None, [0], [10**6], ages)
            adam_(update, first, second, [AdamGroup(1e-3, 0.9, beta2, 1e-8)])
            results.append(param)
        return results

    for by_step, by_age in everywhere(run).values():
        assert_bitwise_equal(by_age, by_step)
        assert not bool((by_step == 1.0).any())


def test_c9_square_sum_is_the_same_everywhere(everywhere):
    """C9: float64 over blocks of 4096 entries of a tensor in index order, then over blocks; only the tensors asked."""
    rng = np.random.default_rng(0)
    counts = [4096 * 3 + 5, 0, 700, 4096]
    table = Table([torch.zeros(2 * count) for count in counts])
    index = SparseIndex.from_lists([torch.arange(0, 2 * count, 2) for count in counts])
    grads = torch.from_numpy(rng.standard_normal(index.count) * np.exp(rng.uniform(-20, 20, index.count)))
    grads = grads.float()
    for tensors in ([0, 1, 2, 3], [0, 3], [1], []):
        values = [grads[index.starts[i] : index.starts[i + 1]].double().numpy() ** 2 for i in tensors]
        blocks = [each[j : j + 4096].cumsum()[-1] for each in values for j in range(0, len(each), 4096)]
        expected = float(np.cumsum([0.0, *blocks])[-1])  # cumsum adds in order
        found = everywhere(lambda tensors=tensors: float(square_sum(table, index, tensors, grads)))
        triton = found.pop("triton", expected)  # adds within a block in an order of its own
        assert triton == pytest.approx(expected, rel=1e-12)
        assert set(found.values()) == {expected}
        assert float(square_sum(table, index, tensors, grads, backend="reference")) == pytest.approx(
            expected, rel=1e-12
        )


def test_c6_ages_out_of_range_are_clamped(everywhere):
    """An entry from the future would read the tables of corrections before their begin; it counts as new."""

    def run(chosen, missed, backend="cpu"):
        param, index = torch.ones(3), SparseIndex.from_lists([[0, 1, 2]])
        ages = Ages(torch.tensor(chosen, dtype=torch.int32), {0: missed}, 4)
        update = Update(Table([param]), index, [0], torch.full((3,), 0.5), None, [0], [1], ages)
        moments = torch.zeros(3), torch.zeros(3)
        adam_(update, *moments, [AdamGroup(0.1, 0.9, 0.999, 1e-8)], backend=backend)
        return param

    expected = run([4, 4, 4], [], "reference")
    cases = [([5, 2**31 - 1, 100], []), ([2, 3, 4], [0, 2, 3, 4, 4, 4])]
    for chosen, missed in cases:
        for actual in [run(chosen, missed, "reference"), *everywhere(lambda c=chosen, m=missed: run(c, m)).values()]:
            torch.testing.assert_close(actual, expected, **TOLERANCES[torch.float32])
    oldest = run([-(2**31), 0, 0], [])
    torch.testing.assert_close(oldest, run([0, 0, 0], [], "reference"), **TOLERANCES[torch.float32])
