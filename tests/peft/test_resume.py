"""C11: a stopped and resumed run is bit-equal to an uninterrupted one; foreign or damaged states are refused whole."""

import copy
import io
import pickle

import pytest
import torch
from harness import KINDS, SHAPES, assert_same_picture, leaves, make_grads, make_params, picture, set_grads
from selective_peft import D3, SelectiveAdamW
from torch.nn import Parameter

from selective_kernels.testing import assert_bitwise_equal

MIXES = {
    "bf16": [torch.bfloat16], "fp32": [torch.float32], "mixed": [torch.float32, torch.bfloat16, torch.float16],
}  # fmt: skip
STOPS = [1, 4, 9]  # after the first step, amid the selecting ones, and after the last of them
STEPS, END, BUDGET = 8, 13, 300


def lossy(param):
    """Whether a parameter's gradient is missing in some steps, so that step counters and ages differ."""
    return param.numel() in (35, 294)


def half_early(step, total_steps, budget):
    return budget // 2


def make_model(mix="bf16"):
    dtypes = MIXES[mix]
    return [
        Parameter(param.detach().to(dtypes[i % len(dtypes)])) for i, param in enumerate(make_params(SHAPES, seed=1))
    ]


def make(params, kind="AdamW", **options):
    """Three groups, the last one dense, with options that differ."""
    named = [(f"layer.{i}", param) for i, param in enumerate(params)]
    groups = [
        {"params": named[:3], "lr": 3e-3},
        {"params": named[3:6], "weight_decay": 0.3},
        {"params": named[6:], "selective": False},
    ]
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    options = {"budget": BUDGET, "total_steps": STEPS, "bias_correction": "per_entry", **momentum, **options}
    return KINDS[kind](groups, lr=1e-2, **options)


def go(opt, params, first, last):
    for step in range(first, last):
        grads = make_grads(params, step)
        set_grads(params, [None if lossy(p) and step % 3 == 1 else g for p, g in zip(params, grads, strict=True)])
        opt.step()


def through_load(opt, params, rebuild):
    """A fresh model and optimizer, via torch.save and torch.load(weights_only=True)."""
    file = io.BytesIO()
    torch.save({"model": [param.detach() for param in params], "optimizer": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params = [Parameter(value) for value in saved["model"]]
    opt = rebuild(params)
    opt.load_state_dict(saved["optimizer"])
    return opt, params


ROUTES = {
    "weights_only": through_load,
    "itself": lambda opt, params, rebuild: (opt.load_state_dict(opt.state_dict()), (opt, params))[1],
    "deepcopy": lambda opt, params, rebuild: copy.deepcopy((opt, params)),
    "pickle": lambda opt, params, rebuild: pickle.loads(pickle.dumps((opt, params))),
}


@pytest.mark.parametrize("route", sorted(ROUTES))
@pytest.mark.parametrize("mix", sorted(MIXES))
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_resume_is_bit_equal(kind, mix, route, backend):
    """C11: parameters, moments, masters, counters and selections, at every stop; the original is not disturbed."""

    def rebuild(params):
        return make(params, kind, backend=backend)

    whole = make_model(mix)
    whole_opt = rebuild(whole)
    go(whole_opt, whole, 0, END)
    expected = picture(whole_opt, whole)
    params = make_model(mix)
    opt = rebuild(params)
    done = 0
    for stop in STOPS:
        go(opt, params, done, stop)
        before = picture(opt, params)
        resumed, resumed_params = ROUTES[route](opt, params, rebuild)
        assert_same_picture(
            {k: v for k, v in picture(resumed, resumed_params).items() if "grad/" not in k},
            {k: v for k, v in before.items() if "grad/" not in k},
        )
        if route != "itself":
            go(resumed, resumed_params, stop, END)
            assert_same_picture(picture(resumed, resumed_params), expected)
            assert_same_picture(picture(opt, params), before)
        done = stop
    go(opt, params, done, END)
    assert_same_picture(picture(opt, params), expected)


@pytest.mark.parametrize("mix", ["bf16", "fp32"])
def test_resume_of_sgd_is_bit_equal(mix, backend):
    """C11 with a momentum buffer, "global" steps and a callable schedule; no dense group."""

    def rebuild(params):
        return KINDS["SGD"](
            params, lr=1e-2, momentum=0.9, dampening=0.5, budget=0.1, total_steps=STEPS, schedule=half_early,
            max_grad_norm=0.5, backend=backend,
        )  # fmt: skip

    whole = make_model(mix)
    whole_opt = rebuild(whole)
    go(whole_opt, whole, 0, END)
    params = make_model(mix)
    opt = rebuild(params)
    go(opt, params, 0, 4)
    opt, params = through_load(opt, params, rebuild)
    go(opt, params, 4, END)
    assert_same_picture(picture(opt, params), picture(whole_opt, whole))


def test_a_state_saved_before_the_first_step_starts_anew(backend):
    """C11: nothing is selected yet, so nothing is restored, and the target's own selection goes."""
    fresh = make(make_model(), backend=backend).state_dict()
    params = make_model()
    opt = make(params, backend=backend)
    go(opt, params, 0, 3)
    assert opt.num_selected > 0
    opt.load_state_dict(fresh)
    assert (opt.num_selected, opt.skipped_steps) == (0, 0)


@pytest.mark.parametrize(("saved_on", "loaded_on"), [("cpu", "reference"), ("reference", "cpu")])
def test_the_other_backend_selects_the_same_next(saved_on, loaded_on):
    """C11: given equal inputs the next selection is bit-equal elsewhere."""
    params = make_model("mixed")
    opt = make(params, backend=saved_on)
    go(opt, params, 0, 4)
    other, other_params = through_load(opt, params, lambda fresh: make(fresh, backend=loaded_on))
    before = opt.num_selected
    go(opt, params, 4, 5)
    go(other, other_params, 4, 5)
    assert opt.num_selected > before
    for mine, theirs in zip(params[:6], other_params[:6], strict=True):
        assert torch.equal(opt.selected_indices(mine), other.selected_indices(theirs))


def test_state_holds_tensors_and_primitives_only():
    """C11: what weights_only=True and accelerate's move_to_device can carry; containers are plain."""
    params = make_model("mixed")
    opt = make(params)
    go(opt, params, 0, 5)

    def check(tree):
        if type(tree) in (dict, list, tuple):
            for each in tree.values() if isinstance(tree, dict) else tree:
                check(each)
        else:
            assert type(tree) in (torch.Tensor, int, float, str, bool, type(None)), type(tree)

    check(opt.state_dict())
    assert {"version", "names", "sizes", "offsets", "arrays"} <= set(opt.state_dict()["state"]["selective"])


def test_loaded_state_is_not_aliased():
    """C11: torch copies string-keyed state verbatim; here neither side sees what the other one does later."""
    params = make_model()
    opt = make(params)
    go(opt, params, 0, 5)
    saved = opt.state_dict()["state"]["selective"]
    kept = copy.deepcopy(saved)
    resumed, resumed_params = through_load(opt, params, make)
    state = resumed.state_dict()
    state["state"]["selective"] = saved
    resumed.load_state_dict(state)
    go(resumed, resumed_params, 5, 7)
    go(opt, params, 5, 7)
    for path, leaf in leaves(saved).items():
        if isinstance(leaf, torch.Tensor):
            assert_bitwise_equal(leaf, leaves(kept)[path], path)
    before = picture(resumed, resumed_params)
    for leaf in leaves(saved).values():
        if isinstance(leaf, torch.Tensor):
            leaf.zero_()
    assert_same_picture(picture(resumed, resumed_params), before)


def test_a_share_stays_what_it_was_in_the_first_step():
    """C5, C11: a float budget is fixed in the first step; parameters unfrozen later do not change it on resume."""
    params = make_params([(100,), (100,)])
    opt = SelectiveAdamW(params, budget=0.1, total_steps=4, score=D3(exp=0.0))
    params[1].requires_grad_(False)
    set_grads(params, [torch.ones(100), None])
    opt.step()
    params[1].requires_grad_(True)
    resumed = SelectiveAdamW(params, budget=0.1, total_steps=4, score=D3(exp=0.0))
    resumed.load_state_dict(opt.state_dict())
    for _ in range(4):
        set_grads(params, [torch.ones(100)] * 2)
        resumed.step()
    assert resumed.num_selected == 10
