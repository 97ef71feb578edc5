"""Steps on Triton kernels never wait for the GPU, but once after a scan and for the step before.

Shown on a GPU by torch's own means, and without one on a pretended GPU.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from elsewhere import AWAY
from harness import KINDS, make_grads, make_params
from pretendedgpu import pretended_gpu
from torch.nn import Parameter
from torch.utils._pytree import tree_map

from selective_kernels import _triton
from selective_kernels.testing import assert_bitwise_equal

SHAPES = [(5, 7), (0,), (67, 61), (2, 3, 5), (), (29,)]
DENSE = 4  # the last two are a group that is trained whole
BUDGET, STEPS, LAST = 120, 3, 6
SKIPPED = LAST - 2  # the step with a gradient that is NaN
# How often each step waits: for its scan, for the dense groups' flag (which was sent before the scan), and at its start
# for a step before that nobody has waited for.
WAYS = {
    "clipped": ({"max_grad_norm": 0.5}, [2, 2, 2, 0, 1, 1]),
    "per entry, every other": ({"bias_correction": "per_entry", "select_every": 2}, [2, 0, 3, 0, 1, 1]),
    "16 bits": ({"dtype": torch.bfloat16}, [2, 2, 2, 0, 1, 1]),
    "static": ({"method": "snip"}, [2, 0, 1, 1, 1, 1]),
    "selected without gradients": ({"method": "pafi-increment"}, [1, 2, 2, 1, 1, 1]),
    "random": ({"method": "random"}, [1, 1, 1, 1, 1, 1]),
    "all dense": ({"method": "full"}, [0, 1, 1, 1, 1, 1]),
}
RUNS = [*((kind, "clipped") for kind in KINDS), *(("AdamW", way) for way in list(WAYS)[1:]), ("SGD", "all dense")]


def make(device, kind="AdamW", dtype=torch.float32, **options):
    params = [Parameter(param.detach().to(device)) for param in make_params(SHAPES, dtype)]
    whole = options.get("method") == "full"
    budget = {} if whole else {"budget": BUDGET, "total_steps": STEPS}
    groups = [{"params": params[:DENSE], "selective": not whole}, {"params": params[DENSE:], "selective": False}]
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    return KINDS[kind](groups, lr=1e-2, weight_decay=0.1, backend="triton", **budget, **momentum, **options), params


def gradients(params):
    """By step; one tensor has none in some of them."""
    found = []
    for step in range(LAST):
        grads = make_grads(params, step)
        if step == SKIPPED:
            grads[2].fill_(float("nan"))
        found.append([None if i == 0 and step % 3 == 2 else grad for i, grad in enumerate(grads)])
    return found


def step_with(opt, params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    opt.step()


@pytest.mark.skipif(not _triton.interpreted(), reason="pretends by Triton's interpreter (TRITON_INTERPRET=1)")
@pytest.mark.filterwarnings("ignore:step 4. skipped")
@pytest.mark.parametrize(("kind", "way"), RUNS)
def test_a_pretended_gpu_is_not_waited_for(kind, way, monkeypatch, waits):
    """All bits are those of a run on the CPU; a step that is skipped is among them."""
    options, expected_waits = WAYS[way]
    reference, theirs = make("cpu", kind, **options)
    grads = gradients(theirs)
    for step in range(LAST):
        step_with(reference, theirs, grads[step])
    with pretended_gpu(monkeypatch) as watch:
        opt, params = make(AWAY, kind, **options)
        if way == "all dense":
            opt._bind()
            opt._defers = True  # as with CUDA tensors
        for step in range(LAST):
            given = [None if grad is None else grad.to(AWAY) for grad in grads[step]]
            waits.clear()
            with watch:
                step_with(opt, params, given)
            assert len(waits) == expected_waits[step], f"step {step}"
        assert opt.skipped_steps == reference.skipped_steps == 1
        for i, (param, other) in enumerate(zip(params, theirs, strict=True)):
            assert_bitwise_equal(param.detach().cpu(), other.detach(), f"parameter {i}")


@pytest.mark.skipif(not _triton.interpreted(), reason="pretends by Triton's interpreter (TRITON_INTERPRET=1)")
def test_nor_after_loading(monkeypatch, waits):
    """A checkpoint that was loaded on the CPU: its step counters have to go to the device."""
    with pretended_gpu(monkeypatch) as watch:
        opt, params = make(AWAY)
        grads = [[None if grad is None else grad.to(AWAY) for grad in each] for each in gradients(make("cpu")[1])]
        for step in range(2):
            step_with(opt, params, grads[step])
        state = tree_map(lambda each: each.cpu().clone() if isinstance(each, torch.Tensor) else each, opt.state_dict())
        again, others = make(AWAY)
        with torch.no_grad():
            for param, other in zip(others, params, strict=True):
                param.copy_(other)
        again.load_state_dict(state)
        assert again.state[others[DENSE]]["step"].device.type == "cpu"
        for step in (2, 3):
            for each, mine in ((opt, params), (again, others)):
                waits.clear()
                with nullcontext() if step == 2 else watch:  # the first one checks the index
                    step_with(each, mine, grads[step])
                assert len(waits) == WAYS["clipped"][1][step]
            assert again.state[others[DENSE]]["step"].device == AWAY
        for i, (param, other) in enumerate(zip(params, others, strict=True)):
            assert_bitwise_equal(param.detach().cpu(), other.detach().cpu(), f"parameter {i}")


@pytest.mark.skipif(not _triton.interpreted(), reason="pretends by Triton's interpreter (TRITON_INTERPRET=1)")
@pytest.mark.parametrize("read", [
    lambda away: away.sum().item(), lambda away: bool(away[0] > 0), lambda away: away[away > 0],
    lambda away: away.cpu(), lambda away: away.nonzero(), lambda away: torch.tensor([1.0], device=AWAY),
    lambda away: away.copy_(torch.ones(3)),
])  # fmt: skip
def test_a_pretended_gpu_notices(read, monkeypatch):
    """Without this the tests above could not fail."""
    with pretended_gpu(monkeypatch) as watch:
        away = torch.ones(3).to(AWAY)
        with watch, pytest.raises(AssertionError, match=r"waits"):
            read(away)


@pytest.mark.skipif(
    _triton.interpreted() or not torch.cuda.is_available(), reason="needs a CUDA GPU, and TRITON_INTERPRET=0"
)
@pytest.mark.filterwarnings("ignore:step 4. skipped")
@pytest.mark.parametrize(("kind", "way"), RUNS)
def test_a_gpu_is_not_waited_for(kind, way, waits):
    options, expected_waits = WAYS[way]
    opt, params = make("cuda", kind, **options)
    theirs = make_params(SHAPES, options.get("dtype", torch.float32))
    grads = [[None if grad is None else grad.cuda() for grad in each] for each in gradients(theirs)]
    for step in range(LAST):
        waits.clear()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one sets everything up
        try:
            step_with(opt, params, grads[step])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(waits) == expected_waits[step], f"step {step}"
    assert opt.skipped_steps == 1
