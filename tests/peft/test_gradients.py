"""C3, C8, C9: which gradients count, that they stay as they are, and what bad ones do."""

import warnings

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, set_grads, train
from selective_peft import D3, SelectiveAdamW

from selective_kernels.testing import assert_bitwise_equal

BUDGET = 200
STEPS = 8  # scheduled; a scan happens in each of them
SCANNING, LATER = 3, 10  # number of steps done before a bad gradient comes: the next one scans, or does not
BAD = [float("nan"), float("inf"), float("-inf")]
COUNTED = ("/skipped_steps",)  # the only thing that a skipped step may change


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


def spoil(opt, params, where, value, step):
    """Gradients of a step with one bad entry: in a selected entry, an unselected one, or the dense group."""
    grads = make_grads(params, step)
    if where == "dense":
        grads[7][100] = value
    else:
        offsets = opt.selected_indices(params[3])
        entry = offsets[0] if where == "selected" else next(i for i in range(4489) if i not in offsets.tolist())
        grads[3].view(-1)[entry] = value
    set_grads(params, grads)


def quiet_step(opt):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return opt.step()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("done", "where"),
    [
        (SCANNING, "selected"), (SCANNING, "unselected"), (SCANNING, "dense"),
        (LATER, "selected"), (LATER, "dense"),
    ],
)  # fmt: skip
def test_a_bad_gradient_skips_the_whole_step(done, where, value, backend):
    """C9: no bit of parameters, state, counters or selection changes; the step is counted."""
    opt, params = make(backend=backend)
    train(opt, params, 0, done)
    spoil(opt, params, where, value, done)
    before = picture(opt, params)
    quiet_step(opt)
    assert_same_picture(picture(opt, params), before, COUNTED)
    assert opt.skipped_steps == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_skipped_step_leaves_no_trace(kind, dtype, backend):
    """C9, C5: a run with skipped steps in it ends bit-equal to one without them, in state and schedule too."""
    clean, clean_params = make(kind, dtype, backend=backend, bias_correction="per_entry")
    train(clean, clean_params, 0, LATER + 2)
    opt, params = make(kind, dtype, backend=backend, bias_correction="per_entry")
    for step in range(LATER + 2):
        for where in ("selected", "dense") if step else ("dense",):
            spoil(opt, params, where, float("nan"), step)
            quiet_step(opt)
        train(opt, params, step, step + 1)
    assert opt.skipped_steps == 2 * (LATER + 2) - 1
    assert_same_picture(picture(opt, params), picture(clean, clean_params), COUNTED)


@pytest.mark.parametrize("where", ["unselected", "dense"])
def test_the_very_first_step_can_be_skipped(where, backend):
    """C9 when nothing has been set up yet."""
    opt, params = make(backend=backend)
    before = [param.detach().clone() for param in params]
    spoil(opt, params, where, float("nan"), 0)
    quiet_step(opt)
    assert (opt.skipped_steps, opt.num_selected, opt.state_dict()["state"]["selective"]["step"]) == (1, 0, 0)
    for param, old in zip(params, before, strict=True):
        assert_bitwise_equal(param.detach(), old)
    assert not opt.state  # the dense group has no moments yet


def test_an_unread_gradient_does_not_count(backend):
    """C9: a step that does not scan reads selective gradients at the selected entries only."""
    opt, params = make(backend=backend)
    train(opt, params, 0, LATER)
    spoil(opt, params, "unselected", float("nan"), LATER)
    before = params[0].detach().clone()
    opt.step()
    assert opt.skipped_steps == 0
    assert not torch.equal(params[0].detach(), before)


def test_one_warning_for_all_skipped_steps(backend):
    """C9: warned about once, counted always."""
    opt, params = make(backend=backend)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(4):
            spoil(opt, params, "dense", float("inf"), step)
            opt.step()
    assert opt.skipped_steps == 4
    assert len([w for w in caught if "skipped" in str(w.message)]) == 1


@pytest.mark.parametrize("done", [SCANNING, LATER])
@pytest.mark.parametrize(("where", "name"), [("selected", "layer.3"), ("dense", "layer.7")])
def test_raise_names_the_parameter_and_changes_nothing(where, name, done, backend):
    """C9: nonfinite="raise"."""
    params = make_params()
    named = [(f"layer.{i}", param) for i, param in enumerate(params)]
    groups = [{"params": named[:6]}, {"params": named[6:], "selective": False}]
    opt = SelectiveAdamW(groups, budget=BUDGET, total_steps=STEPS, nonfinite="raise", backend=backend)
    train(opt, params, 0, done)
    spoil(opt, params, where, float("nan"), done)
    before = picture(opt, params)
    with pytest.raises(FloatingPointError, match=name.replace(".", r"\.")) as caught:
        opt.step()
    assert f"layer.{10 - int(name[-1])}" not in str(caught.value)  # the other one of 3 and 7 is clean
    assert_same_picture(picture(opt, params), before)
    assert opt.skipped_steps == 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_are_not_modified(kind, dtype, backend):
    """C8: bit for bit, in selecting and later steps, clipping on, dense groups included."""
    opt, params = make(kind, dtype, backend=backend, max_grad_norm=1e-3)
    for step in range(LATER):
        grads = make_grads(params, step)
        set_grads(params, grads)
        opt.step()
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            assert_bitwise_equal(param.grad, grad, f"gradient {i} in step {step}")


def test_a_gradient_may_be_strided(backend):
    """C1: a transposed or expanded gradient counts by its logical order, and stays as it is."""
    plain, other = make_params([(40, 30), (20, 10)]), make_params([(40, 30), (20, 10)])
    run = [SelectiveAdamW(params, lr=1e-2, budget=100, total_steps=4, backend=backend) for params in (plain, other)]
    for step in range(6):
        transposed = make_grads([torch.empty(30, 40)], step)[0].t()
        expanded = make_grads([torch.empty(20, 1)], step)[0].expand(20, 10)
        set_grads(plain, [transposed.contiguous(), expanded.contiguous()])
        other[0].grad, other[1].grad = transposed, expanded
        for opt in run:
            opt.step()
        assert other[0].grad is transposed
        assert not other[0].grad.is_contiguous()
    assert_same_picture(
        {k: v for k, v in picture(run[1], other).items() if "grad" not in k},
        {k: v for k, v in picture(run[0], plain).items() if "grad" not in k},
    )


def test_zero_gradients_are_never_selected(dtype, backend):
    """C3: not even when the budget could take them, and not -0.0; they are selected once they have a gradient."""
    params = make_params([(300,), (200, 3)], dtype)
    opt = SelectiveAdamW(params, budget=900, total_steps=1, score=D3(exp=1.0), select_every=1, backend=backend)
    for step in range(2):
        grads = make_grads(params, step)
        grads[1][:150] = 0.0
        grads[1][150:160] = -0.0
        set_grads(params, grads)
        opt.step()
    nonzero = [grad.reshape(-1).nonzero().reshape(-1) for grad in make_grads(params, 0)]
    assert torch.equal(opt.selected_indices(params[0]), nonzero[0])
    assert torch.equal(opt.selected_indices(params[1]), nonzero[1][nonzero[1] >= 480])


def test_none_gradients_score_nothing_and_update_nothing(backend):
    """C8: the rest of the model goes on."""
    opt, params = make(backend=backend)
    for step in range(STEPS):
        grads = make_grads(params, step)
        set_grads(params, [None if i in (3, 7) else grad for i, grad in enumerate(grads)])
        opt.step()
    assert len(opt.selected_indices(params[3])) == 0
    assert torch.equal(params[3].detach(), make_params()[3].detach())
    assert torch.equal(params[7].detach(), make_params()[7].detach())
    assert 0 < opt.num_selected < BUDGET  # tensors 0 to 5 without 3 hold less than the budget


@pytest.mark.parametrize("done", [0, SCANNING, LATER])
def test_no_gradients_at_all_is_a_no_op(done, backend):
    """C8: as in torch; it is neither a step of the schedule nor a skipped one."""
    opt, params = make(backend=backend)
    train(opt, params, 0, done)
    set_grads(params, [None] * len(params))
    before = picture(opt, params) if done else None
    opt.step()
    assert (opt.num_selected > 0) == (done > 0)
    assert opt.skipped_steps == 0
    if before:
        assert_same_picture(picture(opt, params), before)
    train(opt, params, done, LATER)
    whole, whole_params = make(backend=backend)
    train(whole, whole_params, 0, LATER)
    train(opt, params, LATER, LATER + 1)
    train(whole, whole_params, LATER, LATER + 1)
    assert_same_picture(picture(opt, params), picture(whole, whole_params))
