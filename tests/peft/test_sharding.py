"""C12, C14: what is in the groups, or calls, is looked at when something was replaced, and then only."""

import copy
import pickle
import types
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from harness import assert_same_picture, make_grads, make_params, picture, set_grads, train
from selective_peft import SelectiveAdamW, binding, sharding
from selective_peft.sharding import ShardingError
from torch import nn
from torch.nn import Parameter

SHAPES = [(30, 20), (20,), (3, 3, 5)]
HEAD = [(4, 20), (4,)]
TRAIN = (
    r"expected .*, got .*; sharded training is not supported: train in one process, with DistributedDataParallel, or"
)


def build(params, head=()):
    groups = [{"params": params}, {"params": list(head), "selective": False}]
    return SelectiveAdamW(groups, lr=1e-2, budget=60, total_steps=4)


def zero_1(opt):
    """What DeepSpeed's ZeRO-1 and 2 leave in the groups: of each, one flat float32 partition of this process.

    A stand-in: DeepSpeed is not installed. It does what `stage_1_and_2.py` does to `param_groups` for 2 processes.
    """
    for group in opt.param_groups:
        flat = torch.cat([param.detach().float().reshape(-1) for param in group["params"]])
        partition = flat[: (len(flat) + 1) // 2].clone().requires_grad_()
        partition.grad = torch.ones_like(partition)
        group["params"] = [partition]


def zero_3(opt):
    """What DeepSpeed's ZeRO-3 leaves there while it steps one sub-group of parameters; a stand-in, as above."""
    zero_1(opt)
    for group in opt.param_groups[1:]:
        group["params"] = []


def accelerate_dummies(opt):
    """What Accelerate's FSDP2 puts there until the model is sharded."""
    for group in opt.param_groups:
        group["params"] = [torch.empty(1, dtype=param.dtype) for param in group["params"]]


REPLACED = {each.__name__: each for each in (zero_1, zero_3, accelerate_dummies)}


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("call", ["step", "state_dict", "load_state_dict"])
@pytest.mark.parametrize("replace", REPLACED)
def test_a_part_of_the_model_in_place_of_its_tensors(replace, call, done):
    """Of another number or shape than at construction: refused before anything is read or written."""
    params, head = make_params(SHAPES), make_params(HEAD)
    opt = build(params, head)
    train(opt, [*params, *head], 0, done)
    state = opt.state_dict()
    REPLACED[replace](opt)
    found = [param for group in opt.param_groups for param in group["params"]]
    before = [param.detach().clone() for param in [*params, *head, *found]]
    selected, kept = opt.num_selected, len(opt.state)
    with pytest.raises(ShardingError, match=rf"^param_groups\[0\]\['params'\]: {TRAIN}"):
        opt.load_state_dict(state) if call == "load_state_dict" else getattr(opt, call)()
    for param, old in zip([*params, *head, *found], before, strict=True):
        assert torch.equal(param.detach().nan_to_num(), old.nan_to_num())
    assert (opt.num_selected, len(opt.state)) == (selected, kept)


def test_a_part_in_place_of_a_dense_group_alone():
    params, head = make_params(SHAPES), make_params(HEAD)
    opt = build(params, head)
    train(opt, [*params, *head], 0, 1)
    opt.param_groups[1]["params"] = [Parameter(torch.ones(42))]
    before = [param.detach().clone() for param in params]
    set_grads([*params, *opt.param_groups[1]["params"]], make_grads([*params, torch.ones(42)], 1))
    with pytest.raises(ShardingError, match=rf"^param_groups\[1\]\['params'\]: {TRAIN}"):
        opt.step()
    assert all(torch.equal(param.detach(), old) for param, old in zip(params, before, strict=True))


def test_parameters_with_the_marks_of_zero_3():
    """DeepSpeed ZeRO-3 gives each parameter a `ds_id`, and has an empty tensor in it; a stand-in, as above."""
    params = make_params(SHAPES)
    for number, param in enumerate(params):
        param.ds_id, param.ds_tensor, param.data = number, param.data.reshape(-1)[:5], torch.empty(0)
    for selective in (True, False):
        with pytest.raises(ShardingError, match=rf"params'\]\[0\]: {TRAIN}"):
            SelectiveAdamW([{"params": params, "selective": selective}], budget=10, total_steps=4)
    with pytest.raises(ShardingError, match=f"^some.weight: {TRAIN}"):
        build(make_params(SHAPES)).add_param_group({"params": [("some.weight", params[0])]})


@pytest.mark.parametrize("call", ["construct", "step", "load_state_dict"])
def test_calls_by_deepspeed(call):
    """A partition may be of the very shape of the model's only parameter, but DeepSpeed's modules call."""
    module = types.ModuleType("deepspeed.runtime.zero.stage3")  # a stand-in, as above
    exec("def call(function, *args): return function(*args)", module.__dict__)
    params = make_params(SHAPES)
    opt = build(params)
    state = opt.state_dict()
    calls = {"construct": (build, params), "step": (opt.step,), "load_state_dict": (opt.load_state_dict, state)}
    set_grads(params, make_grads(params, 0))
    before = picture(opt, params)
    with pytest.raises(ShardingError, match=r"got one by deepspeed\.runtime\.zero\.stage3; sharded training"):
        module.call(*calls[call])
    assert_same_picture(picture(opt, params), before)


def drop(opt, params):
    opt.param_groups[0]["params"] = params[1:]
    return params[1:]


def reverse(opt, params):
    opt.param_groups[0]["params"] = params[::-1]
    return params


def append(opt, params):
    more = make_params([(7,)], seed=3)
    opt.param_groups[0]["params"].extend(more)
    return [*params, *more]


def reshape(opt, params):
    params[0].data = params[0].data.reshape(-1)
    return params


def cast(opt, params):
    opt.param_groups[0]["params"] = [Parameter(param.detach().bfloat16()) for param in params]
    return opt.param_groups[0]["params"]


ALLOWED = {each.__name__: each for each in (drop, reverse, append, reshape, cast)}


@pytest.mark.parametrize("change", ALLOWED)
def test_what_else_may_happen_before_the_first_step(change):
    """C12: fewer of the same tensors, further ones, others of the same shapes: as if it had been built with them."""
    params = make_params(SHAPES)
    opt = build(params)
    now = ALLOWED[change](opt, params)
    mine = opt.param_groups[0]["params"]
    expected = [Parameter(param.detach().clone()) for param in mine]
    train(opt, mine, 0, 4)
    train(build(expected), expected, 0, 4)
    assert opt.num_selected == 60
    assert len(now) == len(mine)
    for a, b in zip(mine, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("route", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_knows_its_own_tensors(route):
    """They may get another shape as those of the original may, and a part in place of them is refused."""
    params = make_params(SHAPES)
    opt, mine = route((build(params), params))
    reshape(opt, mine)
    train(opt, mine, 0, 4)
    assert opt.num_selected == 60
    other, _ = route((build(params, make_params(HEAD)), params))
    zero_1(other)
    with pytest.raises(ShardingError, match=TRAIN):
        other.step()


def test_a_lazy_parameter_has_no_shape_yet():
    """torch gives it one in the first forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are under development
        head = nn.LazyLinear(3)
    params = make_params(SHAPES)
    opt = build(params, head.parameters())
    head(torch.ones(2, 5)).sum().backward()
    set_grads(params, make_grads(params, 0))
    before = head.weight.detach().clone()
    opt.step()
    assert not torch.equal(head.weight, before)


def test_steps_look_only_when_something_was_replaced(monkeypatch):
    """The stack and all parameters are looked at in the first step, and again when other tensors are there."""
    params, head = make_params(SHAPES), make_params(HEAD)
    opt, looks = build(params, head), []
    monkeypatch.setattr(binding, "refuse_caller", lambda *args: looks.append("stack"))
    monkeypatch.setattr(sharding.Built, "check", lambda *args: looks.append("params"))
    train(opt, [*params, *head], 0, 1)
    assert {"stack", "params"} == set(looks)
    looks.clear()
    train(opt, [*params, *head], 1, 4)
    assert looks == []
    opt.param_groups[1]["params"] = make_params(HEAD, seed=1)
    train(opt, [*params, *opt.param_groups[1]["params"]], 4, 5)
    assert looks == ["params"]


def test_state_is_a_dict_like_any_other():
    """`optimizer.state` answers whether it is empty, and survives copies, pickle and loading."""
    params, head = make_params(SHAPES), make_params(HEAD)
    opt = build(params, head)
    assert not opt.state
    train(opt, [*params, *head], 0, 2)
    opts = [opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    opt.load_state_dict(opt.state_dict())
    for each in opts:
        assert each.state
        assert type(each.state) is sharding.ParamsState
        assert each.state[torch.ones(1)] == {}


def through_dcp(opt, target, folder):
    """What torch.distributed.checkpoint reads into the items of another optimizer's state dict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is one process only
        dcp.save({"optimizer": opt.state_dict()}, checkpoint_id=folder)
        state = {"optimizer": target.state_dict()}
        dcp.load(state, checkpoint_id=folder)
    return state["optimizer"]


def test_a_plain_dict_through_torch_distributed_checkpoint(tmp_path):
    """Nobody can see who will write a dict. A new optimizer's has no items for a selection: the loss is noticed."""
    params, fresh = make_params(SHAPES), make_params(SHAPES)
    opt, other = build(params), build(fresh)
    train(opt, params, 0, 4)
    before = picture(other, fresh)
    state = through_dcp(opt, other, tmp_path)
    with pytest.raises(
        ValueError, match=r"the items .*'offsets'.*, which are missing .*torch\.distributed\.checkpoint"
    ):
        other.load_state_dict(state)
    assert_same_picture(picture(other, fresh), before)


def test_a_plain_dict_into_one_that_is_as_far(tmp_path):
    """All items are there and of the same sizes, so all are read."""
    params, others = make_params(SHAPES), make_params(SHAPES, seed=1)
    opt, other = build(params), build(others)
    train(opt, params, 0, 4)
    train(other, others, 0, 4)
    other.load_state_dict(through_dcp(opt, other, tmp_path))
    assert_same_picture(picture(other, []), picture(opt, []))


def test_a_plain_dict_of_a_new_optimizer(tmp_path):
    """Nothing is selected yet, and nothing is lost."""
    opt, other = build(make_params(SHAPES)), build(make_params(SHAPES))
    other.load_state_dict(through_dcp(opt, other, tmp_path))
    assert other.num_selected == 0
