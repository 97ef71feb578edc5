"""Ctrl-C, want of memory, other defaults: a step is made whole or not at all, and can be saved afterwards."""

import copy
import os
import signal
import threading

import pytest
import torch
from harness import assert_same_picture, make_grads, make_params, picture, train
from selective_peft import SelectiveAdamW, SparseDelta, dense, dense_phases
from selective_peft.undisturbed import Undisturbed
from selective_peft.updates import Updates
from torch import nn

SHAPES, STEPS = [(30, 40), (500,), (7,)], 3
OPTIONS = {"lr": 1e-2, "budget": 300, "total_steps": STEPS}


def made(**options):
    params = make_params(SHAPES, torch.float32)
    return SelectiveAdamW(params, **{**OPTIONS, **options}), params


def give_grads(params, step):
    for param, grad in zip(params, make_grads(params, step), strict=True):
        param.grad = grad


@pytest.fixture
def handled():
    """What a handler of SIGINT has seen."""
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_for_the_end_of_the_block(handled):
    handler = signal.getsignal(signal.SIGINT)
    with Undisturbed():
        with Undisturbed():
            os.kill(os.getpid(), signal.SIGINT)
            assert handled == []
        assert handled == []
    assert handled == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler


def test_handlers_are_there_again_after_an_error(handled):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="said"), Undisturbed():
        raise ValueError("said")
    assert signal.getsignal(signal.SIGINT) is handler


def test_in_another_thread_nothing_is_done(handled):
    handler, found = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with Undisturbed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [handler]


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("selecting", [True, False], ids=["selecting", "later"])
def test_ctrl_c_comes_after_the_step(monkeypatch, backend, selecting):
    (opt, params), (whole, others) = made(backend=backend), made(backend=backend)
    before = 1 if selecting else STEPS
    for each, mine in ((opt, params), (whole, others)):
        train(each, mine, 0, before)
        give_grads(mine, before)
    update = opt._update

    def disturbed(given):
        os.kill(os.getpid(), signal.SIGINT)
        update(given)

    monkeypatch.setattr(opt, "_update", disturbed)
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    whole.step()
    assert_same_picture(picture(opt, params), picture(whole, others))


@pytest.mark.parametrize("bias_correction", ["global", "per_entry"])
@pytest.mark.parametrize("selecting", [True, False], ids=["selecting", "later"])
def test_after_a_step_that_failed_a_run_can_be_saved(monkeypatch, backend, selecting, bias_correction):
    """C14: nothing is selected or counted, so that it goes on from what is saved as from the step before."""
    opt, params = made(backend=backend, bias_correction=bias_correction)
    train(opt, params, 0, 1 if selecting else STEPS)
    saved = opt.state_dict()["state"]["selective"]["starts"].clone()
    give_grads(params, 5)
    params[1].grad = None
    before = picture(opt, params)
    with monkeypatch.context() as patch:
        patch.setitem(opt.param_groups[0], "betas", (0.9,))
        with pytest.raises(ValueError, match="not enough values to unpack"):
            opt.step()
    assert_same_picture(picture(opt, params), before)
    again, _ = made(backend=backend, bias_correction=bias_correction)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert again.num_selected == saved[-1]


def test_without_memory_for_a_head_s_state_the_next_step_makes_it(monkeypatch):
    params = make_params(SHAPES, torch.float32)
    groups = [{"params": params[:2]}, {"params": params[2:], "selective": False}]
    opt = SelectiveAdamW(groups, **OPTIONS)
    give_grads(params, 0)
    with monkeypatch.context() as patch:

        def without_memory(*given, **named):
            raise torch.OutOfMemoryError("a test's limit")

        patch.setattr(dense.torch, "zeros_like", without_memory)
        with pytest.raises(torch.OutOfMemoryError, match="a test's limit"):
            opt.step()
    before = params[2].detach().clone()
    opt.step()
    assert not torch.equal(params[2], before)


def test_without_memory_at_the_end_of_a_warm_up_the_next_step_selects(monkeypatch):
    opt, params = made(method="diff", method_kwargs={"warmup_steps": 2})
    train(opt, params, 0, 1)
    give_grads(params, 1)
    with monkeypatch.context() as patch:

        def without_memory(*given):
            raise torch.OutOfMemoryError("a test's limit")

        patch.setattr(dense_phases, "difference", without_memory)
        with pytest.raises(torch.OutOfMemoryError, match="a test's limit"):
            opt.step()
    assert opt.num_selected == 0
    opt.step()
    assert opt.num_selected == OPTIONS["budget"]
    for mine, base in zip(params, make_params(SHAPES, torch.float32), strict=True):
        assert torch.equal(mine, base)
    found = Updates.from_optimizer(opt)
    assert len(found.offsets) == OPTIONS["budget"]
    assert found.steps == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_default_dtype(backend, dtype):
    (opt, params), (usual, others) = made(backend=backend, max_grad_norm=1.0), made(backend=backend, max_grad_norm=1.0)
    train(usual, others, 0, STEPS + 1)
    grads = [make_grads(params, step) for step in range(STEPS + 1)]
    torch.set_default_dtype(dtype)
    try:
        for each in grads:
            for param, grad in zip(params, each, strict=True):
                param.grad = grad
            opt.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_picture(picture(opt, params), picture(usual, others))


def test_any_default_device(tmp_path, backend):
    """Tables of the host are on the CPU, wherever somebody wants his tensors by default."""
    (opt, params), (usual, others) = made(backend=backend), made(backend=backend)
    train(usual, others, 0, STEPS + 1)
    model = nn.ParameterList(params)
    grads = [make_grads(params, step) for step in range(STEPS + 1)]
    torch.set_default_device("meta")
    try:
        for each in grads:
            for param, grad in zip(params, each, strict=True):
                param.grad = grad
            opt.step()
        packed = opt.state_dict()
        SparseDelta.from_optimizer(opt, model).save(tmp_path, compact=True)
        found = Updates.from_optimizer(opt)
        found.owners()
    finally:
        torch.set_default_device("cpu")
    assert_same_picture(picture(opt, params), picture(usual, others))
    assert packed["state"]["selective"]["starts"].device.type == "cpu"


def test_parameters_that_changed_places_are_refused():
    """Their scalars would be taken for each other's."""
    params = make_params([(40,), (40,)], torch.float32)
    opt = SelectiveAdamW([{"params": params[:1]}, {"params": params[1:]}], lr=1e-2, budget=9, total_steps=2)
    train(opt, params, 0, 1)
    opt.param_groups[0]["params"].append(nn.Parameter(torch.zeros(40)))
    opt._built = type(opt._built)()  # as after add_param_group
    for group in opt.param_groups:
        opt._built.add(group["params"])
    give_grads(params, 1)
    with pytest.raises(RuntimeError, match="params: expected the tensors of earlier steps"):
        opt.step()


def test_parameters_that_share_memory_are_refused():
    a, b = (nn.Parameter(torch.zeros(40)) for _ in range(2))
    b.data = a.data[10:]
    opt = SelectiveAdamW([("a", a), ("b", b)], lr=1e-2, budget=9, total_steps=2)
    a.grad, b.grad = torch.ones(40), torch.ones(30)
    with pytest.raises(ValueError, match=r"b: expected tensors with memory of their own, .* with a; tie"):
        opt.step()
