"""Patches for inference engines: a receiver has the model's bits after every step, at a cost of what was selected."""

import copy

import pytest
import torch
from engines import Engine
from harness import make_grads, set_grads
from selective_peft import SelectiveAdamW, SelectiveSGD, SparseDelta, WeightPatch, selective, selective_param_groups
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from selective_kernels import dispatch
from selective_kernels.testing import assert_bitwise_equal

STEPS = 6
HEAD = ["head"]


class Model(nn.Module):
    """Words, a layer, a norm, a tied output, a head; one tensor has more than one 4096-entry tile."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(90, 50)
        self.layer = nn.Linear(50, 50)
        self.norm = nn.LayerNorm(50)
        self.output = nn.Linear(50, 90, bias=False)
        self.output.weight = self.words.weight
        self.head = nn.Linear(50, 3)
        self.to(dtype)


def adamw(groups, **options):
    return SelectiveAdamW(groups, **{"lr": 1e-2, "budget": 300, "total_steps": STEPS, **options})


def sgd(groups, **options):
    return SelectiveSGD(groups, lr=0.1, momentum=0.9, budget=300, total_steps=STEPS, **options)


def adagrad(groups, **options):
    return selective(torch.optim.Adagrad, groups, lr=0.1, eps=1e-3, budget=300, total_steps=STEPS, **options)


def bitfit(groups, **options):
    return SelectiveAdamW(groups, lr=1e-2, method="bitfit", **options)


OPTIMIZERS = {
    "id3": adamw,
    "id3, every third step": lambda groups, **options: adamw(groups, select_every=3, **options),
    "static": lambda groups, **options: adamw(groups, method="d3-static", **options),
    "pafi": lambda groups, **options: adamw(groups, method="pafi", **options),
    "each tensor": lambda groups, **options: adamw(groups, scope="tensor", **options),
    "bitfit": bitfit,
    "SGD": sgd,
    "Adagrad of torch": adagrad,
}


def step_with(model, optimizer, step, bad=False):
    """A step with the gradients of its number; `bad`: infinite ones."""
    params = list(model.parameters())
    grads = make_grads(params, step)
    if bad:
        grads = [torch.full_like(grad, float("inf")) for grad in grads]
    set_grads(params, grads)
    optimizer.step()


def moved(model, engine):
    """Scalars in which a model differs from what an engine has."""
    return sum(int((engine.weights[name] != param).sum()) for name, param in model.named_parameters())


@pytest.mark.filterwarnings("ignore:step .. skipped")
@pytest.mark.parametrize("head", [(), HEAD], ids=["", "dense head"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_receiver_has_the_models_bits_after_every_step(name, head, dtype):
    """Also after a skipped step, and if it has missed all but the last one."""
    model = Model(dtype)
    engine, late = Engine(model), Engine(model)
    optimizer = OPTIMIZERS[name](selective_param_groups(model, train_fully=head))
    for step in range(STEPS + 1):
        step_with(model, optimizer, step, bad=step == 3)
        assert (moved(model, engine) > 0) == (step != 3)
        count = engine.receive(optimizer.iter_patches())
        engine.assert_is(model)
        assert count == optimizer.num_selected + (3 * 51 if head else 0)
    late.receive(optimizer.iter_patches(model))
    late.assert_is(model)


@pytest.mark.filterwarnings("ignore:step .. skipped")
def test_steps_that_do_not_wait(deferring):
    """A step is settled before its patches are made, skipped ones included."""
    test_a_receiver_has_the_models_bits_after_every_step("id3", HEAD, torch.bfloat16)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_delta_gives_the_same_patches(tmp_path, backend):
    model = Model(torch.bfloat16)
    engine = Engine(model)
    optimizer = adamw(selective_param_groups(model, train_fully=HEAD), backend=backend)
    for step in range(3):
        step_with(model, optimizer, step)
    delta = SparseDelta.from_optimizer(optimizer, model)
    delta.save(tmp_path, compact=True)
    streamed = list(optimizer.iter_patches(model))
    assert {patch.name for patch in streamed} >= {"words.weight", "head.weight", "head.bias"}
    assert [patch.name for patch in delta.iter_patches()] == [patch.name for patch in streamed]  # the model's order
    streamed.sort()
    for other in (delta, SparseDelta.load(tmp_path)):
        patches = sorted(other.iter_patches())
        assert [patch[:3] for patch in patches] == [patch[:3] for patch in streamed]
        for patch, expected in zip(patches, streamed, strict=True):
            assert_bitwise_equal(patch.values, expected.values)
            assert (patch.indices is None) == (expected.indices is None)
            if patch.indices is not None:
                assert_bitwise_equal(patch.indices, expected.indices)
    assert engine.receive(delta.iter_patches()) == sum(change.scalars for change in delta.changes.values())
    engine.assert_is(model)


@pytest.mark.filterwarnings("ignore:step .. skipped")
@pytest.mark.parametrize("defers", [False, True])
def test_a_first_step_that_was_skipped_sends_nothing(defers, monkeypatch):
    """Also if nobody has asked yet whether it was."""
    monkeypatch.setattr(dispatch, "defers", lambda device, backend: defers)
    model = Model()
    optimizer = adamw(selective_param_groups(model, train_fully=HEAD), method="pafi")  # selects without gradients
    step_with(model, optimizer, 0, bad=True)
    assert list(optimizer.iter_patches()) == []


def test_patches_come_in_the_models_order():
    """Whatever the order of the groups, of which those to select from come first."""
    model = Model()
    optimizer = adamw(selective_param_groups(model, train_fully=["layer"]), method="pafi")
    step_with(model, optimizer, 0)
    names = [patch.name for patch in optimizer.iter_patches(model)]
    assert names == [name for name, _ in model.named_parameters() if name in names]
    assert {"words.weight", "layer.bias", "head.weight"} <= set(names)


def test_full_fine_tuning_streams_whole_tensors():
    model = Model()
    engine = Engine(model)
    groups = [{**group, "selective": False} for group in selective_param_groups(model)]
    optimizer = SelectiveAdamW(groups, lr=1e-2, method="full")
    for step in range(2):
        step_with(model, optimizer, step)
        patches = list(optimizer.iter_patches())
        assert all(patch.indices is None for patch in patches)
        engine.receive(patches)
        engine.assert_is(model)


def test_a_loaded_run_goes_on_streaming():
    model = Model()
    engine = Engine(model)
    optimizer = adamw(selective_param_groups(model, train_fully=HEAD))
    step_with(model, optimizer, 0)
    resumed = adamw(selective_param_groups(model, train_fully=HEAD))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    engine.receive(resumed.iter_patches())
    engine.assert_is(model)
    step_with(model, resumed, 1)
    engine.receive(resumed.iter_patches())
    engine.assert_is(model)


def test_patches_are_copies():
    model = Model()
    optimizer = adamw(selective_param_groups(model, train_fully=HEAD))
    step_with(model, optimizer, 0)
    engine = Engine(model)
    patches = list(optimizer.iter_patches())
    step_with(model, optimizer, 1)
    assert moved(model, engine)
    before = copy.deepcopy(engine.weights)
    engine.receive(patches)
    for name, weight in before.items():
        assert_bitwise_equal(engine.weights[name], weight)


VIEWS = ("aten::detach", "aten::view", "aten::alias", "aten::slice")  # they touch no scalar


class Largest(TorchDispatchMode):
    """The most scalars that any operation has read or written."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._schema.name not in VIEWS:
            seen = [each for each in (*args, *(kwargs or {}).values(), out) if isinstance(each, torch.Tensor)]
            self.most = max([self.most, *(each.numel() for each in seen)])
        return out


def test_the_cost_is_that_of_what_was_selected():
    model = nn.Linear(1000, 1000)
    optimizer = SelectiveAdamW(model.named_parameters(), lr=1e-2, budget=50, total_steps=2)
    step_with(model, optimizer, 0)
    with Largest() as seen:
        patches = list(optimizer.iter_patches())
    assert seen.most == optimizer.num_selected == 25
    assert sum(patch.nbytes for patch in patches) == 25 * (4 + 4)
    assert sum(patch.values.numel() for patch in patches) == 25


def test_a_patch_is_the_tuple_that_vllm_takes():
    """The fields of its CheckpointWeightPatch in their order, with indices that may be left out."""
    assert WeightPatch._fields == ("name", "shape", "dtype", "values", "indices")
    assert WeightPatch("a", (1,), torch.float32, torch.zeros(1)).indices is None
    patch = WeightPatch("a", (2,), torch.float32, torch.zeros(1), torch.zeros(1, dtype=torch.int32))
    assert [each.device.type for each in patch.to("meta")[3:]] == ["meta", "meta"]
    assert patch.to("meta")[:3] == patch[:3]
    assert (patch.nbytes, WeightPatch("a", (1,), torch.float32, torch.zeros(1)).nbytes) == (8, 4)
