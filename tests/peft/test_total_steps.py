"""C5, C11: a number of steps that is said after construction; a run that has begun keeps its own."""

import copy
import pickle
import warnings

import pytest
import torch
from harness import KINDS, assert_same_picture, make_params, picture, set_grads, train
from selective_peft import SelectiveAdamW, selective

STEPS, BUDGET = 6, 100


def make(total_steps="later", kind=SelectiveAdamW, **options):
    params = make_params(seed=1)
    options = {"budget": BUDGET, "select_every": 2, "schedule": "linear", **options}
    return kind(params, lr=1e-2, total_steps=total_steps, **options), params


def finished(opt, params, first=0):
    train(opt, params, first, STEPS + 2)
    return picture(opt, params)


@pytest.mark.parametrize(
    "kind", [*KINDS.values(), lambda params, **given: selective(torch.optim.RMSprop, params, **given)]
)
@pytest.mark.parametrize("budget", [BUDGET, 0.03])
def test_what_is_said_later_is_as_if_it_had_been_given(kind, budget):
    opt, params = make(kind=kind, budget=budget)
    assert opt.total_steps is None
    opt.set_total_steps(STEPS + 3)
    opt.set_total_steps(STEPS)  # the last word before the first step counts
    assert opt.total_steps == STEPS
    expected = finished(*make(STEPS, kind=kind, budget=budget))
    assert_same_picture(finished(opt, params), expected)


def test_a_first_step_without_it_changes_nothing():
    """C14: one sentence says what to do; then the run can begin."""
    opt, params = make()
    before = picture(opt, params)
    with pytest.raises(RuntimeError, match=r"^total_steps: expected a number before .* give total_steps, call set_tot"):
        train(opt, params, 0, 1)
    set_grads(params, [None] * len(params))
    assert_same_picture(picture(opt, params), before)
    opt.set_total_steps(STEPS)
    assert_same_picture(finished(opt, params), finished(*make(STEPS)))


@pytest.mark.parametrize("value", [0, -1, 2.5, None, True, "later", "soon"])
def test_what_is_no_number_of_steps_is_refused(value):
    opt, _ = make()
    with pytest.raises(ValueError, match=rf"^total_steps: expected an integer >= 1, got {value!r}"):
        opt.set_total_steps(value)
    if value != "later":
        with pytest.raises(ValueError, match=r"^total_steps: expected an integer >= 1, got "):
            make(value)


def test_what_was_given_stays():
    """No word about it: it was meant."""
    opt, params = make(STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.set_total_steps(STEPS + 5)
        assert opt.total_steps == STEPS
        train(opt, params, 0, 1)
        opt.set_total_steps(STEPS + 5)
    assert opt.total_steps == STEPS


def test_a_run_that_has_begun_keeps_its_own_and_says_so_once():
    opt, params = make()
    opt.set_total_steps(STEPS)
    train(opt, params, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.set_total_steps(STEPS)
    with pytest.warns(UserWarning, match=r"total_steps: 6, .* stays its value, not 9: "):
        opt.set_total_steps(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.set_total_steps(12)
    assert_same_picture(finished(opt, params, 1), finished(*make(STEPS)))


@pytest.mark.parametrize("said", [None, STEPS, 9])
@pytest.mark.parametrize("budget", [BUDGET, 0.03])
def test_a_checkpoint_says_it(said, budget):
    """C11: also over what was said before loading; then a warning names both."""
    whole, params = make(STEPS, budget=budget)
    train(whole, params, 0, 3)
    resumed, theirs = make(budget=budget)
    with torch.no_grad():
        for mine, other in zip(theirs, params, strict=True):
            mine.copy_(other)
    if said is not None:
        resumed.set_total_steps(said)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        resumed.load_state_dict(whole.state_dict())
        resumed.set_total_steps(9)
    assert [str(each.message)[:34] for each in told] == ["total_steps: 6, with which this ru"]
    assert resumed.total_steps == STEPS
    assert_same_picture(finished(resumed, theirs, 3), finished(whole, params, 3))


def test_an_open_one_and_a_given_one_continue_each_other():
    opt, params = make()
    opt.set_total_steps(STEPS)
    train(opt, params, 0, 3)
    given, _ = make(STEPS)
    given.load_state_dict(opt.state_dict())
    other, _ = make(STEPS + 1)
    with pytest.raises(ValueError, match="total_steps: expected 7, got 6"):
        other.load_state_dict(opt.state_dict())
    assert other.num_selected == 0


@pytest.mark.parametrize(("value", "message"), [
    (STEPS + 1, "schedule: expected 7 items, got 6"), (0, "total_steps: expected an integer >= 1, got 0"),
    ("6", "total_steps: expected an integer >= 1, got '6'"),
])  # fmt: skip
def test_a_damaged_number_is_refused(value, message):
    """C11, C14: nothing is taken over."""
    opt, params = make(STEPS)
    train(opt, params, 0, 3)
    state = opt.state_dict()
    state["state"]["selective"]["total_steps"] = value
    resumed, _ = make()
    with pytest.raises(ValueError, match=message):
        resumed.load_state_dict(state)
    assert resumed.total_steps is None
    assert not resumed.begun


def test_a_state_from_before_the_first_step_leaves_it_open():
    """Accelerate sends a fresh optimizer through its own state."""
    opt, params = make()
    opt.load_state_dict(opt.state_dict())
    assert opt.total_steps is None
    opt.set_total_steps(STEPS)
    opt.load_state_dict(opt.state_dict())
    assert_same_picture(finished(opt, params), finished(*make(STEPS)))


@pytest.mark.parametrize("route", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_know_it(route):
    opt, params = make()
    opt.set_total_steps(STEPS)
    opt, params = route((opt, params))
    assert_same_picture(finished(opt, params), finished(*make(STEPS)))


@pytest.mark.parametrize("options", [{"method": "bitfit"}, {"method": "full"}])
def test_methods_without_a_budget_need_none(options):
    params = make_params(seed=1)
    named = [(f"{i}.bias", param) for i, param in enumerate(params)]
    opt = SelectiveAdamW(named, total_steps="later", **options)
    train(opt, params, 0, 2)
    opt.set_total_steps(5)
    assert opt.total_steps == 1
