"""scope="tensor": the budget divided in proportion to size, exactly."""

import random

import pytest
import torch
from harness import SCALARS, SHAPES, make_grads, make_params, set_grads
from method_oracle import PerTensor, webster
from methodruns import ADAMW, BUDGET, LENGTH, NAMES, STEPS, make, run_both
from selective_peft import SelectiveAdamW, methods
from selective_peft.budgets import apportion
from torch.nn import Parameter


@pytest.mark.parametrize("method", [name for name in methods() if name not in ("full", "d3-repeat")])
def test_scope_tensor_gives_each_tensor_its_share(method, backend):
    if method == "bitfit":
        return  # has no budget to divide
    own = {"fish": {"scores": dict(zip(NAMES, [torch.rand(shape) for shape in SHAPES], strict=True))}}
    own["diff"] = {"warmup_steps": 1}
    params = make_params()
    opt = make(params, method, backend, method_kwargs=own.get(method), scope="tensor")
    for step in range(STEPS):
        set_grads(params, make_grads(params, step))
        opt.step()
    counts = [len(opt.selected_indices(param)) for param in params]
    assert sum(counts) == BUDGET
    for count, param in zip(counts, params, strict=True):
        assert abs(count - BUDGET * param.numel() / SCALARS) < 1.0


def test_scope_tensor_equals_its_oracle(dtype, backend):
    params = make_params(dtype=dtype)
    opt = make(params, "id3", backend, scope="tensor", select_every=2)
    oracle = PerTensor([{"params": params, **ADAMW}], "AdamW", **LENGTH, select_every=2)
    run_both(opt, oracle, params, dtype)
    assert opt.num_selected == BUDGET


@pytest.mark.parametrize("sizes", [
    [35, 0, 1, 4087, 30, 18, 1, 294], [1] * 17, [5], [], [0, 0, 3], [1000, 1, 1, 1, 1, 1], [7, 7, 7, 7], [2**33, 3, 99],
])  # fmt: skip
def test_shares_are_websters(sizes):
    totals = range(sum(sizes) + 1) if sum(sizes) < 5000 else [0, 1, 2, 3, 500, 777]
    for total in list(totals)[:: max(1, len(totals) // 200)]:
        assert apportion(total, sizes) == webster(total, sizes), total


def test_shares_add_up_and_never_fall():
    """House monotonicity; rounded by largest remainders, a share can fall as the total grows."""
    draw = random.Random(0)
    for _ in range(30):
        sizes = [draw.choice([1, 7, 768, 768 * 768, draw.randrange(1, 10**7)]) for _ in range(draw.randrange(1, 120))]
        before = [0] * len(sizes)
        for total in sorted(draw.randrange(sum(sizes) + 1) for _ in range(20)):
            shares = apportion(total, sizes)
            assert sum(shares) == total
            assert all(old <= new <= size for old, new, size in zip(before, shares, sizes, strict=True))
            for share, size in zip(shares, sizes, strict=True):  # a large tensor takes up the small ones' roundings
                assert abs(share - total * size / sum(sizes)) <= 0.5 * len(sizes)
            before = shares


@pytest.mark.parametrize("total", [-1, 11])
def test_a_total_out_of_range_is_refused(total):
    with pytest.raises(ValueError, match=r"total: expected 0 to 10, got"):
        apportion(total, [4, 6])


def test_parameters_that_start_to_train_late_do_not_break_the_budget():
    """Unfreezing changes every tensor's share; no tensor gives anything back, and the sum stays within the schedule."""
    params = make_params()
    params[3].requires_grad_(False)
    opt = SelectiveAdamW(params, budget=200, total_steps=6, scope="tensor", lr=0.01)
    for step in range(8):
        if step == 3:
            params[3].requires_grad_(True)
        grads = make_grads(params, step)
        if step < 3:
            grads[3] = None
        set_grads(params, grads)
        opt.step()
        assert opt.num_selected <= 200 * min(step + 1, 6) // 6
    assert opt.num_selected == 200
    assert len(opt.selected_indices(params[3])) > 90


def test_a_tensor_with_too_few_selectable_leaves_a_deficit_of_its_own():
    params = [Parameter(torch.ones(100)), Parameter(torch.ones(100))]
    opt = SelectiveAdamW(params, budget=100, total_steps=2, scope="tensor", lr=0.01)
    few = torch.zeros(100)
    few[:5] = 1.0
    for grad, expected in ((few, [5, 25]), (few, [5, 50]), (torch.ones(100), [5, 50])):
        set_grads(params, [grad, torch.ones(100)])
        opt.step()
        assert [len(opt.selected_indices(param)) for param in params] == expected
