"""Methods with dense state: the warm-up of "diff", "d3-repeat" and "full"."""

import pytest
import torch
from harness import SCALARS, assert_same_picture, make_grads, make_params, picture, set_grads
from method_oracle import ByGiven
from methodruns import ADAMW, BUDGET, LENGTH, STATIC, TOTAL, make, named, run_both
from selective_peft import SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

from selective_kernels.testing import assert_bitwise_equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diff_after_a_dense_warmup(dtype, backend):
    """Two dense steps as torch's, then everything is back at its first value but the choice of scalars."""
    params = make_params(dtype=dtype)
    first = [param.detach().clone() for param in params]
    dense = [Parameter(param.detach().clone()) for param in params]
    torch_optimizer = torch.optim.AdamW(dense, **ADAMW, fused=True)
    opt = make(params, "diff", backend, method_kwargs={"warmup_steps": 2})
    for step in range(2):
        grads = make_grads(params, 100 + step)
        set_grads(params, grads)
        set_grads(dense, grads)
        opt.step()
        torch_optimizer.step()
        if step == 0:
            assert opt.num_selected == 0
            for param, twin in zip(params, dense, strict=True):
                assert_bitwise_equal(param.detach(), twin.detach())
    assert opt.num_selected == BUDGET
    assert not opt.state
    for param, value in zip(params, first, strict=True):
        assert_bitwise_equal(param.detach(), value)
    changes = [(twin.detach().float() - value.float()).abs() for twin, value in zip(dense, first, strict=True)]
    oracle = ByGiven([{"params": params, **ADAMW}], "AdamW", **LENGTH, scores=changes, **STATIC)
    run_both(opt, oracle, params, dtype)


def test_a_warmup_step_with_bad_gradients_is_skipped():
    params = make_params()
    opt = make(params, "diff", method_kwargs={"warmup_steps": 1})
    set_grads(params, make_grads(params, 0))
    params[3].grad[0, 0] = float("inf")
    before = picture(opt, params)
    with pytest.warns(UserWarning, match=r"step 0: skipped"):
        opt.step()
    assert (opt.skipped_steps, opt.num_selected) == (1, 0)
    after = picture(opt, params)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("param/"))
    set_grads(params, make_grads(params, 0))
    opt.step()
    assert opt.num_selected == BUDGET


@pytest.mark.parametrize("kind", [SelectiveAdamW, SelectiveSGD])
def test_full_is_torchs_own_dense_optimizer(kind):
    params = make_params()
    twins = [Parameter(param.detach().clone()) for param in params]
    opt = kind(named(params), lr=0.01, method="full")
    dense = {SelectiveAdamW: torch.optim.AdamW, SelectiveSGD: torch.optim.SGD}[kind](twins, lr=0.01, weight_decay=0.0)
    for step in range(3):
        grads = make_grads(params, step)
        set_grads(params, grads)
        set_grads(twins, grads)
        opt.step()
        dense.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param.detach(), twin.detach(), rtol=1e-6, atol=1e-7)
    assert (opt.num_selected, opt.budget) == (0, None)
    with pytest.raises(ValueError, match=r"selective: expected False with method='full'"):
        opt.add_param_group({"params": [("x", Parameter(torch.zeros(2)))], "selective": True})


def test_repeat_says_what_it_is():
    params = make_params()
    with pytest.warns(UserWarning, match=r"'repeat' is a baseline: it keeps dense optimizer state"):
        opt = SelectiveAdamW(params, budget=BUDGET, total_steps=TOTAL, method="d3-repeat")
    set_grads(params, make_grads(params, 0))
    opt.step()
    assert sum(state["exp_avg"].numel() for state in opt.state.values()) == SCALARS
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or 'reference' for strategy 'repeat'.*got 'cpu'"):
        SelectiveAdamW(params, budget=BUDGET, total_steps=TOTAL, method="d3-repeat", backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeat_skips_bad_gradients_and_keeps_gradients(dtype):
    params = make_params(dtype=dtype)
    opt = make(params, "d3-repeat")
    set_grads(params, make_grads(params, 0))
    opt.step()
    first = [set(opt.selected_indices(param).tolist()) for param in params]
    set_grads(params, make_grads(params, 1))
    params[0].grad[0, 0] = float("nan")
    before = [param.detach().clone() for param in params]
    with pytest.warns(UserWarning, match=r"step 1: skipped"):
        opt.step()
    for param, value in zip(params, before, strict=True):
        assert_bitwise_equal(param.detach(), value)
    grads = make_grads(params, 1)
    set_grads(params, grads)
    opt.step()
    assert [set(opt.selected_indices(param).tolist()) for param in params] != first
    for param, value, grad in zip(params, before, grads, strict=True):
        keep = torch.ones(param.numel(), dtype=torch.bool)
        keep[opt.selected_indices(param)] = False
        assert_bitwise_equal(param.detach().reshape(-1)[keep], value.reshape(-1)[keep])
        assert_bitwise_equal(param.grad, grad)


@pytest.mark.parametrize(("method", "own"), [("diff", {"warmup_steps": 2}), ("d3-repeat", {})])
def test_dense_state_is_refused_for_float16(method, own):
    """torch keeps moments in the parameter's dtype; in float16 the second ones underflow and updates become NaN."""
    params = make_params(dtype=torch.float16)
    opt = make(params, method, method_kwargs=own)
    set_grads(params, make_grads(params, 0))
    before = picture(opt, params)
    with pytest.raises(TypeError, match=r"params: expected float32 or bfloat16 for .*, got float16: layer\.0\.weight"):
        opt.step()
    after = picture(opt, params)
    assert_same_picture({k: v for k, v in after.items() if k in before}, before)


def test_gradients_of_another_layout_are_those_of_their_entries():
    """torch's fused update takes gradient and parameter in the order of memory, whatever their strides are."""
    params, twins = make_params([(5, 7), (2, 3, 4, 5)]), make_params([(5, 7), (2, 3, 4, 5)])
    grads = make_grads(params, 0)
    opt = SelectiveAdamW(params, lr=0.1, method="full")
    dense = torch.optim.AdamW(twins, lr=0.1, weight_decay=0.0, foreach=False)
    params[0].grad = grads[0].t().contiguous().t()
    params[1].grad = grads[1].contiguous(memory_format=torch.channels_last)
    set_grads(twins, grads)
    opt.step()
    dense.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param.detach(), twin.detach(), rtol=1e-5, atol=1e-7)


def test_the_warmup_clips_by_all_gradients_and_leaves_them():
    param = Parameter(torch.zeros(4))
    opt = SelectiveSGD(
        [param], lr=1.0, budget=2, total_steps=1, max_grad_norm=1.0, method="diff", method_kwargs={"warmup_steps": 2}
    )
    param.grad = torch.full((4,), 100.0)
    opt.step()
    torch.testing.assert_close(param.detach(), torch.full((4,), -0.5))
    assert param.grad.tolist() == [100.0] * 4
    with pytest.raises(ValueError, match=r"max_grad_norm: expected None with method='full'"):
        SelectiveSGD([param], method="full", max_grad_norm=1.0)
