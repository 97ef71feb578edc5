"""`selective(...)`: element-wise torch optimizers on compact vectors against their dense masked selves."""

import copy

import pytest
import torch
from harness import SHAPES, assert_same_picture, make_grads, make_params, picture, set_grads, train
from oracle import quota
from selective_peft import selective
from selective_peft.wrapped import SelectiveTorchOptimizer
from torch.nn import Parameter

from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

O = torch.optim  # noqa: E741
# With options that reach every piece of an optimizer's state.
OPTIMIZERS = {
    "Adagrad": (O.Adagrad, {"lr": 0.01, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1}),
    "RMSprop": (O.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    "RMSprop, plain": (O.RMSprop, {"lr": 0.01}),
    "Adamax": (O.Adamax, {"lr": 0.01, "weight_decay": 0.1}),
    "NAdam": (O.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "RAdam": (O.RAdam, {"lr": 0.01, "weight_decay": 0.1}),
    "Adadelta": (O.Adadelta, {"lr": 0.1}),
    "Rprop": (O.Rprop, {"lr": 0.01}),
    "AdamW, amsgrad": (O.AdamW, {"lr": 0.01, "amsgrad": True}),
    "SGD": (O.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.5}),
    "SGD, plain": (O.SGD, {"lr": 0.01}),
}
BUDGET, TOTAL = 300, 8
STEPS = 10  # two after the last selection


class DenseMasked:
    """torch's own dense optimizer fed masked gradients; what is not selected stands at zero meanwhile, so that weight
    decay has nothing to decay there, and is put back."""

    def __init__(self, params, kind, options):
        self.values = [Parameter(param.detach().float().clone()) for param in params]
        self.frozen = [param.detach().clone() for param in params]
        self.optimizer = kind(self.values, **options)

    def step(self, grads, masks):
        for value, grad, mask in zip(self.values, grads, masks, strict=True):
            value.grad = None if grad is None else torch.where(mask, grad.float(), torch.zeros(()))
        before = [value.detach().clone() for value in self.values]
        with torch.no_grad():
            for value, mask in zip(self.values, masks, strict=True):
                value[~mask] = 0.0
        self.optimizer.step()
        with torch.no_grad():
            for value, old, mask in zip(self.values, before, masks, strict=True):
                value[~mask] = old[~mask]


def masks_of(opt, params):
    found = []
    for param in params:
        mask = torch.zeros(param.numel(), dtype=torch.bool)
        mask[opt.selected_indices(param)] = True
        found.append(mask.reshape(param.shape))
    return found


def some_missing(grads, step):
    """Gradients that are None now and then: step counters of tensors drift apart."""
    return [None if (step + i) % 4 == 0 else grad for i, grad in enumerate(grads)]


@pytest.mark.parametrize("missing", [False, True], ids=["all", "some missing"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_c6_equals_the_dense_masked_optimizer(name, dtype, missing, backend):
    kind, options = OPTIMIZERS[name]
    params = make_params(dtype=dtype)
    opt = selective(kind, params, budget=BUDGET, total_steps=TOTAL, backend=backend, **options)
    dense = DenseMasked(params, kind, options)
    for step in range(STEPS):
        grads = make_grads(params, step)
        grads = some_missing(grads, step) if missing else grads
        before = opt.num_selected
        set_grads(params, grads)
        opt.step()
        if not missing:  # else a step may find too few
            assert opt.num_selected == before + quota("uniform", step, TOTAL, BUDGET, before)
        masks = masks_of(opt, params)
        dense.step(grads, masks)
        for param, value, frozen, mask in zip(params, dense.values, dense.frozen, masks, strict=True):
            assert_bitwise_equal(param.detach()[~mask], frozen[~mask])
            torch.testing.assert_close(
                param.detach()[mask].float(), value.detach()[mask].to(dtype).float(), **TOLERANCES[dtype]
            )


@pytest.mark.parametrize("name", ["RMSprop", "NAdam", "Adagrad"])
def test_c10_state_is_of_the_budget(name):
    """Offsets, history and moments of 300 scalars, and per-tensor tables: nothing of the size of the 4,466 scalars."""
    kind, options = OPTIMIZERS[name]
    params = make_params()
    opt = selective(kind, params, budget=BUDGET, total_steps=TOTAL, **options)
    train(opt, params, 0, STEPS)
    moments = {"RMSprop": 3, "NAdam": 2, "Adagrad": 1}[name]
    assert opt.state_nbytes() == BUDGET * (12 + 4 * moments) + 8 * (2 * len(SHAPES) + 1)
    assert not opt.state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_c11_resume_is_bit_equal(name, dtype, tmp_path):
    kind, options = OPTIMIZERS[name]

    def make(params):
        named = [(f"layer.{i}", param) for i, param in enumerate(params)]
        groups = [{"params": named[:5]}, {"params": named[5:6], "lr": 0.02}, {"params": named[6:], "selective": False}]
        return selective(kind, groups, budget=BUDGET, total_steps=TOTAL, **options)

    straight = make_params(dtype=dtype)
    whole = make(straight)
    half = make_params(dtype=dtype)
    first = make(half)
    for opt, params, last in ((whole, straight, STEPS), (first, half, 5)):
        for step in range(last):
            set_grads(params, some_missing(make_grads(params, step), step))
            opt.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again = [Parameter(param.detach().clone()) for param in half]
    resumed = make(again)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(5, STEPS):
        set_grads(again, some_missing(make_grads(again, step), step))
        resumed.step()
    assert_same_picture(picture(resumed, again), picture(whole, straight))


def test_a_dense_group_equals_torch():
    params = make_params()
    opt = selective(
        O.RMSprop,
        [{"params": params[:6]}, {"params": params[6:], "selective": False, "lr": 0.05}],
        budget=BUDGET,
        total_steps=TOTAL,
        momentum=0.9,
    )
    twins = [Parameter(param.detach().clone()) for param in params[6:]]
    dense = O.RMSprop(twins, lr=0.05, momentum=0.9)
    for step in range(4):
        grads = make_grads(params, step)
        set_grads(params, grads)
        set_grads(twins, grads[6:])
        opt.step()
        dense.step()
    for param, twin in zip(params[6:], twins, strict=True):
        assert_bitwise_equal(param.detach(), twin.detach())


def test_schedulers_and_tensor_rates_reach_the_wrapped_optimizer():
    def run(lr, factor_in_scheduler):
        params = make_params()
        opt = selective(O.Adamax, params, budget=BUDGET, total_steps=TOTAL, lr=lr)
        if factor_in_scheduler:
            scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
        for step in range(3):
            set_grads(params, make_grads(params, step))
            opt.step()
            if factor_in_scheduler:
                scheduler.step()
            else:
                opt.param_groups[0]["lr"] *= 0.5
        return params

    for a, b, c in zip(run(0.02, True), run(0.02, False), run(torch.tensor(0.02), True), strict=True):
        assert_bitwise_equal(a.detach(), b.detach())
        torch.testing.assert_close(a.detach(), c.detach(), rtol=1e-6, atol=0)


def test_it_is_an_optimizer_that_can_be_copied():
    params = make_params()
    opt = selective(O.RMSprop, params, budget=BUDGET, total_steps=TOTAL, lr=0.01)
    assert isinstance(opt, torch.optim.Optimizer)
    assert isinstance(opt, SelectiveTorchOptimizer)
    train(opt, params, 0, 3)
    twin, twins = copy.deepcopy((opt, params))
    train(opt, params, 3, 6)
    train(twin, twins, 3, 6)
    assert_same_picture(picture(twin, twins), picture(opt, params))


def test_arguments_of_its_own_are_the_groups_defaults():
    params = make_params()
    opt = selective(O.RMSprop, params, budget=BUDGET, total_steps=TOTAL, lr=0.25, alpha=0.5)
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["alpha"]) == (0.25, 0.5)
    with pytest.raises(ValueError, match=r"Invalid alpha"):
        opt.add_param_group({"params": make_params([(3,)]), "alpha": -1.0})


GROUPED = {
    "SGD": (O.SGD, [{"momentum": 0.9}, {}]),
    "RMSprop": (O.RMSprop, [{}, {"momentum": 0.9, "centered": True}]),
    "Adam": (O.Adam, [{"amsgrad": True}, {"weight_decay": 0.1}]),
}


@pytest.mark.parametrize("name", GROUPED)
def test_a_groups_own_options_keep_their_own_state(name):
    """Momentum of one group only: state that the constructor's arguments do not ask for."""
    kind, options = GROUPED[name]
    params = make_params()
    halves = [params[:4], params[4:]]
    groups = [{"params": half, **own} for half, own in zip(halves, options, strict=True)]
    opt = selective(kind, groups, budget=BUDGET, total_steps=TOTAL, lr=0.01)
    dense = DenseMasked(params, kind, {"lr": 0.01})
    halves = [dense.values[:4], dense.values[4:]]
    dense.optimizer = kind([{"params": half, **own} for half, own in zip(halves, options, strict=True)], lr=0.01)
    for step in range(STEPS):
        grads = make_grads(params, step)
        set_grads(params, grads)
        opt.step()
        masks = masks_of(opt, params)
        dense.step(grads, masks)
        for param, value, mask in zip(params, dense.values, masks, strict=True):
            torch.testing.assert_close(param.detach()[mask], value.detach()[mask], **TOLERANCES[torch.float32])


def test_a_scheduler_may_set_momentum_before_the_first_step_but_not_later(tmp_path):
    def make():
        params = make_params()
        opt = selective(O.SGD, params, budget=BUDGET, total_steps=TOTAL, lr=0.01)
        torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=20)  # sets momentum
        return params, opt

    params, opt = make()
    train(opt, params, 0, 2)
    assert opt._selection.moments == ("momentum_buffer",)
    plain = selective(O.SGD, make_params(), budget=BUDGET, total_steps=TOTAL, lr=0.01)
    plain.load_state_dict(opt.state_dict())  # the groups' options come with it
    assert plain._selection.moments == ("momentum_buffer",)
    late = make_params()
    other = selective(O.SGD, late, budget=BUDGET, total_steps=TOTAL, lr=0.01)
    train(other, late, 0, 1)
    other.param_groups[0]["momentum"] = 0.9
    set_grads(late, make_grads(late, 1))
    before = picture(other, late)
    message = r"param_groups\[0\]: expected options that keep the state \[\].*momentum_buffer"
    with pytest.raises(RuntimeError, match=message):
        other.step()
    assert_same_picture(picture(other, late), before)
