"""Sparse deltas: apply gives the tuned model's bits, apply and revert the base's, and what does not fit is refused."""

import copy
import warnings

import pytest
import torch
from deltatests import DTYPES, Model, assert_same_model, changed, fish_scores, pairs, random_tensor, tensors_of, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from selective_peft import DeltaError, SelectiveAdamW, SparseDelta
from torch import nn

from selective_kernels.testing import assert_bitwise_equal

BUDGETED = {
    "id3": {}, "d3-static": {}, "gradient": {}, "snip": {}, "pafi": {}, "pafi-increment": {},
    "random": {"method_kwargs": {"seed": 3}}, "diff": {"method_kwargs": {"warmup_steps": 2}, "steps": 6},
    "fish": {"method_kwargs": {"scores": fish_scores()}},
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(pairs(), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_round_trip_of_any_pair_of_models(tmp_path_factory, pair, compact, whole_above):
    base, tuned = pair
    delta = SparseDelta.from_models(base, tuned, whole_above=whole_above)
    folder = tmp_path_factory.mktemp("delta")
    delta.save(folder, compact=compact)
    loaded = SparseDelta.load(folder)
    assert loaded.summary() == delta.summary()
    model = copy.deepcopy(base)
    loaded.apply_(model)
    assert_same_model(model, tuned)
    loaded.revert_(model)
    assert_same_model(model, base)


@pytest.mark.parametrize("method", [*BUDGETED, "bitfit", "full"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_an_optimizer_changed(method, dtype, tmp_path):
    if method == "diff" and dtype == torch.float16:
        return  # its warm-up refuses float16: test_methods_refused
    options = dict(BUDGETED.get(method, {"budget": None, "head": method != "full"}))
    base, tuned, optimizer = trained(dtype, method=method, **options)
    delta = SparseDelta.from_optimizer(optimizer, tuned, base_model="someone/base")
    assert delta.about.method == method
    assert delta.fingerprint == SparseDelta.from_models(base, tuned, whole_above=1.0).fingerprint or method == "pafi"
    whole = {name for name, change in delta.changes.items() if change.is_whole}
    assert whole == {"4.weight", "4.bias"} if method != "full" else len(whole) == 4
    assert sum(c.scalars for c in delta.changes.values() if not c.is_whole) == optimizer.num_selected
    delta.save(tmp_path / "delta", compact=True)
    loaded = SparseDelta.load(tmp_path / "delta")
    assert loaded.about.hyperparameters["lr"] == 0.01
    model = copy.deepcopy(base)
    loaded.apply_(model)
    assert_same_model(model, tuned)
    loaded.revert_(model)
    assert_same_model(model, base)


def test_a_resumed_run_gives_the_delta_to_the_first_base():
    base, tuned, optimizer = trained(steps=3, budget=300, total_steps=6)
    resumed = copy.deepcopy(tuned)
    groups = [{"params": list(resumed[:4].parameters())}, {"params": list(resumed[4].parameters()), "selective": False}]
    again = SelectiveAdamW(groups, lr=1e-2, budget=300, total_steps=6)
    again.load_state_dict(optimizer.state_dict())
    for step in range(3, 6):
        torch.manual_seed(step)
        resumed(torch.randn(16, 40)).square().mean().backward()
        again.step()
        again.zero_grad()
    model = copy.deepcopy(base)
    SparseDelta.from_optimizer(again, resumed).apply_(model)
    assert_same_model(model, resumed)


def test_an_earlier_model_of_the_run():
    """`load_best_model_at_end`: the optimizer has selected more since; the delta is that of the weights."""
    base, tuned, optimizer = trained(steps=2, budget=300, total_steps=6)
    best = copy.deepcopy(tuned)
    for step in range(2, 5):
        torch.manual_seed(step)
        tuned(torch.randn(16, 40)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for param, value in zip(tuned.parameters(), best.parameters(), strict=True):
            param.copy_(value)
    model = copy.deepcopy(base)
    SparseDelta.from_optimizer(optimizer, tuned).apply_(model)
    assert_same_model(model, best)


def test_wrapped_and_compiled_models_have_the_bare_ones_names():
    base, tuned, optimizer = trained()
    compiled = torch.compile(tuned, backend="eager")
    delta = SparseDelta.from_optimizer(optimizer, compiled)
    assert list(delta.changes) == list(SparseDelta.from_optimizer(optimizer, tuned).changes)
    target = nn.DataParallel(copy.deepcopy(base))
    delta.apply_(target)
    assert_same_model(target.module, tuned)


def test_tied_parameters_and_state_dicts():
    """One name for both; a state dict that lists them twice is no other model."""
    base = Model({"embed": random_tensor((20, 4), torch.float32, 0), "out": random_tensor((3,), torch.float32, 1)})
    base.head = base.embed
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.embed[3, 1] = 7.0
    for delta in (
        SparseDelta.from_models(base, tuned),
        SparseDelta.from_models(base.state_dict(), tuned.state_dict()),
        SparseDelta.from_models({k: v.clone() for k, v in base.state_dict().items()}, tuned.state_dict()),
    ):
        assert list(delta.changes) == ["embed"]
        assert delta.changes["embed"].tied in (("head",), None)
        model = copy.deepcopy(base)
        delta.apply_(model)
        assert_same_model(model, tuned)


def test_buffers_are_compared_and_running_statistics_warned_of():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    tuned = copy.deepcopy(base)
    optimizer = SelectiveAdamW(tuned.named_parameters(), lr=0.1, budget=5, total_steps=1)
    tuned(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="running statistics of 1 "):
        delta = SparseDelta.from_optimizer(optimizer, tuned)
    assert "1.running_mean" not in delta.changes
    delta = SparseDelta.from_models(base, tuned)
    assert "1.num_batches_tracked" not in delta.changes
    assert {"1.running_mean", "1.running_var"} <= set(delta.changes)
    model = copy.deepcopy(base)
    delta.apply_(model)
    assert torch.equal(model[1].running_var, tuned[1].running_var)


# ---------------------------------------------------------------------- what is refused, with nothing changed


def refused(action, model, message):
    before = tensors_of(model)
    with pytest.raises(DeltaError, match=message):
        action(model)
    for name, tensor in tensors_of(model).items():
        assert_bitwise_equal(tensor, before[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_base_is_refused(dtype):
    base, tuned, optimizer = trained(dtype)
    delta = SparseDelta.from_optimizer(optimizer, tuned)
    for name, change in delta.changes.items():  # another value anywhere in a tensor that is changed in part
        model = copy.deepcopy(base)
        flat = dict(model.named_parameters())[name].detach().view(-1)
        flat[len(flat) // 2] += 1
        if change.is_whole:
            delta.apply_(model)
        else:
            refused(delta.apply_, model, f"{name}: expected the base that the delta was made for")
            delta.apply_(model, check=False)
    refused(delta.apply_, tuned, "it is applied already")
    refused(delta.revert_, base, "it is not applied")
    applied = copy.deepcopy(tuned)
    name, change = next((n, c) for n, c in delta.changes.items() if not c.is_whole and c.scalars < c.numel)
    free = next(i for i in range(change.numel) if i not in set(change.indices.tolist()))
    dict(applied.named_parameters())[name].detach().view(-1)[free] += 1
    refused(delta.revert_, applied, f"{name}: expected the base besides the delta's values")


def test_a_model_of_another_form_is_refused():
    base, tuned, optimizer = trained()
    delta = SparseDelta.from_optimizer(optimizer, tuned)
    refused(delta.apply_, copy.deepcopy(base[:3]), r"model: expected a tensor '4\.weight', it has none")
    refused(delta.apply_, copy.deepcopy(base).bfloat16(), r"expected torch\.float32 .* got torch\.bfloat16")
    wider = copy.deepcopy(base)
    wider[0] = nn.Linear(41, 50)
    refused(delta.apply_, wider, r"0\.weight: expected torch\.float32 \[50, 40\] as in the delta, got")
    strided = copy.deepcopy(base)
    strided[0].weight.data = strided[0].weight.detach().t().contiguous().t()
    refused(delta.apply_, strided, "expected a contiguous tensor")


def test_undoing_needs_the_originals(tmp_path):
    base, tuned, optimizer = trained()
    SparseDelta.from_optimizer(optimizer, tuned).save(tmp_path, originals=False)
    delta = SparseDelta.load(tmp_path)
    assert not delta.has_originals
    model = copy.deepcopy(base)
    delta.apply_(model)  # the fingerprint is there
    assert_same_model(model, tuned)
    refused(delta.revert_, model, "they were not kept")
    with pytest.raises(DeltaError, match="with their originals"):
        delta.updates()


def test_a_model_may_have_moved_since_the_last_step():
    """As if that had been on another device: `model.cpu()` before the delta is taken."""
    base, tuned, optimizer = trained()
    optimizer._table.devices = [torch.device("meta")] * len(optimizer._table)
    model = copy.deepcopy(base)
    SparseDelta.from_optimizer(optimizer, tuned).apply_(model)
    assert_same_model(model, tuned)


def test_optimizers_without_a_delta():
    model = nn.Linear(4, 4)
    fresh = SelectiveAdamW(model.named_parameters(), budget=3, total_steps=4)
    with pytest.raises(ValueError, match="expected one that has made a step"):
        SparseDelta.from_optimizer(fresh, model)
    with pytest.raises(ValueError, match="expected a selective optimizer, got SGD"):
        SparseDelta.from_optimizer(torch.optim.SGD(model.parameters()), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, tuned, repeats = trained(method="d3-repeat")
    with pytest.raises(ValueError, match=r"use SparseDelta\.from_models"):
        SparseDelta.from_optimizer(repeats, tuned)
    _, tuned, warming = trained(method="diff", method_kwargs={"warmup_steps": 5}, steps=3)
    with pytest.raises(ValueError, match="past its 5 warm-up steps, got one after 3"):
        SparseDelta.from_optimizer(warming, tuned)
    _, tuned, optimizer = trained()
    with pytest.raises(ValueError, match="model: expected all parameters of the optimizer"):
        SparseDelta.from_optimizer(optimizer, tuned[:2])


def test_models_that_cannot_be_compared():
    base = {"a": random_tensor((4, 4), torch.float32, 0), "b": torch.arange(4)}
    with pytest.raises(DeltaError, match="expected all tensors of the base, a is missing"):
        SparseDelta.from_models(base, {"b": base["b"]})
    with pytest.raises(DeltaError, match=r"a: tuned: expected torch\.float32"):
        SparseDelta.from_models(base, {**base, "a": base["a"].half()})
    with pytest.raises(DeltaError, match="b: tuned: expected equal tensors unless they are float32"):
        SparseDelta.from_models(base, {**base, "b": base["b"] + 1})
    for value in (float("nan"), float("inf")):
        spoilt = base["a"].clone()
        spoilt[1, 1] = value
        with pytest.raises(DeltaError, match="a: values: expected finite values, got inf or NaN in 1"):
            SparseDelta.from_models(base, {**base, "a": spoilt})
    with pytest.raises(ValueError, match="whole_above: expected a share"):
        SparseDelta.from_models(base, base, whole_above=2.0)
    assert not SparseDelta.from_models(base, base).changes


def test_new_tensors_and_shares(tmp_path):
    base = {"a": random_tensor((100,), torch.bfloat16, 0)}
    tuned = {"a": changed(base["a"], 0.3, 5), "head": random_tensor((2, 3), torch.float32, 1)}
    delta = SparseDelta.from_models(base, tuned, base_model="x", base_revision="main")
    assert delta.changes["head"].is_new
    assert not delta.changes["a"].is_whole
    assert SparseDelta.from_models(base, tuned, whole_above=0.01).changes["a"].is_whole
    delta.save(tmp_path)
    assert SparseDelta.load(tmp_path).changes["head"].is_new
    found = delta.summary()
    assert (found["whole"], found["of"], found["base_model"], found["base_revision"]) == ({"head": 6}, 100, "x", "main")
    assert found["bytes"] == delta.nbytes == delta.changes["a"].scalars * 8 + 24


def test_updates_of_a_delta_are_those_of_the_run():
    from selective_peft.updates import Updates

    _, tuned, optimizer = trained()
    ours, theirs = SparseDelta.from_optimizer(optimizer, tuned).updates(), Updates.from_optimizer(optimizer)
    assert torch.equal(ours.after, theirs.after)
    assert torch.equal(ours.before, theirs.before)
    assert torch.equal(ours.offsets, theirs.offsets)


def test_tensors_of_state_dicts_that_share_memory():
    """Tied in the tuned model only, or one memory read in two orders: each has its change."""
    embed, head = torch.randn(5, 3), torch.randn(5, 3)
    new = embed + 1
    changes = SparseDelta.from_models({"embed": embed, "head": head}, {"embed": new, "head": new}).changes
    assert torch.equal(changes["head"].values, new)
    changes = SparseDelta.from_models({"embed": embed, "head": embed.clone()}, {"embed": new, "head": new}).changes
    assert list(changes) == ["embed"]  # tied in both, though they were read one by one
    square = torch.randn(4, 4)
    first, second = square.clone(), square.t().clone()
    first[0, 1], second[2, 3] = 7, 9
    changes = SparseDelta.from_models({"a": square, "b": square.t()}, {"a": first, "b": second}).changes
    assert [change.indices.tolist() for change in changes.values()] == [[1], [11]]


def test_a_name_that_is_no_unicode(tmp_path):
    """A folder's name may be any bytes."""
    folder = tmp_path / "mod\udcffel"
    folder.mkdir()
    model = nn.Linear(2, 2)
    model.config = type("Config", (), {"_name_or_path": str(folder), "to_json_string": lambda self: "{}"})()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.weight[0, 0] += 1
    SparseDelta.from_models(model, tuned).save(tmp_path / "delta")
    assert SparseDelta.load(tmp_path / "delta").about.base_model == "mod?el"
