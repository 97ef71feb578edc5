"""C9 where nobody waits: with schedulers, scalers, closures, methods, whole models, and what is warned about, all is as
if each step had waited.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, set_grads
from selective_peft import SelectiveAdamW, selective
from selective_peft.tensor_scores import PerTensor, Spent
from torch.nn import Parameter

BUDGET, STEPS, LAST = 200, 4, 8
BAD = {1: 3, 2: 7, 5: 3, 6: 7, 7: 3}  # by step: which gradient is not finite
DENSE = 6  # from this one on tensors are in a group that is trained whole


def groups_of(params):
    return [{"params": params[:DENSE]}, {"params": params[DENSE:], "selective": False}]


def grads_of(params, step, bad=BAD):
    grads = make_grads(params, step)
    if step in bad:
        grads[bad[step]].fill_(float("nan"))
    return grads


def plain(opt, params):
    for step in range(LAST):
        set_grads(params, grads_of(params, step))
        opt.step()


def by_schedulers(opt, params):
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0 / (1 + step)),
        torch.optim.lr_scheduler.StepLR(opt, 3),
    ]
    for step in range(LAST):
        set_grads(params, grads_of(params, step))
        opt.step()
        for scheduler in schedulers:
            scheduler.step()


def by_closure(opt, params):
    for step in range(LAST):

        def closure(step=step):
            set_grads(params, grads_of(params, step))
            return step

        assert opt.step(closure) == step


def by_scaler(opt, params):
    """The scaler skips steps of its own; those that the optimizer sees are scaled back."""
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
    for step in range(LAST):
        opt.zero_grad()
        grads = make_grads(params, step)
        loss = sum((param * grad).sum() for param, grad in zip(params, grads, strict=True))
        scaler.scale(loss).backward()
        if step == 2:
            params[3].grad.fill_(float("inf"))
        scaler.step(opt)
        if step == 5:
            params[7].grad.fill_(float("inf"))
            opt.step()
        scaler.update()


def through_state_dicts(opt, params):
    """Also right after a step that is skipped."""
    for step in range(LAST):
        set_grads(params, grads_of(params, step))
        opt.step()
        opt.load_state_dict(opt.state_dict())


def with_a_group_more(opt, params):
    """Added right after a step that is skipped."""
    for step in range(LAST):
        set_grads(params, grads_of(params, step))
        opt.step()
        if step == 5:
            more = make_params([(9, 2)], seed=5)
            opt.add_param_group({"params": more})
            set_grads(more, make_grads(more, step))


MAKERS = {
    "AdamW": lambda params: SelectiveAdamW(groups_of(params), lr=1e-2, budget=BUDGET, total_steps=STEPS),
    "SGD": lambda params: KINDS["SGD"](
        groups_of(params), lr=1e-2, budget=BUDGET, total_steps=STEPS, momentum=0.9, max_grad_norm=0.5
    ),
    "static": lambda params: SelectiveAdamW(groups_of(params), budget=BUDGET, total_steps=STEPS, method="pafi"),
    "warm-up": lambda params: SelectiveAdamW(
        groups_of(params), budget=BUDGET, total_steps=STEPS, method="diff", method_kwargs={"warmup_steps": 2}
    ),
    "repeat": lambda params: SelectiveAdamW(groups_of(params), budget=BUDGET, total_steps=STEPS, strategy="repeat"),
    "wrapped": lambda params: selective(torch.optim.RMSprop, groups_of(params), budget=BUDGET, total_steps=STEPS),
    "each tensor": lambda params: SelectiveAdamW(groups_of(params), budget=BUDGET, total_steps=STEPS, scope="tensor"),
}
WAYS = [plain, by_schedulers, by_closure, by_scaler, through_state_dicts, with_a_group_more]
RUNS = [*(("AdamW", way) for way in WAYS), *(("SGD", way) for way in WAYS), *((name, plain) for name in MAKERS)]


@contextmanager
def caught():
    """The warnings about steps that were skipped."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        texts = []
        yield texts
        texts += [str(each.message) for each in found if "inf or NaN" in str(each.message)]


def run(name, way):
    params = make_params()
    with caught() as texts:
        opt = MAKERS[name](params)
        way(opt, params)
        found = picture(opt, params)
    return opt, found, texts


@pytest.mark.parametrize(("name", "way"), RUNS, ids=lambda each: getattr(each, "__name__", each))
def test_everything_is_as_if_each_step_had_waited(name, way, request):
    """The warning, too: its text, and that it comes once."""
    expected, first, text = run(name, way)
    request.getfixturevalue("deferring")
    opt, second, same_text = run(name, way)
    assert_same_picture(second, first)
    assert expected.skipped_steps > 0
    assert text == same_text
    assert len(text) == 1
    assert torch.equal(opt.selected_per_step(), expected.selected_per_step())
    assert opt.state_nbytes() == expected.state_nbytes()


@pytest.mark.parametrize(("name", "settled_at_once"), [("warm-up", 2), ("repeat", LAST), ("wrapped", LAST)])
@pytest.mark.filterwarnings("ignore:strategy 'repeat'")
def test_what_decides_on_the_host_leaves_nothing_open(name, settled_at_once, deferring):
    params = make_params()
    opt = MAKERS[name](params)
    for step in range(LAST):
        set_grads(params, make_grads(params, step))
        opt.step()
        assert (opt._pending is None) == (step < settled_at_once), step


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_are_trained_whole(kind):
    """Parameters that no fused kernel takes are among them, and those of several dtypes."""
    pictures = []
    for defers in (False, True):
        params = [*make_params(), *make_params(dtype=torch.bfloat16), Parameter(torch.full((3,), 1.0 + 2.0j))]
        params.append(Parameter(torch.ones(4, dtype=torch.float64)))
        opt = KINDS[kind](params, lr=1e-2, method="full", **({"momentum": 0.9} if kind == "SGD" else {}))
        opt._bind()
        opt._defers = defers  # as with CUDA tensors
        with caught() as texts:
            for step in range(LAST):
                params[-2].grad = torch.full((3,), 0.5 - 1.0j) * (step + 1)
                params[-1].grad = torch.full((4,), 1e300, dtype=torch.float64)
                set_grads(params[:-2], grads_of(params[:-2], step, {0: 3, 4: 12, 5: 3, 7: 1}))
                if step == 6:
                    params[-2].grad[1] = complex(0.0, float("inf"))
                opt.step()
                assert (opt._pending is not None) == defers
            assert opt.skipped_steps == 4  # the gradient without entries is finite
        pictures.append((picture(opt, params), texts))
    assert_same_picture(pictures[1][0], pictures[0][0])
    assert pictures[1][1] == pictures[0][1]


def test_scores_that_were_handed_in_are_kept_until_it_is_known_that_they_have_served(deferring):
    params = make_params()
    named = [(f"w{i}", param) for i, param in enumerate(params)]
    scores = {name: param.detach().abs() + 1.0 for name, param in named}
    opt = SelectiveAdamW(named, budget=BUDGET, total_steps=STEPS, method="fish", method_kwargs={"scores": scores})
    set_grads(params, grads_of(params, 0, {0: 3}))
    opt.step()
    assert isinstance(opt._settings.score, PerTensor)
    with pytest.warns(UserWarning, match=r"^step 0: skipped"):
        assert opt.num_selected == 0
    assert isinstance(opt._settings.score, PerTensor)
    set_grads(params, make_grads(params, 0))
    opt.step()
    assert opt.num_selected == BUDGET
    assert isinstance(opt._settings.score, Spent)


def test_that_nothing_was_selected_is_said_once(deferring):
    """Not in a last step that turns out to be skipped, but in the one that replaces it."""
    params = make_params()
    opt = SelectiveAdamW(groups_of(params), budget=BUDGET, total_steps=STEPS, select_every=STEPS)
    told = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for step in range(STEPS + 2):
            set_grads(params, [torch.zeros_like(param) for param in params])
            if step == STEPS - 1:
                params[7].grad.fill_(float("nan"))
            opt.step()
            told.append(sum("none of the budget" in str(each.message) for each in found))
    assert opt.skipped_steps == 1
    assert told == [0] * (STEPS + 1) + [1]


def test_whether_to_wait_is_decided_anew_after_loading(request):
    """The model may be on another device by then."""
    params = make_params()
    opt = MAKERS["AdamW"](params)
    for step in range(STEPS):
        set_grads(params, make_grads(params, step))
        opt.step()
    request.getfixturevalue("deferring")
    waits = request.getfixturevalue("waits")
    opt.load_state_dict(opt.state_dict())
    set_grads(params, make_grads(params, STEPS))
    opt.step()
    assert opt._pending is not None
    assert not waits
