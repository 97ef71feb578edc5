"""C4 through the optimizers, and what C6 promises beyond agreement with the dense oracle."""

import math

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, train
from selective_peft import D3, SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

from selective_kernels.testing import TOLERANCES, isa_paths, num_threads, use_isa

THREADS = [1, 2, 7]  # alone, as many as CI has cores, more than cores and not a divisor of anything
# Tile borders (4096), a size far below and far above them, and enough tiles that seven threads all get work.
LARGE = [(300, 401), (4096,), (4097,), (5,), (64, 64, 3), (1,)]
SMALL_STEPS = 100  # steps of lr 1e-4 from 1.0: in all 1e-2, a few units in the last place of a 16-bit 1.0
SMALL_LR = 1e-4  # less than half a unit in the last place of 1.0 in bfloat16 (2^-9) and float16 (2^-12)
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_bits_do_not_depend_on_threads(kind, max_grad_norm, dtype):
    """C4, C9: the same selection, parameters and state for any number of threads, and in a second run."""

    def run(threads):
        params = make_params(LARGE, dtype)
        opt = KINDS[kind](params, lr=1e-2, budget=9000, total_steps=3, max_grad_norm=max_grad_norm, backend="cpu")
        with num_threads(threads):
            train(opt, params, 0, 5)
        return picture(opt, params)

    expected = run(1)
    for threads in THREADS:
        assert_same_picture(run(threads), expected)


def test_ties_go_to_the_lowest_position(dtype, backend):
    """C4: all scores equal, over tensors and across tiles; the budget ends inside the second tensor."""
    for threads in THREADS:
        params = [Parameter(torch.ones(shape, dtype=dtype)) for shape in [(3, 1500), (5000,), (40,)]]
        for param in params:
            param.grad = torch.ones_like(param)
        params[0].grad[0, :10] = 0.0
        with num_threads(threads):
            SelectiveAdamW(params, budget=9000, total_steps=1, lr=1e-2, backend=backend).step()
        changed = [(param.detach() != 1.0).reshape(-1).nonzero().reshape(-1) for param in params]
        assert torch.equal(changed[0], torch.arange(10, 4500))
        assert torch.equal(changed[1], torch.arange(9000 - 4490))
        assert len(changed[2]) == 0


def test_every_instruction_set_selects_the_same():
    """C4 over the paths of the compiled kernels, against the reference."""

    def run(backend):
        params = make_params(LARGE, torch.bfloat16)
        opt = SelectiveSGD(params, lr=0.0, budget=5000, total_steps=4, backend=backend)
        train(opt, params, 0, 4)
        return [opt.selected_indices(param) for param in params]

    expected = run("reference")
    assert sum(map(len, expected)) == 5000
    for isa in isa_paths():
        with use_isa(isa):
            assert all(torch.equal(a, b) for a, b in zip(run("cpu"), expected, strict=True)), isa


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_small_updates_are_not_lost(kind, half, backend):
    """C6: each step is below half a unit in the last place; their sum is the one of an fp32 run, rounded once."""
    results = []
    for dtype in (half, torch.float32):
        param = Parameter(torch.ones(5, dtype=dtype))
        opt = KINDS[kind]([param], lr=SMALL_LR, budget=5, total_steps=1, backend=backend)
        for _ in range(SMALL_STEPS):
            param.grad = torch.ones_like(param)
            opt.step()
        results.append(param.detach())
        if dtype is half:
            assert torch.equal(torch.ones(5, dtype=half) - SMALL_LR, torch.ones(5, dtype=half))  # one step would be
    assert bool((results[0] < 1.0).all())
    torch.testing.assert_close(results[0], results[1].to(half), rtol=0, atol=0)


@pytest.mark.parametrize("half", HALF)
def test_a_parameter_written_by_someone_else_wins(half, backend):
    """C6: the master copy gives way where the model was written to, and only there."""
    param = Parameter(torch.ones(4, dtype=half))
    opt = SelectiveSGD([param], lr=SMALL_LR, budget=3, total_steps=1, backend=backend)

    def step():
        param.grad = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=half)
        opt.step()
        return opt.state_dict()["state"]["selective"]["arrays"]["master"]

    for _ in range(3):
        master = step()
    torch.testing.assert_close(master, torch.full((3,), 1.0 - 3 * SMALL_LR), **TOLERANCES[torch.float32])
    with torch.no_grad():
        param[0] = 2.0  # another value
        param[1] = param[1].clone()  # the value that stands there: nobody can tell, the master stays
        param[3] = 5.0  # not selected: none of the optimizer's business
    master = step()
    expected = torch.tensor([2.0 - SMALL_LR, 1.0 - 4 * SMALL_LR, 1.0 - 4 * SMALL_LR])
    torch.testing.assert_close(master, expected, **TOLERANCES[torch.float32])
    assert param.tolist() == [*expected.to(half).tolist(), 5.0]


def test_an_fp32_parameter_written_by_someone_else_wins(backend):
    """C6: there is no copy that could put an old value back."""
    param = Parameter(torch.ones(4))
    opt = SelectiveSGD([param], lr=0.25, budget=4, total_steps=1, backend=backend)
    for value in (1.0, 3.0):
        with torch.no_grad():
            param.fill_(value)
        param.grad = torch.ones(4)
        opt.step()
        assert param.tolist() == [value - 0.25] * 4


@pytest.mark.parametrize(("bias_correction", "first"), [("global", None), ("per_entry", 1.0)])
def test_first_step_of_a_late_entry(bias_correction, first, backend):
    """C6: with "global" it is 0.1 / sqrt(0.001) = 3.2 lr in the limit, with "per_entry" it is lr."""
    late, lr = 2000, 1e-3
    param = Parameter(torch.zeros(2))
    opt = SelectiveAdamW(
        [param], lr=lr, budget=2, total_steps=late, bias_correction=bias_correction, backend=backend,
        schedule=lambda step, total_steps, budget: 1,
    )  # fmt: skip
    for _ in range(late - 1):
        param.grad = torch.tensor([1.0, 0.5])
        opt.step()
    assert opt.num_selected == 1
    opt.step()
    assert opt.num_selected == 2
    if first is None:  # m = 0.1 g, v = 0.001 g^2, corrected by factors that are nearly 1 by now
        first = 0.1 / (1 - 0.9**late) / math.sqrt(0.001 / (1 - 0.999**late))
        assert 2.9 < first < 3.2
    torch.testing.assert_close(float(param.detach()[1]), -first * lr, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(("missed", "age"), [((), 6), ((3,), 5), ((1, 4), 5)])
def test_per_entry_age_counts_steps_with_a_gradient(missed, age, backend):
    """C6: steps without a gradient for the tensor do not age an entry; those before its selection do not count."""
    param, other = Parameter(torch.zeros(3)), Parameter(torch.zeros(1))
    opt = SelectiveAdamW(
        [param, other], lr=1.0, betas=(0.0, 0.5), eps=0.0, budget=3, total_steps=8, score=D3(exp=0.0),
        bias_correction="per_entry", backend=backend, schedule=lambda step, total_steps, budget: min(2, step),
    )  # fmt: skip
    for step in range(8):
        other.grad = torch.tensor([0.0])
        param.grad = None if step in missed else torch.tensor([4.0, 3.0, 0.0])
        opt.step()
    # With g constant v / (1 - beta2^age) is g^2 whatever the age, so that each step is lr; with a wrong age it is not.
    torch.testing.assert_close(float(param.detach()[1]), -float(age), rtol=1e-6, atol=0.0)


def test_lr_zero_changes_nothing(dtype, backend):
    """C6: a step of size zero keeps the bits of selected entries, weight decay on."""
    params = make_params(dtype=dtype)
    before = [param.detach().clone() for param in params]
    opt = SelectiveAdamW(params, lr=0.0, weight_decay=0.5, budget=500, total_steps=2, backend=backend)
    train(opt, params, 0, 3)
    assert opt.num_selected == 500
    assert all(torch.equal(param.detach(), old) for param, old in zip(params, before, strict=True))


@pytest.mark.parametrize("bias_correction", ["global", "per_entry"])
@pytest.mark.parametrize("selecting", [True, False], ids=["selecting", "later"])
def test_c14_a_step_that_failed_can_be_made_again(monkeypatch, selecting, bias_correction, backend):
    """C14: an update for which there was no memory counts nowhere: made again, all is as if it had not failed."""
    shapes, steps = [(30, 40), (500,), (7,)], 3
    options = {"lr": 1e-2, "budget": 300, "total_steps": steps, "bias_correction": bias_correction, "backend": backend}
    params, others = make_params(shapes, torch.float32), make_params(shapes, torch.float32)
    whole, failing = SelectiveAdamW(params, **options), SelectiveAdamW(others, **options)
    before = 1 if selecting else steps
    for opt, mine in ((whole, params), (failing, others)):
        train(opt, mine, 0, before)
        for i, grad in enumerate(make_grads(mine, before)):
            mine[i].grad = grad if i != 1 else None

    def without_memory(update):
        raise torch.OutOfMemoryError("a test's limit")

    with monkeypatch.context() as patch:
        patch.setattr(failing, "_update", without_memory)
        with pytest.raises(torch.OutOfMemoryError, match="a test's limit"):
            failing.step()
    for opt in (whole, failing):
        opt.step()
    for opt, mine in ((whole, params), (failing, others)):
        train(opt, mine, before + 1, before + 3)
    assert_same_picture(picture(failing, others), picture(whole, params))
