"""C9 on backends that let nobody wait: steps go on without knowing, and nothing comes out otherwise."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, set_grads
from selective_peft import pending

BUDGET, STEPS = 200, 4  # a scan happens in each of the first steps; later ones do not select
OPTIONS = [
    {},
    {"max_grad_norm": 0.5},
    {"bias_correction": "per_entry", "select_every": 3},
    {"method": "pafi-increment", "bias_correction": "per_entry"},  # these two select without gradients
    {"method": "random", "max_grad_norm": 0.5},
]
BAD = {1: "selected", 2: "dense", 5: "selected", 6: "dense", 7: "selected", 9: "dense", 11: "selected"}


def make(kind="AdamW", dtype=torch.float32, **options):
    """The harness model in three groups, the last one dense."""
    params = make_params(dtype=dtype)
    groups = [
        {"params": params[:3]},
        {"params": params[3:6], "weight_decay": 0.3},
        {"params": params[6:], "selective": False},
    ]
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    opt = KINDS[kind](groups, lr=1e-2, weight_decay=0.1, budget=BUDGET, total_steps=STEPS, **momentum, **options)
    return opt, params


def step_with(opt, params, step, bad=None, without=()):
    grads = make_grads(params, step)
    if bad == "dense":
        grads[7][100] = float("nan")
    elif bad == "selected":
        grads[3].fill_(float("inf"))
    set_grads(params, [None if i in without else grad for i, grad in enumerate(grads)])
    opt.step()


def run(kind, dtype, steps, bad, **options):
    opt, params = make(kind, dtype, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(steps):
            step_with(opt, params, step, bad.get(step), without=(4,) if step % 4 == 3 else ())
    return opt, params


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("steps", [6, 8, 13])
def test_everything_is_as_if_each_step_had_waited(deferring, monkeypatch, kind, backend, options, steps):
    """Bad gradients in selecting and other steps, of both kinds of groups, in a row and in the last step."""
    dtype = torch.bfloat16 if steps == 8 else torch.float32
    actual = run(kind, dtype, steps, BAD, backend=backend, **options)
    monkeypatch.undo()
    expected = run(kind, dtype, steps, BAD, backend=backend, **options)
    assert expected[0].skipped_steps == sum(step < steps for step in BAD)
    assert_same_picture(picture(*actual), picture(*expected))
    assert actual[0].skipped_steps == expected[0].skipped_steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_step_of_the_dense_groups_that_is_skipped_leaves_no_state(deferring, kind):
    """Their moments begin in the first step that is made."""
    opt, params = make(kind)
    for param in params[:6]:
        param.grad = None
    params[7].grad = torch.full_like(params[7], float("nan"))
    before = params[7].detach().clone()
    opt.step()
    assert opt._pending is not None
    with pytest.warns(UserWarning, match=r"^step 0: skipped, a gradient is inf or NaN"):
        assert list(opt.state_dict()["state"]) == ["selective"]
    assert opt.skipped_steps == 1
    assert params[7] not in opt.state
    assert torch.equal(params[7], before)


def test_how_often_the_host_waits(deferring, waits):
    """Not in a step that selects nothing; for it at the begin of the next."""
    opt, params = make()
    for step in range(STEPS):
        step_with(opt, params, step)
        assert opt._pending is None
        assert len(waits) == step + 1  # for the dense groups; a deferring scan adds its own
    step_with(opt, params, STEPS)
    assert len(waits) == STEPS
    for step in range(STEPS + 1, STEPS + 4):
        step_with(opt, params, step)
        assert len(waits) == step
    assert opt.skipped_steps == 0
    assert len(waits) == STEPS + 4
    assert opt.num_selected == BUDGET
    assert len(waits) == STEPS + 4


def test_who_asks_gets_what_is_true(deferring):
    """Every way to the counters settles the last step first."""
    asks = {
        "skipped_steps": lambda opt: opt.skipped_steps == 1,
        "selected_per_step": lambda opt: len(opt.selected_per_step()) == STEPS + 1,
        "state_dict": lambda opt: opt.state_dict()["state"]["selective"]["step"] == STEPS + 1,
        "state": lambda opt: float(opt.state_dict()["state"][7]["step"]) == STEPS + 1,
        "copy": lambda opt: copy.deepcopy(opt).skipped_steps == 1,
        "pickle": lambda opt: opt.__getstate__()["_pending"] is None,  # events cannot be pickled
        "num_selected": lambda opt: opt.num_selected == BUDGET and opt._pending is None,
    }
    for name, ask in asks.items():
        opt, params = make()
        for step in range(STEPS + 1):
            step_with(opt, params, step)
        step_with(opt, params, STEPS + 1, "dense")
        assert opt._pending is not None, name
        with pytest.warns(UserWarning, match=rf"^step {STEPS + 1}: skipped"):
            assert ask(opt), name


def test_loading_forgets_the_step_that_is_not_settled(deferring):
    opt, params = make()
    for step in range(STEPS + 2):
        step_with(opt, params, step)
    saved = copy.deepcopy(opt.state_dict())
    step_with(opt, params, STEPS + 2, "dense")
    opt.load_state_dict(saved)
    assert opt.skipped_steps == 0
    assert opt.state_dict()["state"]["selective"]["step"] == STEPS + 2


def test_raise_waits(deferring):
    """nonfinite="raise" raises in the very step."""
    opt, params = make(nonfinite="raise")
    for step in range(STEPS + 1):
        step_with(opt, params, step)
    with pytest.raises(FloatingPointError, match="gradients: expected finite values, got inf or NaN"):
        step_with(opt, params, STEPS + 1, "dense")


@pytest.mark.parametrize("bad", [None, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_flag_of_dense_gradients(dtype, bad):
    grads = [torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype), torch.zeros(0), torch.ones(7)]
    if bad is not None:
        grads[0][1, 2] = bad
    grads.append(torch.full((2,), torch.finfo(torch.float32).max * (1 + 1j)))  # whose norm is not finite
    flag = pending.dense_flag(grads, torch.device("cpu"))
    assert flag.dtype is torch.int32
    assert flag.tolist() == [int(bad is not None)]
    assert pending.dense_flag([], torch.device("cpu")).tolist() == [0]
