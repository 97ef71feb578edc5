"""A live model changes its task in place, without a compilation or a new tensor."""

import copy

import pytest
import torch
from deltatests import DTYPES, assert_same_model, tensors_of, trained
from selective_peft import DeltaError, SparseDelta, swap_
from torch._dynamo.testing import CompileCounter

from selective_kernels.testing import assert_bitwise_equal


def tasks(dtype=torch.float32):
    """A base, two models tuned from it, and their deltas, of which some scalars are in both."""
    base, first, optimizer = trained(dtype)
    _, second, other = trained(dtype, budget=300, steps=4)
    return base, [first, second], [SparseDelta.from_optimizer(o, m) for o, m in ((optimizer, first), (other, second))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("check", [True, False])
def test_any_order_of_tasks_gives_each_one_s_bits(dtype, check):
    base, models, deltas = tasks(dtype)
    assert deltas[0].changes.keys() & deltas[1].changes.keys()
    live, now = copy.deepcopy(base), None
    addresses = [param.data_ptr() for param in live.parameters()]
    for task in (0, 1, 0, None, 1, None, 0):
        new = None if task is None else deltas[task]
        swap_(live, now, new, check=check)
        assert_same_model(live, base if task is None else models[task])
        now = new
    assert [param.data_ptr() for param in live.parameters()] == addresses


def test_a_compiled_model_is_compiled_once():
    base, models, deltas = tasks()
    counter = CompileCounter()
    live = torch.compile(copy.deepcopy(base), backend=counter)
    x = torch.randn(5, 40)
    with torch.no_grad():
        live(x)
        for old, new in ((None, 0), (0, 1), (1, 0), (0, None)):
            swap_(live, *(None if each is None else deltas[each] for each in (old, new)))
            expected = base if new is None else models[new]
            assert torch.equal(live(x), expected(x))
    assert counter.frame_count == 1


def test_only_changed_scalars_are_read(monkeypatch):
    """O(scalars): no tensor is hashed, copied or compared whole, but those that are replaced whole."""
    base, models, deltas = tasks()
    large = {name for name, change in deltas[0].changes.items() if not change.is_whole}
    monkeypatch.setattr("selective_peft.patching.digest", None)
    monkeypatch.setattr("selective_peft.changes.digest", None)
    live = copy.deepcopy(base)
    for name, param in live.named_parameters():
        if name in large:  # what is neither delta's may be anything
            free = torch.ones(param.numel(), dtype=torch.bool)
            for delta in deltas:
                free[delta.changes[name].indices.long()] = False
            param.detach().view(-1)[free] = float("nan")
    swap_(live, None, deltas[0])
    swap_(live, deltas[0], deltas[1])
    for name, param in live.named_parameters():
        if name in large:
            places = deltas[1].changes[name].indices.long()
            assert_bitwise_equal(param.detach().view(-1)[places], deltas[1].changes[name].values)
    assert torch.equal(live[4].weight, models[1][4].weight)


def refused(model, old, new, message):
    before = tensors_of(model)
    with pytest.raises(DeltaError, match=message):
        swap_(model, old, new)
    for name, tensor in tensors_of(model).items():
        assert_bitwise_equal(tensor, before[name])


def test_what_does_not_fit_is_refused(tmp_path):
    base, models, (a, b) = tasks()
    refused(copy.deepcopy(base), a, b, "it is not applied")
    other = copy.deepcopy(models[0])
    name = next(name for name, change in b.changes.items() if not change.is_whole)
    mine = set(a.changes[name].indices.tolist())
    place = next(i for i in b.changes[name].indices.tolist() if i not in mine)
    other.get_parameter(name).detach().view(-1)[place] += 1
    refused(other, a, b, f"{name}: expected the base's values at the places of `new`")
    refused(copy.deepcopy(models[0])[:3], a, b, "model: expected a tensor")
    a.save(tmp_path, originals=False)
    refused(copy.deepcopy(models[0]), SparseDelta.load(tmp_path), b, "they were not kept")
    moved = {n: p + 1 for n, p in base.named_parameters()}
    strange = SparseDelta.from_models(moved, {n: p + (p > 1.1) for n, p in moved.items()}, whole_above=1.0)
    refused(copy.deepcopy(models[0]), a, strange, "expected deltas of one base")


def test_a_delta_without_all_originals_may_come_in(tmp_path):
    """What it knows of the base is checked, the rest is not."""
    base, models, (a, b) = tasks()
    b.save(tmp_path, originals=False)
    bare = SparseDelta.load(tmp_path)
    first = next(name for name, change in b.changes.items() if not change.is_whole)
    some = SparseDelta({**bare.changes, first: b.changes[first]})
    for new in (bare, some):
        live = copy.deepcopy(models[0])
        swap_(live, a, new)
        assert_same_model(live, models[1])
    live = copy.deepcopy(base)
    live.get_parameter(first).detach().view(-1)[b.changes[first].indices.long()[-1]] += 1
    refused(live, None, some, f"{first}: expected the base's values at the places of `new`")
    swap_(live, None, bare)
