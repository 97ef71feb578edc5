"""C12: it is a torch.optim.Optimizer, for schedulers, scalers, closures, hooks and changing groups."""

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, set_grads, train
from selective_peft import D3, SelectiveAdamW, SelectiveSGD
from torch import nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

SHAPES = [(30, 20), (20,), (3, 3, 5)]
SCALARS = 665
STEPS = 8
TORCH = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam, "SGD": torch.optim.SGD}
# With the whole model selected in the first step, the result is torch's to rounding: what is compared is the options.
EVERYTHING = {"budget": SCALARS, "total_steps": 1, "score": D3(exp=0.0)}


def dense_grads(params, step):
    """Gradients without zeros, so that all entries are selected at once."""
    return [grad + 0.01 * (grad == 0) for grad in make_grads(params, step)]


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 10, generator=generator, dtype=next(model.parameters()).dtype)
    return model(x).square().mean()


SCHEDULERS = {
    "lambda": lambda opt: LambdaLR(opt, lambda step: 1.0 / (1 + step)),
    "one cycle": lambda opt: OneCycleLR(opt, max_lr=1e-2, total_steps=STEPS + 1, div_factor=4.0),  # cycles betas too
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_schedulers_work_as_with_torch(kind, name, backend):
    """C12: lr, and what else a scheduler writes into groups, is read at each step."""
    ours, theirs = make_params(SHAPES), make_params(SHAPES)
    options = {"lr": 1e-2, "weight_decay": 0.1} | ({"momentum": 0.9} if kind == "SGD" else {})
    opts = [KINDS[kind](ours, backend=backend, **options, **EVERYTHING), TORCH[kind](theirs, **options)]
    schedulers = [SCHEDULERS[name](opt) for opt in opts]
    for step in range(STEPS):
        for params, opt, scheduler in zip((ours, theirs), opts, schedulers, strict=True):
            set_grads(params, dense_grads(params, step))
            opt.step()
            scheduler.step()
    assert opts[0].num_selected == SCALARS
    assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr() != [1e-2]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_lr_may_be_a_tensor(kind, backend):
    """C12: read at each step, and so is one that is filled in place."""
    runs = []
    for lr in (1e-2, torch.tensor(1e-2)):
        params = make_params(SHAPES)
        groups = [{"params": params[:2]}, {"params": params[2:], "selective": False}]
        opt = KINDS[kind](groups, lr=lr, weight_decay=0.1, budget=50, total_steps=2, backend=backend)
        train(opt, params, 0, 2)
        for group in opt.param_groups:
            if isinstance(lr, torch.Tensor):
                group["lr"].fill_(3e-3)
            else:
                group["lr"] = float(torch.tensor(3e-3))
        train(opt, params, 2, 4)
        runs.append(params)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCES[torch.float32])


def test_closure(backend):
    """C12: evaluated with gradients on, once, before anything is read; its value is returned."""
    models, losses = [make_model(), make_model()], []
    opts = [SelectiveAdamW(m.parameters(), lr=1e-2, budget=40, total_steps=3, backend=backend) for m in models]
    for step in range(4):
        calls = []

        def closure(calls=calls, step=step):
            calls.append(torch.is_grad_enabled())
            opts[0].zero_grad()
            loss = loss_of(models[0], step)
            loss.backward()
            return loss

        losses.append(opts[0].step(closure))
        assert calls == [True]
        opts[1].zero_grad()
        loss = loss_of(models[1], step)
        loss.backward()
        assert opts[1].step() is None
        assert losses[-1].item() == loss.item()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_bitwise_equal(a, b)


def test_named_parameters(backend):
    """C12: names go to param_names, and the result is that of unnamed parameters."""
    models = [make_model(), make_model()]
    given = [models[0].named_parameters(), models[1].parameters()]
    opts = [SelectiveAdamW(params, lr=1e-2, budget=40, total_steps=3, backend=backend) for params in given]
    for step in range(4):
        for model, opt in zip(models, opts, strict=True):
            opt.zero_grad()
            loss_of(model, step).backward()
            opt.step()
    assert opts[0].param_groups[0]["param_names"] == [name for name, _ in models[0].named_parameters()]
    assert opts[0].state_dict()["state"]["selective"]["names"] == opts[0].param_groups[0]["param_names"]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(opts[0].selected_indices(a), opts[1].selected_indices(b))
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("bias_correction", ["global", "per_entry"])
@pytest.mark.parametrize("added", [0, 3, 9])
@pytest.mark.parametrize("is_selective", [True, False])
def test_a_group_added_later(is_selective, added, bias_correction, dtype, backend):
    """C12: before the first step, amid the run, after the budget; its entries compete from then on; it resumes."""
    first, second = make_params(SHAPES, dtype), make_params([(25, 4), (9,)], dtype, seed=1)

    def build():
        return SelectiveAdamW(
            first, lr=1e-2, budget=100, total_steps=6, bias_correction=bias_correction, backend=backend
        )

    opt = build()
    train(opt, first, 0, added)
    frozen = [param.detach().clone() for param in second]
    opt.add_param_group({"params": second, "selective": is_selective, "lr": 2e-2})
    if is_selective:
        assert all(len(opt.selected_indices(param)) == 0 for param in second)
    state = opt.state_dict()
    opt.load_state_dict(state)  # what accelerate's prepare() does, and a resumed run
    again = build()
    again.add_param_group({"params": second, "selective": is_selective, "lr": 2e-2})
    again.load_state_dict(state)
    train(opt, [*first, *second], added, 12)
    assert opt.num_selected == 100
    taken = sum(len(opt.selected_indices(param)) for param in second) if is_selective else 0
    assert (taken > 0) == (is_selective and added < 6)
    for param, old in zip(second, frozen, strict=True):
        changed = (param.detach() != old).reshape(-1).nonzero().reshape(-1)
        if is_selective:
            assert set(changed.tolist()) <= set(opt.selected_indices(param).tolist())
        else:
            assert len(changed) > 0.7 * param.numel()  # a fifth of the gradients of each step is zero


def test_hooks_and_zero_grad(backend):
    """C12: step hooks run around each step, and a pre-hook may still change gradients."""
    params, seen = make_params([(50,)]), []
    opt = SelectiveSGD(params, lr=1.0, budget=50, total_steps=1, score=D3(exp=0.0), backend=backend)

    def halve(opt, args, kwargs):
        seen.append("before")
        params[0].grad.mul_(0.5)

    opt.register_step_pre_hook(halve)
    opt.register_step_post_hook(lambda opt, args, kwargs: seen.append("after"))
    before = params[0].detach().clone()
    params[0].grad = torch.ones(50)
    opt.step()
    assert seen == ["before", "after"]
    torch.testing.assert_close(params[0].detach(), before - 0.5)
    opt.zero_grad()
    assert params[0].grad is None


def test_grad_scaler(backend):
    """C12: gradients are unscaled before the step, and an overflow is skipped by the scaler without a trace."""
    model, plain = make_model(), make_model()
    opts = [SelectiveAdamW(m.parameters(), lr=1e-2, budget=40, total_steps=6, backend=backend) for m in (model, plain)]
    scaler = torch.amp.GradScaler(device="cpu", init_scale=1024.0)
    assert not hasattr(opts[0], "_step_supports_amp_scaling")
    for step in range(6):
        for opt in opts:
            opt.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        loss_of(plain, step).backward()
        if step == 2:
            model[0].weight.grad[0, 0] = float("inf")
            before, scale = picture(opts[0], list(model.parameters())), scaler.get_scale()
            assert scaler.step(opts[0]) is None
            scaler.update()
            after = picture(opts[0], list(model.parameters()))
            keep = [{k: v for k, v in each.items() if "grad/" not in k} for each in (after, before)]
            assert_same_picture(*keep)
            assert (opts[0].skipped_steps, scaler.get_scale()) == (0, scale / 2)
            scaler.scale(loss_of(model, step)).backward()
            model.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
        scaler.step(opts[0])
        scaler.update()
        opts[1].step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):  # scales are powers of two: exact
        assert_bitwise_equal(a, b)
    assert opts[0].num_selected == 40


def test_parameters_may_be_replaced_before_the_first_step(backend):
    """C12: what FSDP and TPU wrappers do: other tensors in param_groups, or other data in the same ones."""
    opt = SelectiveAdamW(make_params(SHAPES), lr=1e-2, budget=60, total_steps=3, backend=backend)
    params = make_params(SHAPES, torch.bfloat16, seed=5)
    opt.param_groups[0]["params"] = params
    train(opt, params, 0, 4)
    expected = make_params(SHAPES, torch.bfloat16, seed=5)
    train(SelectiveAdamW(expected, lr=1e-2, budget=60, total_steps=3, backend=backend), expected, 0, 4)
    for a, b in zip(params, expected, strict=True):
        assert_bitwise_equal(a, b)


def test_a_model_may_change_its_dtype_before_the_first_step(backend):
    """C12: `model.to(torch.bfloat16)` after the optimizer was built; the master copies are there."""
    model = make_model()
    opt = SelectiveAdamW(model.parameters(), lr=1e-2, budget=40, total_steps=3, backend=backend)
    model.to(torch.bfloat16)
    for step in range(4):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()
    assert opt.state_dict()["state"]["selective"]["arrays"]["master"].shape == (40,)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_a_model_may_not_change_its_dtype_after_steps(change, backend):
    """C12, C14: the state would not fit any more; nothing is changed."""
    model = make_model()
    opt = SelectiveAdamW(model.parameters(), lr=1e-2, budget=40, total_steps=3, backend=backend)
    loss_of(model, 0).backward()
    opt.step()
    state = picture(opt, [])
    model.zero_grad()
    change(model)
    loss_of(model, 1).backward()
    before = [param.detach().clone() for param in model.parameters()]
    with pytest.raises((RuntimeError, TypeError), match="expected"):
        opt.step()
    assert_same_picture(picture(opt, []), state)
    assert all(torch.equal(p.detach(), old) for p, old in zip(model.parameters(), before, strict=True))


def test_data_may_be_replaced_between_steps(backend):
    """C12: addresses are read anew; `param.data = ...` of the same size and dtype goes on with the new values."""
    params, other = make_params(SHAPES), make_params(SHAPES)
    opts = [SelectiveAdamW(each, lr=1e-2, budget=60, total_steps=3, backend=backend) for each in (params, other)]
    for step in range(4):
        for param in params:
            param.data = param.data.clone()
        for each, opt in zip((params, other), opts, strict=True):
            train(opt, each, step, step + 1)
    for a, b in zip(params, other, strict=True):
        assert_bitwise_equal(a, b)


def test_a_tied_tensor_counts_once(backend):
    """C1: `model.parameters()` gives it once, and all its entries can be selected once."""
    model = nn.Sequential(nn.Embedding(12, 5), nn.Linear(5, 12, bias=False))
    model[1].weight = model[0].weight
    opt = SelectiveAdamW(model.parameters(), lr=1e-2, budget=60, total_steps=1, score=D3(exp=0.0), backend=backend)
    model(torch.arange(12)).square().sum().backward()
    opt.step()
    assert opt.num_selected == 60 == model[0].weight.numel()


def test_a_0d_parameter_and_repr(backend):
    """C12: a scalar parameter trains, and the optimizer prints its groups as torch's do."""
    scale = Parameter(torch.tensor(2.0))
    opt = SelectiveSGD([scale], lr=0.5, budget=1, total_steps=1, backend=backend)
    scale.grad = torch.tensor(1.0)
    opt.step()
    assert (scale.item(), opt.selected_indices(scale).tolist()) == (1.5, [0])
    assert "SelectiveSGD" in repr(opt)
    assert "lr: 0.5" in repr(opt)
