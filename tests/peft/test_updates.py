"""The record of what a run changed, against dense copies of the model before and after."""

import pytest
import torch
from densemasks import named, run
from harness import SHAPES, make_grads, make_params, set_grads, train
from selective_peft import SelectiveAdamW
from selective_peft.updates import Updates
from torch import nn
from torch.nn import Parameter

from selective_kernels.testing import assert_bitwise_equal


def assert_equals_dense_copies(updates, params, first, history):
    kept = [i for i, shape in enumerate(SHAPES) if 0 not in shape]
    assert updates.names == tuple(f"m.{i}.weight" for i in kept)
    assert updates.sizes == tuple(params[i].numel() for i in kept)
    assert updates.steps == len(history)
    assert len(updates.offsets) == sum(int(mask.sum()) for mask in history[-1]) > 0
    for i in kept:
        piece = updates.slice_of(f"m.{i}.weight")
        selected = history[-1][i].nonzero().reshape(-1)
        assert updates.offsets[piece].tolist() == selected.tolist()
        assert_bitwise_equal(updates.before[piece], first[i].reshape(-1)[selected].float(), "before")
        assert_bitwise_equal(updates.after[piece], params[i].detach().reshape(-1)[selected].float(), "after")
        age = torch.stack([masks[i] for masks in history]).sum(0)[selected]
        assert updates.chosen[piece].tolist() == (len(history) - age).tolist()
    assert bool((updates.before != updates.after).any())


def test_optimizer_equals_dense_copies(dtype):
    opt, params, first, history = run(dtype)
    assert opt.num_selected == 42
    assert_equals_dense_copies(Updates.from_optimizer(opt), params, first, history)


@pytest.mark.parametrize("method", ["d3-static", "gradient", "snip", "pafi", "pafi-increment", "random"])
def test_every_growing_method_has_a_record(method):
    opt, params, first, history = run(method=method)
    assert_equals_dense_copies(Updates.from_optimizer(opt), params, first, history)


def test_before_is_where_training_from_scratch_began_after_a_warm_up():
    opt, params, first, _ = run(method="diff", method_kwargs={"warmup_steps": 3})
    updates = Updates.from_optimizer(opt)
    assert updates.steps == 4
    assert updates.chosen.tolist() == [0] * 60
    start = torch.cat([first[i].reshape(-1)[opt.selected_indices(param)] for i, param in enumerate(params)])
    assert_bitwise_equal(updates.before, start, "before")


def test_methods_without_a_growing_selection_are_refused():
    with pytest.warns(UserWarning, match="'repeat' is a baseline"):
        opt, params, _, _ = run(method="d3-repeat")
    with pytest.raises(
        ValueError, match=r"optimizer: expected a selection that only grows, got 'repeat'; use Updates\."
    ):
        Updates.from_optimizer(opt)
    full = SelectiveAdamW(named(params), lr=1e-2, method="full")
    full.step()
    with pytest.raises(
        ValueError, match=r"optimizer: expected tensors to select from, got none; use Updates\.from_mod"
    ):
        Updates.from_optimizer(full)


def test_record_is_a_copy():
    opt, params, _, _ = run()
    updates = Updates.from_optimizer(opt)
    arrays = ("offsets", "before", "after", "chosen")
    copies = {name: getattr(updates, name).clone() for name in arrays}
    train(opt, params, 7, 10)
    for name in arrays:
        assert_bitwise_equal(getattr(updates, name), copies[name], name)
    assert len(Updates.from_optimizer(opt).offsets) == 60


def test_whole_groups_and_frozen_tensors_are_left_out():
    params = make_params()
    params[3].requires_grad_(False)
    opt = SelectiveAdamW(
        [{"params": named(params[:5])}, {"params": [("head", params[7])], "selective": False}],
        lr=1e-2, budget=10, total_steps=2,
    )  # fmt: skip
    set_grads(params, [None if i == 3 else grad for i, grad in enumerate(make_grads(params, 0))])
    opt.step()
    updates = Updates.from_optimizer(opt)
    assert updates.names == ("m.0.weight", "m.2.weight", "m.4.weight")
    assert len(updates.offsets) == opt.num_selected == 5


def test_resumed_run_is_the_same_record():
    opt, params, _, _ = run()
    again = SelectiveAdamW(named(params), lr=1e-2, budget=60, total_steps=10)
    again.load_state_dict(opt.state_dict())
    one, other = Updates.from_optimizer(opt), Updates.from_optimizer(again)
    assert one.names == other.names
    assert one.starts == other.starts
    for name in ("offsets", "before", "after", "chosen"):
        assert_bitwise_equal(getattr(one, name), getattr(other, name), name)


def test_a_model_may_have_moved_since_the_last_step():
    """As if that had been on another device: addresses are those of now."""
    opt, _, _, _ = run()
    expected = Updates.from_optimizer(opt)
    opt._table.devices = [torch.device("meta")] * len(opt._table)
    assert not opt._table.unchanged()
    found = Updates.from_optimizer(opt)
    assert_bitwise_equal(found.after, expected.after)
    assert_bitwise_equal(found.offsets, expected.offsets)


def test_before_the_first_step_nothing_is_known():
    opt = SelectiveAdamW(named(make_params()), lr=1e-2, budget=60, total_steps=10)
    with pytest.raises(ValueError, match="optimizer: expected one that has made a step"):
        Updates.from_optimizer(opt)


def test_models_equal_what_the_optimizer_says(dtype):
    """Every selected scalar that moved, and no other: frozen ones keep every bit."""
    opt, params, first, _ = run(dtype)
    said = Updates.from_optimizer(opt)
    found = Updates.from_models(dict(named(first)), dict(named(params)))
    moved = said.before != said.after
    assert found.names == said.names
    assert found.sizes == said.sizes
    assert found.chosen is None
    assert found.offsets.tolist() == said.offsets[moved].tolist()
    assert_bitwise_equal(found.before, said.before[moved], "before")
    assert_bitwise_equal(found.after, said.after[moved], "after")


def test_models_differ_by_bits():
    before = {"a": torch.tensor([0.0, 1.0, float("nan"), 2.0])}
    after = {"a": torch.tensor([-0.0, 1.0, float("nan"), 3.0])}
    assert Updates.from_models(before, after).offsets.tolist() == [0, 3]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head, self.norm = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.BatchNorm1d(3)
        self.head.weight = self.embedding.weight


def test_modules_and_state_dicts():
    model = Tied()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.embedding.weight[1, 2] += 1
        model.norm.running_mean += 1
    of_module = Updates.from_models(state, model)
    assert of_module.names == ("embedding.weight", "norm.weight", "norm.bias")  # tied once, no buffers
    assert of_module.offsets.tolist() == [5]
    assert Updates.from_models(model, state).offsets.tolist() == [5]
    of_states = Updates.from_models(state, model.state_dict())
    assert of_states.names == (
        "embedding.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"
    )  # fmt: skip
    assert of_states.counts == [1, 0, 0, 3, 0]
    assert Updates.from_models(state, model, names=["norm.bias"]).names == ("norm.bias",)
    with pytest.raises(ValueError, match=r"before\['embedding.weight'\]: expected a copy from before training"):
        Updates.from_models(model.state_dict(), model)


def test_transposed_tensors_are_read_row_by_row():
    before, after = torch.zeros(3, 2).t(), torch.zeros(2, 3)
    after[1, 0] = 1
    assert Updates.from_models({"a": before}, {"a": after.t().contiguous().t()}).offsets.tolist() == [3]


WRONG_MODELS = {
    "missing after": (
        {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2)}, None,
        r"after: expected the tensors \['b'\], they are missing",
    ),
    "missing before": (
        {"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}, None,
        r"before: expected the tensors \['b'\]",
    ),
    "wanted": ({"a": torch.ones(2)}, {"a": torch.ones(2)}, ["c"], r"before: expected the tensors \['c'\]"),
    "shape": ({"a": torch.ones(2)}, {"a": torch.ones(3)}, None, r"after\['a'\]: expected torch.float32 \(2,\)"),
    "dtype": ({"a": torch.ones(2)}, {"a": torch.ones(2).half()}, None, r"got torch.float16 \(2,\)"),
    "float64": ({"a": torch.ones(2).double()}, {"a": torch.ones(2).double()}, None, "got torch.float64"),
    "nothing": ({}, {}, None, "names: expected at least one name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_models_that_do_not_fit_are_refused(case):
    before, after, names, message = WRONG_MODELS[case]
    with pytest.raises(ValueError, match=message):
        Updates.from_models(before, after, names)


def record(**changes):
    fields = {
        "names": ("a", "b"), "sizes": (4, 2), "starts": (0, 2, 3), "offsets": torch.tensor([0, 3, 1]),
        "before": torch.zeros(3), "after": torch.ones(3), "chosen": torch.tensor([0, 1, 1], dtype=torch.int32),
        "steps": 2,
    }  # fmt: skip
    return Updates(**{**fields, **changes})


WRONG = {
    "same name": ({"names": ("a", "a")}, "names: expected"),
    "empty tensor": ({"sizes": (4, 0)}, "sizes: expected 2 numbers above 0"),
    "starts": ({"starts": (0, 2, 2)}, "starts: expected to ascend from 0 to 3"),
    "one start less": ({"starts": (0, 3)}, "starts: expected 3 numbers, got 2"),
    "descending": ({"offsets": torch.tensor([3, 0, 1])}, "offsets: expected ascending"),
    "twice": ({"offsets": torch.tensor([3, 3, 1])}, "offsets: expected ascending"),
    "outside": ({"offsets": torch.tensor([0, 4, 1])}, "offsets: expected ascending positions inside"),
    "int32": ({"offsets": torch.tensor([0, 3, 1], dtype=torch.int32)}, "offsets: expected torch.int64"),
    "length": ({"after": torch.ones(2)}, r"after: expected torch.float32, shape \(3,\), got torch.float32 \(2,\)"),
    "late": ({"steps": 1}, r"chosen: expected numbers in \[0, 1\)"),
    "steps": ({"chosen": None}, "steps: expected 0 without `chosen`, got 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_records_that_do_not_fit_are_refused(case):
    changes, message = WRONG[case]
    record()
    with pytest.raises(ValueError, match=message):
        record(**changes)


def test_slices():
    updates = record()
    assert updates.counts == [2, 1]
    assert updates.owners().tolist() == [0, 0, 1]
    assert updates.offsets_of("a").tolist() == [0, 3]
    assert updates.offsets_of("b").tolist() == [1]
    assert updates.offsets_of("c").tolist() == []


def test_unnamed_parameters_have_the_optimizers_names():
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    opt = SelectiveAdamW(params, lr=1e-2, budget=2, total_steps=1)
    set_grads(params, [torch.ones(3), torch.ones(2)])
    opt.step()
    assert Updates.from_optimizer(opt).names == ("param_groups[0]['params'][0]", "param_groups[0]['params'][1]")
