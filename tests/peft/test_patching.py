"""Deltas in live models where ties are not the same, and where something goes wrong amid writing."""

import copy

import pytest
import torch
from deltatests import assert_same_model, tensors_of, trained
from selective_peft import DeltaError, SparseDelta, swap_
from selective_peft.making_deltas import state_of
from selective_peft.patching import Targets, values_of
from torch import nn

from selective_kernels.testing import assert_bitwise_equal


class Language(nn.Module):
    """An embedding and a head, which are one tensor or two equal ones."""

    def __init__(self, tied):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 6), nn.Linear(6, 20, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
            self.head.weight.copy_(self.embed.weight)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


def tied_tasks():
    """Two deltas of a tied model, and what its tuned copies answer."""
    deltas, answers = [], []
    for seed in range(2):
        tuned = Language(True)
        places = torch.rand(20, 6, generator=torch.Generator().manual_seed(seed + 1)) < 0.2
        with torch.no_grad():
            tuned.embed.weight[places] += 0.5
        deltas.append(SparseDelta.from_models(Language(True), tuned))
        answers.append(tuned(torch.arange(20)))
    return deltas, answers


def test_a_delta_of_a_tied_model_changes_both_of_a_model_that_has_them_apart():
    """It has the tuned model's bits, so it gives the tuned model's answers."""
    deltas, answers = tied_tasks()
    assert deltas[0].changes["embed.weight"].tied == ("head.weight",)
    for tied in (True, False):
        base, model = Language(tied), Language(tied)
        deltas[0].apply_(model)
        assert torch.equal(model(torch.arange(20)), answers[0])
        swap_(model, deltas[0], deltas[1])
        assert torch.equal(model(torch.arange(20)), answers[1])
        deltas[1].revert_(model)
        assert_same_model(model, base)


def test_the_other_one_has_to_be_the_base_s_too():
    (delta, _), _ = tied_tasks()
    model = Language(False)
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    before = tensors_of(model)
    with pytest.raises(DeltaError, match=r"head\.weight: expected the base that the delta was made for"):
        delta.apply_(model)
    for name, tensor in tensors_of(model).items():
        assert_bitwise_equal(tensor, before[name])


def test_a_writing_that_fails_leaves_what_was_there():
    base, tuned, optimizer = trained()
    delta, model = SparseDelta.from_optimizer(optimizer, tuned), copy.deepcopy(base)
    whole = [name for name, change in delta.changes.items() if change.is_whole]
    assert len(whole) == 2
    values = {**values_of(delta.changes), whole[1]: torch.zeros(7, 7, 7)}  # the last one does not fit
    with pytest.raises(RuntimeError):
        Targets(state_of(model), delta.changes).write(values)
    assert_same_model(model, base)
    delta.apply_(model)
    assert_same_model(model, tuned)


def test_an_interrupted_exchange_of_deltas_leaves_the_old_one(monkeypatch):
    base, first, optimizer = trained()
    _, second, other = trained(budget=300, steps=4)
    old, new = SparseDelta.from_optimizer(optimizer, first), SparseDelta.from_optimizer(other, second)
    model, write, made = copy.deepcopy(first), Targets.write, []

    def interrupted(targets, values):
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        write(targets, values)

    monkeypatch.setattr(Targets, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap_(model, old, new)
    assert_same_model(model, first)
    monkeypatch.undo()
    swap_(model, old, new)
    assert_same_model(model, second)
    swap_(model, new, None)
    assert_same_model(model, base)
