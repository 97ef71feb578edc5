"""Single sparse updates in every situation at once: against plain PyTorch, under a flag, clipped on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tritontests import placed, shifted
from updatestories import KINDS

from selective_kernels import AdamGroup, Ages, SgdGroup, SparseIndex, Table, Update, adam_, sgd_
from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Entries of each tensor, of how many scalars, in which dtype. A piece of work is 1024 entries: three of them with a
# rest, three that are full, one with one entry more; none at both ends and between; scalars without any entry.
TENSORS = [
    (0, 0, BF16),
    (2700, 3001, BF16),
    (0, 0, F32),
    (77, 77, F16),
    (1, 1, F32),
    (0, 40, F16),
    (3072, 4000, F32),
    (1025, 1025, F16),
    (300, 500, F32),
    (5, 9, BF16),
    (0, 3, F32),
]
WITHOUT_GRAD = {2, 8, 9}  # its parameters, state and master copies keep every bit
GROUP_OF = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
RATES = [1e-2, 3e-3, 0.0]
STEPS = [1, 3, 1, 1, 40, 7, 1000, 1, 5, 2, 9]
NOW = 12
MISSED = {1: [0, 3, 4, 11], 3: list(range(12)), 6: [5], 7: []}


# By name, the groups of a call: of one kind, and kinds mixed. Both decays, large: what comes first makes a difference.
GROUPS = {name: [kind.group(lr) for lr in RATES] for name, kind in KINDS.items()}
GROUPS["both_decays"] = [AdamGroup(lr, 0.9, 0.999, 1e-8, decay=50.0, l2=2.0) for lr in RATES]
GROUPS["mixed_adam"] = [
    AdamGroup(1e-2, 0.9, 0.999, 1e-8, decay=0.1),
    AdamGroup(3e-3, 0.0, 0.5, 1e-2),
    AdamGroup(0.0, 0.8, 0.9999, 1e-6, l2=0.1),
]
GROUPS["mixed_sgd"] = [SgdGroup(1e-2), SgdGroup(3e-3, 0.9, 0.5, 0.1), SgdGroup(0.0, 0.8, nesterov=True)]
GROUPS["some_momentum"] = [SgdGroup(1e-2, 0.9, nesterov=True), SgdGroup(3e-3), SgdGroup(0.0)]


class Situation:
    """Parameters behind odd addresses, entries with the first and the last scalar, and state, all on one device."""

    def __init__(self, device: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        lists = []
        for count, numel, _ in TENSORS:
            picked = rng.choice(numel, count, replace=False)
            if count > 1:
                picked[np.argmin(picked)], picked[np.argmax(picked)] = 0, numel - 1
            lists.append(torch.from_numpy(np.sort(picked)))
        index = SparseIndex.from_lists(lists)

        def normal(count: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(count, np.float32))

        params = [normal(numel).to(dtype) for _, numel, dtype in TENSORS]
        master = torch.cat([param[each].float() for param, each in zip(params, lists, strict=True)])
        master *= 1.0 + 2.0**-13  # rounds to the parameter in both 16-bit types, mostly
        master[::7] += 1.0  # somebody wrote to these parameters (C6)
        state = normal(index.count), normal(index.count).square(), master
        grads = normal(index.count) * torch.exp2(torch.from_numpy(rng.integers(-30, 4, index.count)))
        grads[::11] = 0.0
        chosen = torch.from_numpy(rng.integers(0, NOW + 1, index.count)).int()
        self.lists = lists
        self.params = [shifted(param, device) for param in params]
        self.index = placed(index, device)
        self.first, self.second, self.master = (each.to(device) for each in state)
        self.grads, self.chosen = grads.float().to(device), chosen.to(device)

    def update(self, name, per_entry, backend, clip, skip):
        tensors = [i for i in range(len(TENSORS)) if i not in WITHOUT_GRAD]
        ages = Ages(self.chosen, MISSED, NOW) if per_entry else None
        update = Update(
            Table(self.params), self.index, tensors, self.grads, self.master, GROUP_OF, STEPS, ages, clip, skip
        )
        groups = GROUPS[name]
        if isinstance(groups[0], AdamGroup):
            adam_(update, self.first, self.second, groups, backend=backend)
        else:
            buffer = self.first if any(group.momentum for group in groups) else None
            sgd_(update, buffer, groups, backend=backend)
        return self.arrays()

    def arrays(self):
        return [*self.params, self.first, self.second, self.master]


def scalar(value, dtype, device):
    return torch.tensor(value, dtype=dtype, device=device)


@pytest.mark.parametrize("per_entry", [False, True], ids=["global", "per_entry"])
@pytest.mark.parametrize("name", GROUPS)
def test_c6_c7_one_update(on_every_backend, name, per_entry):
    """C6: as in PyTorch, to rounding, for all dtypes, groups, counts and ages in one call. C7: the rest keeps every
    bit. A float and a number on the device clip alike, and a flag that is not raised changes no bit."""

    def run(backend, device):
        plain = Situation(device).update(name, per_entry, backend, 0.3, None)
        clip, skip = scalar(0.3, torch.float32, device), scalar([0], torch.int32, device)
        return plain, Situation(device).update(name, per_entry, backend, clip, skip)

    start = Situation("cpu")
    results = on_every_backend(run)
    expected = results["reference"][0]
    for path, (plain, deferred) in results.items():
        for i, (actual, other) in enumerate(zip(plain, deferred, strict=True)):
            assert_bitwise_equal(actual, other, f"array {i}, {path}")
        for i, (actual, wanted, before) in enumerate(zip(plain, expected, start.arrays(), strict=True)):
            torch.testing.assert_close(actual.float(), wanted.float(), **TOLERANCES[actual.dtype])
            frozen = torch.ones(len(actual), dtype=torch.bool)
            if i < len(TENSORS):
                frozen[[] if i in WITHOUT_GRAD else start.lists[i]] = False
            else:  # per-entry arrays: the entries of tensors without gradient; master copies of float32, too
                owners = start.index.tensor_ids()
                updated = [
                    t not in WITHOUT_GRAD and (i < len(TENSORS) + 2 or d is not F32)
                    for t, (_, _, d) in enumerate(TENSORS)
                ]
                frozen = ~torch.tensor(updated)[owners]
            assert_bitwise_equal(actual[frozen], before[frozen], f"array {i}, frozen, {path}")
    changed = [not torch.equal(a, b) for a, b in zip(expected[: len(TENSORS)], start.params, strict=True)]
    assert changed == [i in (1, 3, 4, 6, 7) for i in range(len(TENSORS))]  # so that the comparison means something


@pytest.mark.parametrize("per_entry", [False, True], ids=["global", "per_entry"])
@pytest.mark.parametrize("name", ["adamw", "momentum", "sgd"])
def test_c9_a_raised_flag_changes_nothing(on_every_backend, name, per_entry):
    """C9: not a bit, whatever the gradients and the clip; any number but zero is raised."""
    start = Situation("cpu").arrays()

    def run(backend, device):
        results = []
        for raised in (1, -(2**31)):
            situation = Situation(device)
            situation.grads[::5], situation.grads[1::5] = float("nan"), float("inf")
            clip = scalar(float("nan"), torch.float32, device)
            results.append(situation.update(name, per_entry, backend, clip, scalar([raised], torch.int32, device)))
        return results

    for path, results in on_every_backend(run).items():
        for arrays in results:
            for i, (actual, before) in enumerate(zip(arrays, start, strict=True)):
                assert_bitwise_equal(actual, before, f"array {i}, {path}")
