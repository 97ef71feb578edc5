"""The paper's analyses against dense masks, plain loops and scipy."""

import math

import pytest
import torch
from densemasks import run
from scipy import stats
from selective_peft import analysis
from selective_peft.analysis import Overlap, Updates

from selective_kernels.testing import assert_bitwise_equal


def record(tensors, chosen=True, steps=0):
    """From name -> (size, {offset: (step, before, after)})."""
    entries = [(offset, *entry) for _, content in tensors.values() for offset, entry in sorted(content.items())]
    starts = [0]
    for _, content in tensors.values():
        starts.append(starts[-1] + len(content))
    columns = [list(column) for column in zip(*entries, strict=True)] if entries else [[]] * 4
    return Updates(
        names=tuple(tensors),
        sizes=tuple(size for size, _ in tensors.values()),
        starts=tuple(starts),
        offsets=torch.tensor(columns[0], dtype=torch.int64),
        before=torch.tensor(columns[2], dtype=torch.float32),
        after=torch.tensor(columns[3], dtype=torch.float32),
        chosen=torch.tensor(columns[1], dtype=torch.int32) if chosen else None,
        steps=steps if chosen else 0,
    )


def selections(**offsets):
    """Tensors of 10 scalars with these offsets, all selected in step 0 and moved from 0 to 1."""
    return record({name: (10, dict.fromkeys(given, (0, 0.0, 1.0))) for name, given in offsets.items()}, steps=1)


HAND = record(
    {
        "m.0.a.weight": (4, {0: (0, 1.0, 1.5), 3: (2, 0.0, -1.0)}),
        "m.1.a.weight": (8, {5: (1, 2.0, 2.0)}),
        "m.1.b.weight": (2, {}),
        "head.weight": (2, {0: (2, 0.0, 0.25), 1: (2, 0.0, 0.75)}),
    },
    steps=4,
)


def test_sparsity_by_hand():
    assert analysis.tensor_sparsity(HAND).tolist() == [0.75, 0.5, 0.25, 0.25]


def test_entropy_by_hand():
    q = [[1.0], [2 / 3, 1 / 3], [4 / 13, 1 / 13, 8 / 13]]  # of 1/4; 1/4, 1/8; 1/2, 1/8, 1
    expected = [-sum(each * math.log(each) for each in row) for row in [*q, q[-1]]]
    assert analysis.selection_entropy(HAND).tolist() == pytest.approx(expected, abs=1e-15)


def test_entropy_is_between_one_tensor_and_all_alike():
    assert analysis.selection_entropy(selections(a=[1, 2], b=[])).tolist() == [0.0]
    whole = record({"a": (1, {0: (0, 0.0, 1.0)}), "b": (3, dict.fromkeys(range(3), (0, 0.0, 1.0)))}, steps=1)
    assert analysis.selection_entropy(whole).tolist() == pytest.approx([math.log(2)])


def test_nothing_selected():
    empty = record({"a": (3, {}), "m.0.b": (2, {})}, steps=2)
    assert analysis.tensor_sparsity(empty).tolist() == [1.0, 1.0]
    entropy = analysis.selection_entropy(empty)
    assert_bitwise_equal(entropy, torch.zeros(2, dtype=torch.float64), "entropy")  # 0, not -0
    assert analysis.budget_by_place(empty) == {"a": {"": 0}, "m.*": {"0": 0}}
    assert analysis.mean_update_by_module(empty) == {}
    assert analysis.update_correlation(empty, empty) == 0.0
    assert analysis.overlap(empty, empty) == Overlap(0, 0, 0)
    assert analysis.overlap(empty, empty).jaccard == 0.0


def test_before_any_step():
    fresh = record({"a": (3, {})}, steps=0)
    assert analysis.tensor_sparsity(fresh).shape == (0,)
    assert analysis.selection_entropy(fresh).shape == (0,)


def test_run_without_steps_has_its_end():
    ends = record({"a": (4, {1: (0, 0.0, 1.0)}), "b": (4, {0: (0, 0.0, 1.0)}), "c": (4, {})}, chosen=False)
    assert analysis.tensor_sparsity(ends).tolist() == pytest.approx([1 / 3])
    assert analysis.selection_entropy(ends).tolist() == pytest.approx([math.log(2)])


def measured_densely(history):
    """Sparsity and entropy after each step from dense masks, in plain Python."""
    sparsity, entropy = [], []
    for masks in history:
        shares = [int(mask.sum()) / len(mask) for mask in masks if len(mask)]
        sparsity.append(sum(share == 0 for share in shares) / len(shares))
        q = [share / sum(shares) for share in shares if share]
        entropy.append(-sum(each * math.log(each) for each in q))
    return sparsity, entropy


@pytest.mark.parametrize("block", [1, 3, 1024])
@pytest.mark.parametrize("strategy", ["increment", "static"])
def test_steps_equal_dense_masks(strategy, block, monkeypatch):
    monkeypatch.setattr(analysis, "BLOCK", block)
    opt, _, _, history = run(strategy=strategy, steps=12)
    updates = Updates.from_optimizer(opt)
    sparsity, entropy = measured_densely(history)
    assert len(set(entropy)) > 5 or strategy == "static"
    assert analysis.tensor_sparsity(updates).tolist() == pytest.approx(sparsity, abs=1e-15)
    assert analysis.selection_entropy(updates).tolist() == pytest.approx(entropy, abs=1e-13)


def test_budget_by_hand():
    assert analysis.budget_by_place(HAND) == {"a": {"0": 2, "1": 1}, "b": {"1": 0}, "head": {"": 2}}


def test_mean_updates_by_hand():
    assert analysis.mean_update_by_module(HAND) == {"a": 0.5, "head": 0.5}
    assert analysis.mean_update_by_layer(HAND) == {"0": 0.75, "1": 0.0, "": 0.5}
    assert analysis.mean_update_by_place(HAND) == {("a", "0"): 0.75, ("a", "1"): 0.0, ("head", ""): 0.5}


def test_mean_updates_equal_dense_tensors(dtype):
    opt, params, first, history = run(dtype)
    expected = {}
    for i, (param, old, mask) in enumerate(zip(params, first, history[-1], strict=True)):
        if mask.any():
            moved = (param.detach().double() - old.double()).abs().reshape(-1)
            expected[str(i)] = float(moved[mask].mean())
    found = analysis.mean_update_by_layer(Updates.from_optimizer(opt))
    assert len(found) > 3
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("values", [3, 40, 10**9])
@pytest.mark.parametrize("n", [2, 3, 500])
def test_spearman_is_that_of_scipy(n, values):
    """Few values: nearly all are ties."""
    generator = torch.Generator().manual_seed(n + values)
    x = torch.randint(0, values, (n,), generator=generator).double()
    y = torch.randint(0, values, (n,), generator=generator).double() + x
    x[0], y[0] = -1, -1  # never constant
    assert analysis.spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-12)


def test_spearman_where_it_does_not_exist():
    some = torch.tensor([0.1, 0.1, 0.3])
    assert analysis.spearman(some, torch.full((3,), 0.1)) == 0.0
    assert analysis.spearman(torch.full((3,), 0.1), some) == 0.0
    assert analysis.spearman(some[:1], some[:1]) == 0.0
    assert analysis.spearman(some[:0], some[:0]) == 0.0


def test_spearman_of_one_order_is_exactly_one():
    x = torch.rand(1001, generator=torch.Generator().manual_seed(0))
    assert analysis.spearman(x, x.exp()) == 1.0
    assert analysis.spearman(x, -x) == -1.0


def test_correlation_looks_at_shared_entries_only():
    a = record(
        {"x": (9, {1: (0, 0.0, 1.0), 2: (0, 5.0, 7.0), 8: (0, 0.0, -9.0)}), "y": (3, {0: (0, 0.0, 3.0)})}, steps=1
    )
    b = record(
        {
            "y": (3, {0: (0, 0.0, 2.0), 1: (0, 0.0, 9.0)}),
            "x": (9, {0: (0, 0.0, 8.0), 1: (0, 0.0, -1.0), 2: (0, 1.0, 4.0)}),
            "z": (1, {}),
        },
        chosen=False,
    )
    x, y = analysis.shared_updates(a, b)
    assert x.tolist() == [1.0, 2.0, 3.0]
    assert y.tolist() == [-1.0, 3.0, 2.0]
    assert analysis.update_correlation(a, b) == pytest.approx(0.5)
    assert analysis.update_correlation(b, a) == pytest.approx(0.5)


def test_correlation_of_two_runs_equals_dense_tensors():
    runs = [run(strategy=strategy, steps=12) for strategy in ("increment", "static")]
    both = torch.cat(runs[0][3][-1]) & torch.cat(runs[1][3][-1])
    first, *last = (
        torch.cat([param.detach().reshape(-1) for param in params]).double()[both]
        for params in (runs[0][2], runs[0][1], runs[1][1])
    )
    dense = torch.stack(last) - first
    a, b = (Updates.from_optimizer(each[0]) for each in runs)
    x, y = analysis.shared_updates(a, b)
    assert 5 < len(x) < 60
    assert_bitwise_equal(torch.stack([x, y]), dense, "shared updates")
    expected = float(stats.spearmanr(dense[0], dense[1]).statistic)
    assert analysis.update_correlation(a, b) == pytest.approx(expected, abs=1e-12)


def test_correlation_refuses_nan_and_other_models():
    good = record({"x": (3, {0: (0, 0.0, 1.0), 1: (0, 0.0, 2.0)})}, steps=1)
    bad = record({"x": (3, {0: (0, 0.0, math.nan), 2: (0, 0.0, math.inf)})}, steps=1)
    with pytest.raises(ValueError, match="b: expected finite updates, got inf or NaN in 1"):
        analysis.update_correlation(good, bad)
    with pytest.raises(ValueError, match="a: expected finite updates"):
        analysis.update_correlation(bad, good)
    other = record({"x": (4, {})}, steps=1)
    for compare in (analysis.update_correlation, analysis.overlap, analysis.overlap_by_module):
        with pytest.raises(ValueError, match="b: expected 3 scalars in 'x' as in a, got 4"):
            compare(good, other)


def test_overlap_by_hand():
    a = selections(**{"m.0.q.weight": [0, 1, 2], "m.1.q.weight": [9], "m.0.v.weight": [4]})
    b = selections(**{"m.0.v.weight": [3, 5], "m.0.q.weight": [2, 1, 7, 8], "head.weight": [0]})
    found = analysis.overlap(a, b)
    assert found == Overlap(first=5, second=7, shared=2)
    assert (found.union, found.jaccard, found.share_of_first, found.share_of_second) == (10, 0.2, 0.4, 2 / 7)
    assert analysis.overlap_by_module(a, b) == {"q": Overlap(4, 4, 2), "v": Overlap(1, 2, 0), "head": Overlap(0, 1, 0)}
    assert analysis.overlap(a, a) == Overlap(5, 5, 5)
    assert analysis.overlap(a, a).jaccard == 1.0


def test_overlap_equals_dense_masks():
    runs = [run(strategy=strategy, steps=12) for strategy in ("increment", "static")]
    masks = [torch.cat(each[3][-1]) for each in runs]
    a, b = (Updates.from_optimizer(each[0]) for each in runs)
    expected = Overlap(int(masks[0].sum()), int(masks[1].sum()), int((masks[0] & masks[1]).sum()))
    assert 0 < expected.shared < expected.first
    assert analysis.overlap(a, b) == expected
    assert analysis.overlap(a, b).union == int((masks[0] | masks[1]).sum())
