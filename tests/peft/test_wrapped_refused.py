"""What `selective(...)` refuses: optimizers that are not element-wise, bad arguments, damaged states."""

import copy

import pytest
import torch
from harness import assert_same_picture, make_params, picture, train
from selective_peft import selective

O = torch.optim  # noqa: E741
BUDGET, TOTAL = 300, 8


class Coupled(torch.optim.Optimizer):
    """Moves each scalar by the mean gradient of its tensor: not element-wise."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"] * param.grad.mean())


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params, step_size=0.1):
        super().__init__(params, {"step_size": step_size})


@pytest.mark.parametrize("lr", [1e-2, 1e-5, 1e-8])
def test_other_optimizers_are_found_out_at_any_learning_rate(lr):
    with pytest.raises(ValueError, match="optimizer: expected one that updates each scalar"):
        selective(O.Adafactor, make_params(), budget=BUDGET, total_steps=TOTAL, lr=lr)


@pytest.mark.parametrize("kind", [Coupled, O.Adafactor, O.LBFGS, O.SparseAdam])
def test_what_is_not_element_wise_is_refused(kind):
    with pytest.raises(ValueError, match=rf"optimizer: expected one that updates each scalar.*{kind.__name__}"):
        selective(kind, make_params(), budget=BUDGET, total_steps=TOTAL)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match=r"optimizer: expected a class of torch optimizers, got 'RMSprop'"):
        selective("RMSprop", make_params(), budget=BUDGET, total_steps=TOTAL)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'betas'"):
        selective(O.RMSprop, make_params(), budget=BUDGET, total_steps=TOTAL, betas=(0.9, 0.99))
    with pytest.raises(ValueError, match=r"optimizer: expected one with the argument lr, got WithoutRate with"):
        selective(WithoutRate, make_params(), budget=BUDGET, total_steps=TOTAL)
    with pytest.raises(ValueError, match=r"differentiable: expected False"):
        selective(O.RMSprop, make_params(), budget=BUDGET, total_steps=TOTAL, differentiable=True)


@pytest.mark.parametrize("damage", [{}, {"ghosts": [{"moments": {}, "shared": {}}], "ghost_of": [0]}, {"ghosts": []},
                                    {"ghosts": [], "ghost_of": [3]}, None])  # fmt: skip
def test_a_damaged_state_is_refused(damage):
    params = make_params()
    opt = selective(O.RMSprop, params, budget=BUDGET, total_steps=TOTAL)
    train(opt, params, 0, 2)
    state = copy.deepcopy(opt.state_dict())
    state["state"]["selective"]["extra"] = damage
    before = picture(opt, params)
    with pytest.raises(ValueError, match=r"state_dict: extra: expected the state of RMSprop"):
        opt.load_state_dict(state)
    assert_same_picture(picture(opt, params), before)
