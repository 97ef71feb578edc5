"""Several deltas as one, and how far two agree, against dictionaries of (tensor, position) -> value."""

import copy
from dataclasses import replace

import pytest
import torch
from deltatests import Model, assert_same_model, changed, pairs, random_tensor, tensors_of, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from selective_peft import DeltaError, SparseDelta, agreement, compose
from selective_peft.composing import as_json

SHARES = st.sampled_from([0.0, 0.1, 0.6, 1.0])


def cells(delta):
    """(tensor, position) -> bits of the new value."""
    found = {}
    for name, change in delta.changes.items():
        size = torch.int32 if change.dtype == torch.float32 else torch.int16
        places = range(change.numel) if change.indices is None else change.indices.tolist()
        found |= {(name, i): bits for i, bits in zip(places, change.values.view(-1).view(size).tolist(), strict=True)}
    return found


def tuned_again(base, share, seed):
    return Model({name: changed(tensor, share, seed + i) for i, (name, tensor) in enumerate(tensors_of(base).items())})


@settings(max_examples=60, deadline=None)
@given(pairs(), SHARES, st.integers(0, 9), st.sampled_from([0.3, 1.0]))
def test_composed_deltas_are_the_union(pair, share, seed, whole_above):
    base, first = pair
    second = tuned_again(base, share, 1000 + seed)
    a = SparseDelta.from_models(base, first, whole_above=whole_above)
    b = SparseDelta.from_models(base, second, whole_above=whole_above)
    mine, theirs = cells(a), cells(b)
    conflicts = [key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]]
    found = agreement(a, b)["all"]
    expected = (len(mine), len(theirs), len(mine.keys() & theirs.keys()), len(conflicts))
    assert (found.first, found.second, found.shared, found.conflicts) == expected
    for how, wanted in (("last", {**mine, **theirs}), ("first", {**theirs, **mine})):
        both = compose([a, b], how)
        # Where one side is whole, what it does not change of the base is in it, too.
        assert {key: value for key, value in cells(both).items() if key in wanted} == wanted
        model = copy.deepcopy(base)
        both.apply_(model)
        for key, bits in wanted.items():
            assert cells(SparseDelta.from_models(base, model, whole_above=1.0)).get(key, bits) == bits
        both.revert_(model)
        assert_same_model(model, base)
    if conflicts:
        with pytest.raises(DeltaError, match=f"got {len(conflicts):,} of them in "):
            compose([a, b])
    else:
        assert cells(compose([a, b])) == cells(compose([a, b], "last"))


def test_three_parts_and_what_is_remembered(tmp_path):
    base = Model({"a": random_tensor((50,), torch.float32, 0), "b": random_tensor((50,), torch.bfloat16, 1)})
    parts = []
    for i in range(3):
        tuned = copy.deepcopy(base)
        with torch.no_grad():
            tuned.a[10 * i : 10 * i + 15] = float(i + 2)
        parts.append(SparseDelta.from_models(base, tuned, base_model="b"))
    both = compose(parts, "last")
    model = copy.deepcopy(base)
    both.apply_(model)
    assert model.a[:35].tolist() == [2.0] * 10 + [3.0] * 10 + [4.0] * 15
    assert (both.about.method, both.about.base_model) == ("compose", "b")
    assert [part["method"] for part in both.about.hyperparameters["parts"]] == ["diff"] * 3
    both.save(tmp_path)
    assert SparseDelta.load(tmp_path).about == both.about
    assert compose(parts[:1]).changes == parts[0].changes


def test_two_heads_drawn_differently_are_a_conflict_of_values_only():
    """Whole tensors replace what was there, so their bases need not agree."""
    _, tuned, optimizer = trained()
    a = SparseDelta.from_optimizer(optimizer, tuned)
    other = {name: change for name, change in a.changes.items() if change.is_whole}
    for name, change in other.items():
        other[name] = type(change).whole(change.values + 1, change.originals * 2)
    b = SparseDelta(other)
    found = agreement(a, b)
    assert found["all"].conflicts == found["all"].shared == 93
    assert compose([a, b], "last").changes["4.weight"] is other["4.weight"]
    assert compose([a, b], "first").changes["4.weight"] is a.changes["4.weight"]


def test_deltas_of_other_bases_are_refused():
    base = {"a": random_tensor((50,), torch.float32, 0)}
    other = {"a": base["a"] + 1}
    a = SparseDelta.from_models(base, {"a": changed(base["a"], 0.2, 1)})
    for b in (
        SparseDelta.from_models(other, {"a": changed(other["a"], 0.2, 1)}),
        SparseDelta.from_models({"a": base["a"].half()}, {"a": changed(base["a"].half(), 0.2, 1)}),
        SparseDelta.from_models({"a": base["a"].view(5, 10)}, {"a": changed(base["a"].view(5, 10), 0.2, 1)}),
    ):
        for action in (lambda b=b: compose([a, b], "last"), lambda b=b: agreement(a, b)):
            with pytest.raises(DeltaError, match="a: expected deltas of one base"):
                action()


def test_arguments():
    with pytest.raises(ValueError, match="deltas: expected at least one, got none"):
        compose([])
    with pytest.raises(ValueError, match=r"on_conflict: expected one of .* got 'sum'"):
        compose([SparseDelta({})], "sum")


def test_agreement_by_module():
    base, tuned, optimizer = trained()
    delta = SparseDelta.from_optimizer(optimizer, tuned)
    found = agreement(delta, SparseDelta.from_models(base, tuned))
    assert set(found) == {"all", "0", "2", "4"} or len(found) > 2
    assert found["all"].jaccard > 0.9
    total = sum(each.first for key, each in found.items() if key != "all")
    assert total == found["all"].first == as_json(found)["all"]["first"]


def test_agreement_with_a_module_called_all():
    delta = SparseDelta.from_models({"all.weight": torch.zeros(9)}, {"all.weight": torch.eye(3).view(9)})
    assert agreement(delta, delta)["all"].shared == 3


def test_the_configuration_is_that_of_the_head_that_is_in_it():
    """The labels of a head are in the configuration of its delta."""
    base = {"body": torch.zeros(9), "head": torch.zeros(2)}

    def delta(config, body=None, head=None):
        tuned = {"body": base["body"].clone(), "head": base["head"].clone()}
        if body is not None:
            tuned["body"][body] = 1.0
        if head is not None:
            tuned["head"] += head
        made = SparseDelta.from_models(base, tuned, whole_above=0.5)
        return SparseDelta(made.changes, replace(made.about, model_config=config))

    plain, ours, theirs = {"of": "body"}, {"labels": "rotten"}, {"labels": "no"}
    body, mine, other = delta(plain, 0), delta(ours, 1, 1.0), delta(theirs, 2, 2.0)
    assert compose([body, delta({"of": "none"}, 3)]).about.model_config == plain
    assert compose([body, mine]).about.model_config == ours
    assert compose([mine, body]).about.model_config == ours
    assert compose([mine, other], "last").about.model_config == theirs
    assert compose([mine, other], "first").about.model_config == ours
    two = SparseDelta({"second": mine.changes["head"]}, replace(mine.about, model_config=theirs))
    with pytest.warns(UserWarning, match="got them from deltas with different configurations"):
        assert compose([mine, two]).about.model_config is None
