"""Ways to fine-tune in the comparison by accuracy: each trains what it should, no more, and its options arrive."""

import pytest
import torch
from tinyquality import NUMBERS, PRESET, TEXTS, job, one_thread, trained  # noqa: F401

from benchmarks.quality import batches
from benchmarks.quality.jobs import EPS, EXP, NONE
from benchmarks.quality.methods import D3_METHODS, METHODS, adapt, optimizer_for, trainable
from benchmarks.quality.plan import MATH, MATH_EXP
from benchmarks.quality.tasks import encoded

RUNS = [("reviews", method) for method in METHODS] + [
    ("asdiv", method)
    for method in METHODS
    if method != "BitFit"  # tiny Llama has no biases
]
HEAD = 2 * 32 + 2
SCALARS = {"reviews": 25762, "asdiv": 24992}
# BERT of width 32: each of 2 layers has 4 square linear layers and 2 to and from 64, then the pooler; Llama has
# queries, keys, values (2 heads, 1 for keys and values) and outputs, and 3 linear layers to and from 64.
LORA = {"reviews": 2 * (4 * (32 + 32) + 2 * (32 + 64)) + (32 + 32), "asdiv": 2 * (2 * 64 + 2 * 48 + 3 * 96)}
PFEIFFER = 2 * ((32 * 48 + 48) + (48 * 32 + 32))
BIASES = 2 * (4 * 32 + 64 + 32) + 32 + (1 + 2 * 2) * 32  # linear layers, the pooler, layer norms


def fresh(method, data, seed=0):
    """The model with its adapter as it is before training."""
    return adapt(PRESET.tasks[data].model(seed), METHODS[method].adapter, seed)


def body_by_hand(method, data):
    """How many scalars besides a head are trained."""
    way = METHODS[method]
    if way.budget:
        return int(0.05 * SCALARS[data])
    return {
        "full": SCALARS[data] - (HEAD if data == "reviews" else 0),
        "BitFit": BIASES,
        "LoRA r=8": 8 * LORA[data],
        "LoRA r=2": 2 * LORA[data],
        "Pfeiffer": PFEIFFER,
    }[method]


@pytest.mark.parametrize(("data", "method"), RUNS)
def test_as_many_scalars_are_trained_as_by_hand(data, method):
    done = trained(method, data)
    head = HEAD if data == "reviews" else 0
    assert done.trained == body_by_hand(method, data) + head
    assert done.budget == (int(0.05 * SCALARS[data]) if METHODS[method].budget else 0)


@pytest.mark.parametrize(("data", "method"), RUNS)
def test_what_is_frozen_keeps_every_bit_and_the_budget_is_spent(data, method):
    done, before = trained(method, data), dict(fresh(method, data).named_parameters())
    body = dict(trainable(done.model)["body"])
    heads = dict(trainable(done.model)["head"])
    changed = 0
    for name, after in done.model.named_parameters():
        differs = (after != before[name]).flatten()
        if not METHODS[method].method and name in body:
            changed += int(differs.sum())
        elif name in body:
            chosen = torch.zeros_like(differs)
            chosen[done.optimizer.selected_indices(after)] = True
            if method != "D3, repeat":  # selects afresh in each step
                assert not (differs & ~chosen).any(), name
            changed += int(chosen.sum())
        elif name in heads:
            assert differs.all(), name
        else:
            assert not after.requires_grad
            assert not differs.any(), name
    assert set(before) == {name for name, _ in done.model.named_parameters()}
    assert bool(heads) == (data == "reviews")
    if METHODS[method].method:
        assert changed == body_by_hand(method, data)
    else:
        assert changed > 0.7 * body_by_hand(method, data)  # words that never come have no gradient


@pytest.mark.parametrize("data", ["reviews", "asdiv"])
@pytest.mark.parametrize("method", ["LoRA r=8", "LoRA r=8 + ID3", "Pfeiffer", "Pfeiffer + ID3"])
def test_an_adapter_changes_nothing_before_it_is_trained_and_its_base_is_the_model(data, method):
    task = PRESET.tasks[data]
    parts, base, wrapped = encoded(task), task.model(0), fresh(method, data)
    batch = batches.collated(parts.train, range(8), parts.tokenizer.pad_token_id, task.causal)
    with torch.no_grad():
        assert torch.equal(wrapped(**batch).logits, base(**batch).logits)
    kept = {param.data_ptr(): param for param in wrapped.parameters() if not param.requires_grad}
    assert sum(param.numel() for param in kept.values()) >= SCALARS[data] - HEAD


def test_the_adapter_hangs_on_the_seed():
    def lora(seed):
        named = fresh("LoRA r=8", "asdiv", seed).named_parameters()
        return torch.cat([param.flatten() for name, param in named if "lora_A" in name])

    assert torch.equal(lora(0), lora(0))
    assert not torch.equal(lora(0), lora(1))


class Stepped:
    """A fresh model, the optimizer of a method and steps with a learning rate that stays."""

    def __init__(self, method, steps=20, data="reviews", fisher=None, **changes):
        task = PRESET.tasks[data]
        if method == "Fish" and fisher is None:
            fisher = {name: torch.ones_like(param) for name, param in trainable(task.model(0))["body"]}
        self.job = job(method, data, **changes)
        self.model = fresh(method, data)
        self.budget = int(self.job.share * SCALARS[data])
        self.optimizer = optimizer_for(self.model, self.job, self.budget, steps, fisher)
        self.parts = encoded(task)
        self.order = batches.in_random_order(self.parts.train, task.batch, 0)
        self.causal = task.causal

    def gradients(self):
        self.optimizer.zero_grad()
        batch = batches.collated(self.parts.train, next(self.order), 0, self.causal)
        self.model(**batch).loss.backward()

    def step(self):
        self.gradients()
        self.optimizer.step()
        return self

    @property
    def body(self):
        return [param for _, param in trainable(self.model)["body"]]

    def selected(self):
        return [self.optimizer.selected_indices(param).tolist() for param in self.body]


SELECTIVE = [method for method, way in METHODS.items() if way.method and way.budget]


@pytest.mark.parametrize("method", SELECTIVE)
def test_how_many_are_selected_in_the_first_step(method):
    run = Stepped(method).step()
    way = METHODS[method]
    first = {"id3": 1, "pafi-increment": 1}.get(way.method, 20)
    if "select_every" in way.options:
        first = 15
    if way.options.get("schedule") == "front":
        first = 10
    assert run.optimizer.num_selected == run.budget * first // 20
    assert run.optimizer.budget == run.budget


def test_every_15_selects_for_15_steps_ahead_and_then_for_the_rest():
    run = Stepped("ID3, every 15")
    counts = [run.step().optimizer.num_selected for _ in range(20)]
    assert counts == [run.budget * 15 // 20] * 15 + [run.budget] * 5


def test_per_entry_steps_by_each_scalars_own_age():
    """Then the first update of a late scalar is its learning rate; by the tensor's age it is another one."""
    updates = {}
    for method in ("ID3", "ID3, per entry"):
        run = Stepped(method)
        for _ in range(4):
            run.step()
        old, before = run.selected(), [param.detach().flatten().clone() for param in run.body]
        run.step()
        found = []
        for param, values, known in zip(run.body, before, old, strict=True):
            new = sorted(set(run.optimizer.selected_indices(param).tolist()) - set(known))
            found.append((param.detach().flatten()[new] - values[new]).abs())
        updates[method] = torch.cat(found)
        assert len(updates[method]) >= run.budget // 20
    assert torch.allclose(updates["ID3, per entry"], torch.tensor(1e-2), rtol=1e-2)
    share = (0.1 / (1 - 0.9**5)) / (0.001 / (1 - 0.999**5)) ** 0.5
    assert torch.allclose(updates["ID3"], torch.tensor(1e-2 * share), rtol=1e-2)


def d3(exp, eps):
    return lambda theta, g: g.abs() / (theta.abs() + eps) ** exp


ORACLES = {
    "ID3": (d3(EXP, EPS), {}),
    "ID3 by gradients": (d3(0.0, EPS), {"exp": 0.0}),
    "ID3 by eps": (d3(EXP, 0.125), {"eps": 0.125}),
    "D3, static": (d3(EXP, EPS), {}),
    "D3, repeat": (d3(EXP, EPS), {}),
    "SNIP": (lambda theta, g: (theta * g).abs(), {}),
    "PaFi": (lambda theta, g: -theta.abs(), {}),
    "PaFi, increment": (lambda theta, g: -theta.abs(), {}),
    "LoRA r=8 + PaFi": (lambda theta, g: -theta.abs(), {}),
    "LoRA r=8 + ID3": (d3(EXP, EPS), {}),
    "Pfeiffer + ID3": (d3(EXP, EPS), {}),
}


@pytest.mark.parametrize("name", ORACLES)
def test_the_first_step_selects_by_the_methods_score(name):
    score, changes = ORACLES[name]
    run = Stepped(name.partition(" by ")[0])
    if changes:
        made = {**run.job.__dict__, **changes}
        run.optimizer = optimizer_for(run.model, type(run.job)(**made), run.budget, 20)
    run.gradients()
    theta = torch.cat([param.detach().flatten() for param in run.body])
    g = torch.cat([param.grad.flatten() for param in run.body])
    run.optimizer.step()
    best = torch.sort(score(theta, g), descending=True, stable=True).indices[: run.optimizer.num_selected]
    begin, found = 0, []
    for param, offsets in zip(run.body, run.selected(), strict=True):
        found += [begin + offset for offset in offsets]
        begin += param.numel()
    assert found == sorted(best.tolist())


def test_fish_selects_by_the_scores_that_it_is_given():
    model = TEXTS.model(0)
    scores = {name: torch.rand_like(param) for name, param in trainable(model)["body"]}
    run = Stepped("Fish", fisher=scores).step()
    flat = torch.cat([each.flatten() for each in scores.values()])
    lowest = flat.sort(descending=True).values[run.budget - 1]
    for (name, _), offsets in zip(trainable(run.model)["body"], run.selected(), strict=True):
        assert offsets == (scores[name].flatten() >= lowest).nonzero().flatten().tolist()


def test_a_random_mask_hangs_on_the_seed():
    assert Stepped("R-Mask").step().selected() == Stepped("R-Mask").step().selected()
    assert Stepped("R-Mask", seed=1).step().selected() != Stepped("R-Mask").step().selected()


def test_no_method_has_weight_decay_or_another_learning_rate():
    for method in METHODS:
        run = Stepped(method, lr=0.25)
        assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.0}
        assert {group["lr"] for group in run.optimizer.param_groups} == {0.25}


def test_the_table_of_methods():
    assert NONE not in METHODS
    assert {way.method for way in METHODS.values() if way.scored} == set(D3_METHODS)
    assert set(MATH) <= set(METHODS)
    assert (EXP, EPS, MATH_EXP) == (2.0, 1.0, 1.0)
    assert trainable(NUMBERS.model(0))["head"] == []
