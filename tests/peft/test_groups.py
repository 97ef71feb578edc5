"""C13: whole-trained groups beside selective ones, and one top-k over all selective groups."""

import pytest
import torch
from harness import KINDS, make_grads, make_params, set_grads
from selective_peft import D3, SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

STEPS = 6
HEAD = [(33, 3), (3,), (600,)]  # sizes around and above SIMD widths of 16-bit kernels
OPTIONS = {
    "AdamW": {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "Adam": {"lr": 1e-2, "eps": 1e-6, "weight_decay": 0.1},
    "SGD": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
}
TORCH = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam, "SGD": torch.optim.SGD}
# torch's own forms of one optimizer differ: in 16 bits some round after each operation, some once, in parameters and
# in 16-bit momentum alike. Two units in the last place per step of a parameter of scale 1, or 2 % of lr per step.
BETWEEN_FORMS = {
    torch.float32: TOLERANCES[torch.float32],
    torch.bfloat16: {"rtol": 2 * STEPS * 2.0**-8, "atol": 0.02 * STEPS * 1e-2},
    torch.float16: {"rtol": 2 * STEPS * 2.0**-11, "atol": 0.02 * STEPS * 1e-2},
}


def run_with_head(kind, dtype, backend, *, late=False, options=None, **more):
    """Trains a body selectively under a head; gradients of the head's first parameter may start in step 2."""
    body, head = make_params([(40, 5), (17,)], dtype), make_params(HEAD, dtype, seed=1)
    groups = [{"params": head, "selective": False}, {"params": body}]
    opt = KINDS[kind](groups, budget=30, total_steps=4, backend=backend, **(options or OPTIONS[kind]), **more)
    for step in range(STEPS):
        set_grads(body, make_grads(body, step))
        set_grads(head, head_grads(head, step, late))
        opt.step()
    return opt, body, head


def head_grads(head, step, late):
    grads = make_grads(head, 100 + step)
    return [None, *grads[1:]] if late and step < 2 else grads


def torch_head(kind, dtype, *, fused, late=False, options=None):
    """The head alone under torch's optimizer."""
    head = make_params(HEAD, dtype, seed=1)
    opt = TORCH[kind](head, fused=fused, **(options or OPTIONS[kind]))
    for step in range(STEPS):
        set_grads(head, head_grads(head, step, late))
        opt.step()
    return head


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["AdamW", "Adam"])
def test_a_dense_group_is_trained_as_by_torch_bit_for_bit(kind, late, dtype, backend):
    """C13: torch's fused update, also when a gradient appears late."""
    expected = torch_head(kind, dtype, fused=True, late=late)
    _, _, head = run_with_head(kind, dtype, backend, late=late, max_grad_norm=1e-3)
    for i, (mine, theirs) in enumerate(zip(head, expected, strict=True)):
        assert_bitwise_equal(mine.detach(), theirs.detach(), f"head[{i}]")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "options",
    [OPTIONS["SGD"], {"lr": 1e-2}, {"lr": 1e-2, "momentum": 0.5, "dampening": 0.5}],
    ids=["nesterov", "plain", "dampening"],
)
def test_a_dense_group_is_trained_as_by_torch_sgd(options, late, dtype, backend):
    """C13 against torch's plain loop: its fused form on the CPU does not train 16-bit parameters (2.12, 2.13)."""
    start = make_params(HEAD, dtype, seed=1)
    expected = torch_head("SGD", dtype, fused=False, late=late, options=options)
    _, _, head = run_with_head("SGD", dtype, backend, late=late, options=options)
    for mine, theirs, old in zip(head, expected, start, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), **BETWEEN_FORMS[dtype])
        assert float((theirs.detach() != old.detach()).float().mean()) > 0.6  # so agreeing is not standing still


def test_a_float64_head_is_trained_as_by_torch(backend):
    """C13: a dense group is not bound to the dtypes of selective ones."""
    body, heads = make_params([(50,)]), [Parameter(torch.linspace(-1, 1, 9).double()) for _ in range(2)]
    groups = [{"params": body}, {"params": heads[:1], "selective": False}]
    opt = SelectiveAdamW(groups, lr=1e-2, budget=5, total_steps=2, backend=backend)
    reference = torch.optim.AdamW(heads[1:], lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(4):
        set_grads(body, make_grads(body, step))
        set_grads(heads, make_grads(heads[:1], step) * 2)
        opt.step()
        reference.step()
    assert_bitwise_equal(heads[0].detach(), heads[1].detach())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_dense_entries_do_not_count_and_do_not_disturb(kind, dtype, backend):
    """C13: the body is trained as if there were no head; the budget is the body's alone."""
    opt, body, _ = run_with_head(kind, dtype, backend, max_grad_norm=0.1)
    alone = make_params([(40, 5), (17,)], dtype)
    other = KINDS[kind](alone, budget=30, total_steps=4, backend=backend, max_grad_norm=0.1, **OPTIONS[kind])
    for step in range(STEPS):
        set_grads(alone, make_grads(alone, step))
        other.step()
    assert opt.num_selected == other.num_selected == 30
    for mine, theirs in zip(body, alone, strict=True):
        assert torch.equal(opt.selected_indices(mine), other.selected_indices(theirs))
        assert_bitwise_equal(mine.detach(), theirs.detach())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_first_values_of_a_dense_group_are_kept(kind, dtype, backend):
    """C13: bit for bit, from the first step on, and through a checkpoint."""
    start = [param.detach().clone() for param in make_params(HEAD, dtype, seed=1)]
    opt, body, head = run_with_head(kind, dtype, backend)
    again = KINDS[kind](
        [{"params": head, "selective": False}, {"params": body}], budget=30, total_steps=4, **OPTIONS[kind]
    )
    again.load_state_dict(opt.state_dict())
    for each in (opt, again):
        for param, old in zip(head, start, strict=True):
            assert_bitwise_equal(each.state[param]["original"], old)


def test_dense_parameters_have_no_selected_indices(backend):
    """C13, C14: the answer would be "all"; the error says what was expected."""
    opt, body, head = run_with_head("AdamW", torch.float32, backend)
    assert sum(len(opt.selected_indices(param)) for param in body) == 30
    with pytest.raises(ValueError, match="param: expected a parameter of a selective group"):
        opt.selected_indices(head[0])


def test_topk_runs_over_all_groups_together(backend):
    """C13: groups with different options select what one group would; each entry gets its own group's lr."""
    lrs = [1e-3, 0.0, 1e-1]
    grouped, single = make_params([(30, 7), (100,), (50,)]), make_params([(30, 7), (100,), (50,)])
    groups = [{"params": [param], "lr": lr} for param, lr in zip(grouped, lrs, strict=True)]
    opts = [
        SelectiveSGD(groups, budget=60, total_steps=1, backend=backend),
        SelectiveSGD(single, lr=1e-2, budget=60, total_steps=1, backend=backend),
    ]
    before = [param.detach().clone() for param in grouped]
    grads = make_grads(grouped, 0)
    for params, opt in zip((grouped, single), opts, strict=True):
        set_grads(params, grads)
        opt.step()
    for param, other, old, grad, lr in zip(grouped, single, before, grads, lrs, strict=True):
        chosen = opts[0].selected_indices(param)
        assert torch.equal(chosen, opts[1].selected_indices(other))
        assert len(chosen) > 5
        expected = old.view(-1)[chosen] - lr * grad.view(-1)[chosen]
        torch.testing.assert_close(param.detach().view(-1)[chosen], expected, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("empty", [{"params": []}, {"params": [], "selective": False}], ids=["selective", "dense"])
def test_an_empty_group_changes_nothing(empty, backend):
    """C13: such groups come from libraries that split parameters by weight decay."""
    runs = []
    for groups in (2, 3):
        params = make_params([(40,), (60,)])
        listed = [{"params": params[:1], "weight_decay": 0.1}, dict(empty), {"params": params[1:], "lr": 1e-3}]
        opt = SelectiveAdamW(
            listed if groups == 3 else [listed[0], listed[2]], lr=1e-2, budget=20, total_steps=2, backend=backend
        )
        for step in range(3):
            set_grads(params, make_grads(params, step))
            opt.step()
        opt.load_state_dict(opt.state_dict())
        runs.append((params, [opt.selected_indices(param) for param in params]))
    for a, b in zip(runs[0][0], runs[1][0], strict=True):
        assert_bitwise_equal(a.detach(), b.detach())
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_only_the_dense_group_may_have_gradients(backend):
    """C13: a step in which the body has none still trains the head, and counts as a step."""
    body, head = make_params([(40,)]), make_params([(5,)])
    opt = SelectiveSGD([{"params": body}, {"params": head, "selective": False}], lr=0.5, budget=4, total_steps=2)
    before, old_body = head[0].detach().clone(), body[0].detach().clone()
    head[0].grad = torch.ones(5)
    opt.step()
    torch.testing.assert_close(head[0].detach(), before - 0.5)
    assert_bitwise_equal(body[0].detach(), old_body)
    body[0].grad = torch.ones(40)
    opt.step()
    assert opt.num_selected == 4


def test_scores_differ_between_groups_only_by_their_values(backend):
    """C13: an entry's group does not weigh its score, whatever its lr or decay is."""
    small, large = Parameter(torch.full((4,), 0.1)), Parameter(torch.full((4,), 3.0))
    groups = [{"params": [large], "lr": 10.0, "weight_decay": 1.0}, {"params": [small], "lr": 1e-9}]
    opt = SelectiveAdamW(groups, budget=4, total_steps=1, score=D3(exp=2.0, eps=1.0), backend=backend)
    large.grad, small.grad = torch.full((4,), 2.0), torch.ones(4)  # scores 2 / 16 and 1 / 1.21
    opt.step()
    assert opt.selected_indices(small).tolist() == [0, 1, 2, 3]
    assert len(opt.selected_indices(large)) == 0
