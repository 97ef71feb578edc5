"""Sparse updates (C6, C7) against torch's dense optimizers with masked gradients, restricted to the selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tritontests import INTERPRETED, placed
from updatestories import KINDS, Selective, Story, oracle

from selective_kernels import AdamGroup, Ages, SgdGroup, SparseIndex, Table, Update, adam_, sgd_, square_sum
from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# A story takes the interpreter a second: each optimizer once, dtypes and corrections in turn. On a GPU, all of them.
INTERPRETED_STORIES = {
    ("adamw", torch.bfloat16, True),
    ("adamw", torch.float32, False),
    ("adam_l2", torch.float16, False),
    ("adam_without_momentum", torch.float32, True),
    ("sgd", torch.float16, False),
    ("sgd_decay", torch.bfloat16, False),
    ("momentum", torch.bfloat16, True),
    ("dampening", torch.float32, False),
    ("nesterov", torch.float16, True),
}


@pytest.mark.parametrize("per_entry", [False, True], ids=["global", "per_entry"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwritten"])
def test_c6_c7_equals_dense_restricted(on_every_backend, name, dtype, per_entry, overwrite):
    """C6: torch's result on the selected entries, to rounding; the master copy of a parameter that somebody wrote to
    follows it. C7: the others keep every bit. All instruction sets and thread counts give the same bits, and kernels
    for GPUs, too, unless step sizes come by age."""
    story = Story(dtype, overwrite=overwrite)
    expected, masks = oracle(KINDS[name], story, per_entry)
    on_triton = not INTERPRETED or (overwrite and (name, dtype, per_entry) in INTERPRETED_STORIES)
    results = on_every_backend(lambda *on: Selective(KINDS[name], per_entry, *on).run(story), on_triton)
    first = next(iter(results.values()))
    for path, result in results.items():
        if path == "reference" or (path == "triton" and per_entry):
            continue
        if path == "cuda" and per_entry and name.startswith("adam"):
            continue
        for actual, other in zip(result.arrays(), first.arrays(), strict=True):
            assert_bitwise_equal(actual, other, path)
    for result in results.values():
        for i, (actual, dense_result, mask) in enumerate(zip(result.params, expected, masks, strict=True)):
            assert_bitwise_equal(actual[~mask], dense_result.to(dtype)[~mask], "frozen entries")
            rounded = dense_result.to(dtype)[mask].float()
            torch.testing.assert_close(actual[mask].float(), rounded, **TOLERANCES[dtype])
            if dtype is not torch.float32:
                master = result.master[result.index.starts[i] : result.index.starts[i + 1]]
                torch.testing.assert_close(master, dense_result[mask], **TOLERANCES[torch.float32])
                assert_bitwise_equal(actual[mask], master.to(dtype), "rounded master copy")


def test_c6_master_keeps_updates_that_rounding_would_lose(on_every_backend):
    """C6: a thousand updates of a hundredth of bfloat16's spacing move the parameter as far as float32's."""

    def run(backend, device):
        hundreds = 1 if INTERPRETED and backend == "triton" else 10
        param, master = torch.ones(300, dtype=torch.bfloat16, device=device), torch.ones(300, device=device)
        index = placed(SparseIndex.from_lists([torch.arange(300)]), device)
        adds = torch.full((300,), -(2.0**-7) / 100, device=device)
        for _ in range(100 * hundreds):
            sgd_(Update(Table([param]), index, [0], adds, master, [0], [1]), None, [SgdGroup(1.0)], backend=backend)
        return param, hundreds

    for param, hundreds in on_every_backend(run).values():
        assert param.float().tolist() == [1.0 + hundreds * 2.0**-7] * 300


@pytest.mark.parametrize("beta2", [0.999, 0.9999])  # the second one's correction changes for 276,000 steps
def test_c6_old_entries_have_no_correction(on_every_backend, beta2):
    """C6: after a million steps per-entry and global correction agree bit for bit, in a table that has an end."""

    def run(backend, device):
        grads = torch.linspace(-1.0, 1.0, 700).to(device)
        index = placed(SparseIndex.from_lists([torch.arange(700)]), device)
        results = []
        for ages in (None, Ages(torch.zeros(700, dtype=torch.int32, device=device), {}, 10**6 - 1)):
            param, first, second = (torch.full((700,), value, device=device) for value in (1.0, 0.1, 0.2))
            update = Update(Table([param]), index, [0], grads, None, [0], [10**6], ages)
            adam_(update, first, second, [AdamGroup(1e-3, 0.9, beta2, 1e-8)], backend=backend)
            results.append(param)
        return results

    for by_step, by_age in on_every_backend(run).values():
        assert_bitwise_equal(by_age, by_step)
        assert not bool((by_step == 1.0).any())


def test_c9_square_sum_is_the_same_everywhere(on_every_backend):
    """C9: float64 over blocks of 4096 entries of a tensor in index order, then over blocks; only the tensors asked."""
    rng = np.random.default_rng(0)
    counts = [4096 * 3 + 5, 0, 700, 4096]
    index = SparseIndex.from_lists([torch.arange(0, 2 * count, 2) for count in counts])
    grads = torch.from_numpy(rng.standard_normal(index.count) * np.exp(rng.uniform(-20, 20, index.count)))
    grads = grads.float()
    for tensors in ([0, 1, 2, 3], [0, 3], [1], []):
        values = [grads[index.starts[i] : index.starts[i + 1]].double().numpy() ** 2 for i in tensors]
        blocks = [each[j : j + 4096].cumsum()[-1] for each in values for j in range(0, len(each), 4096)]
        expected = float(np.cumsum([0.0, *blocks])[-1])  # cumsum adds in order

        def run(backend, device, tensors=tensors):
            table = Table([torch.zeros(2 * count, device=device) for count in counts])
            return square_sum(table, placed(index, device), tensors, grads.to(device), backend=backend)

        for path, found in on_every_backend(run).items():
            assert (found.dtype, found.shape) == (torch.float64, ())
            # The others add within a block in an order of their own.
            tolerance = 1e-12 if path in ("triton", "cuda", "reference") else 0.0
            assert float(found) == pytest.approx(expected, rel=tolerance, abs=0.0), path


def test_c6_ages_out_of_range_are_clamped(on_every_backend):
    """An entry from the future would read the tables of corrections before their begin; it counts as new."""

    def run(chosen, missed, backend, device):
        param, index = torch.ones(3, device=device), placed(SparseIndex.from_lists([[0, 1, 2]]), device)
        ages = Ages(torch.tensor(chosen, dtype=torch.int32, device=device), {0: missed}, 4)
        update = Update(Table([param]), index, [0], torch.full((3,), 0.5, device=device), None, [0], [1], ages)
        moments = [torch.zeros(3, device=device) for _ in range(2)]
        adam_(update, *moments, [AdamGroup(0.1, 0.9, 0.999, 1e-8)], backend=backend)
        return param

    newest, oldest = (run([age] * 3, [], "reference", "cpu") for age in (4, 0))
    cases = [
        ([5, 2**31 - 1, 100], [], newest),
        ([2, 3, 4], [0, 2, 3, 4, 4, 4], newest),
        ([-(2**31), 0, 0], [], oldest),
    ]
    for chosen, missed, expected in cases:
        for actual in on_every_backend(lambda *on, c=chosen, m=missed: run(c, m, *on)).values():
            torch.testing.assert_close(actual, expected, **TOLERANCES[torch.float32])
