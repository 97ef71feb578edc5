"""Whole runs of the optimizers on Triton kernels against plain PyTorch: on a GPU if there is one, else interpreted.

The interpreter takes a second or two per run; the suites of the other backends hold the details.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from harness import KINDS, assert_same_picture, make_grads, make_params, picture, set_grads
from selective_peft import D3, SelectiveAdamW
from torch.nn import Parameter

from selective_kernels import _triton
from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

DEVICE = "cpu" if _triton.interpreted() else "cuda"
SHAPES = [(5, 7), (0,), (67, 61), (2, 3, 5), (), (294,)]
DENSE = 4  # the last two are a group that is trained whole
BUDGET, STEPS = 120, 3
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(backend, kind="AdamW", dtype=torch.float32, device=DEVICE, **options):
    params = [Parameter(param.detach().to(device)) for param in make_params(SHAPES, dtype)]
    groups = [
        {"params": params[:2]},
        {"params": params[2:DENSE], "weight_decay": 0.3},
        {"params": params[DENSE:], "selective": False},
    ]
    options = {"lr": 1e-2, "weight_decay": 0.1, "budget": BUDGET, "total_steps": STEPS, **options}
    if kind == "SGD":
        options = {"momentum": 0.9, **options}
    return KINDS[kind](groups, backend=backend, **options), params


def train(opt, params, first, last, spoil=None):
    for step in range(first, last):
        grads = make_grads(params, step)
        for i, value in (spoil or {}).get(step, {}).items():
            grads[i].fill_(value)
        missing = 2 if step == 2 else None
        set_grads(params, [None if i == missing else grad.to(params[i].device) for i, grad in enumerate(grads)])
        opt.step()


def assert_same_run(mine, reference, dtype):
    """The same selections, bit for bit; parameters to rounding, frozen ones bit for bit."""
    for param, other, first in zip(mine[1], reference[1], make_params(SHAPES, dtype), strict=True):
        torch.testing.assert_close(param.detach().cpu(), other.detach().cpu(), **TOLERANCES[dtype])
        if any(param is each for each in mine[1][:DENSE]):
            chosen = mine[0].selected_indices(param)
            assert torch.equal(chosen, reference[0].selected_indices(other))
            frozen = torch.ones(param.numel(), dtype=torch.bool)
            frozen[chosen] = False
            assert_bitwise_equal(
                param.detach().cpu().reshape(-1)[frozen], first.detach().reshape(-1)[frozen], "frozen scalars"
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_c6_c7_a_run_equals_the_reference(kind, dtype):
    """C3-C7: selections bit for bit, updates to rounding, with a tensor that misses a gradient and two groups."""
    options = {"AdamW": {"max_grad_norm": 0.5}, "Adam": {"bias_correction": "per_entry"}, "SGD": {"nesterov": True}}
    mine = make("triton", kind, dtype, **options[kind])
    reference = make("reference", kind, dtype, device="cpu", **options[kind])
    for opt, params in (mine, reference):
        train(opt, params, 0, STEPS + 2)
    assert mine[0].num_selected == BUDGET
    assert_same_run(mine, reference, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"score": D3(exp=0.5, eps=1e-3), "schedule": "cosine", "select_every": 2},
        {"scope": "tensor"},
        {"method": "pafi"},
        {"method": "snip"},
        {"method": "random", "method_kwargs": {"seed": 3}},
        {"score": lambda name, param, grad: grad.float().abs() + 1.0, "strategy": "static"},
    ],
    ids=["cosine", "tensor", "pafi", "snip", "random", "own"],
)
def test_c4_every_way_to_select(options):
    mine, reference = make("triton", **options), make("reference", device="cpu", **options)
    for opt, params in (mine, reference):
        train(opt, params, 0, 3)
    assert mine[0].num_selected > 0
    assert_same_run(mine, reference, torch.float32)


def test_c9_bad_gradients_skip_the_step_on_the_device():
    """C9: in a selecting step and later, in selective and dense groups: nothing changes, all is counted."""
    spoil = {1: {2: math.nan}, 4: {DENSE: math.inf}, 5: {2: -math.inf}, 6: {5: math.nan}}
    mine = make("triton", max_grad_norm=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(*mine, 0, 7, spoil)
        assert mine[0].skipped_steps == len(spoil)
    assert len([each for each in caught if "inf or NaN" in str(each.message)]) == 1
    reference = make("reference", device="cpu", max_grad_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(*reference, 0, 7, spoil)
    assert_same_run(mine, reference, torch.float32)
    assert mine[0].state_dict()["state"]["selective"]["step"] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_c11_a_resumed_run_is_the_same_bit_for_bit(dtype):
    whole, params = make("triton", dtype=dtype)
    train(whole, params, 0, 2)
    saved = copy.deepcopy(whole.state_dict())
    again, others = make("triton", dtype=dtype)
    for mine, other in zip(others, params, strict=True):
        mine.detach().copy_(other.detach())
    again.load_state_dict(saved)
    for opt, mine in ((whole, params), (again, others)):
        train(opt, mine, 2, 5)
    assert_same_picture(picture(again, others), picture(whole, params))


def test_c11_a_checkpoint_of_another_backend_goes_on():
    """The next selection is bit-equal given equal inputs."""
    reference, params = make("reference", device="cpu")
    train(reference, params, 0, 2)
    mine, others = make("triton")
    for param, other in zip(others, params, strict=True):
        param.detach().copy_(other.detach())
    mine.load_state_dict(copy.deepcopy(reference.state_dict()))
    for opt, each in ((reference, params), (mine, others)):
        train(opt, each, 2, 4)
    assert_same_run((mine, others), (reference, params), torch.float32)


def test_launches_do_not_depend_on_the_number_of_tensors(monkeypatch):
    """At most eight launches of our own in a step, whatever is in it."""
    from selective_kernels._triton import indexing, merging, optim, read, winners

    counts = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *args, **kwargs: counts.append(self.kernel) or self.kernel[grid](*args, **kwargs)

    for module in (indexing, merging, optim, read, winners):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Counted(getattr(module, name)))
    for shapes in ([(40, 5)], [(9,)] * 30):
        params = [Parameter(param.detach().to(DEVICE)) for param in make_params(shapes, torch.bfloat16)]
        opt = SelectiveAdamW(params, budget=100, total_steps=2, max_grad_norm=1.0, backend="triton")
        for step, launches in ((0, 8), (1, 8), (2, 3)):
            set_grads(params, [grad.to(DEVICE) for grad in make_grads(params, step)])
            counts.clear()
            opt.step()
            assert 0 < len(counts) <= launches, (shapes, step, counts)
        assert opt.num_selected == 100


@pytest.mark.skipif(DEVICE == "cpu", reason='"auto" takes Triton for CUDA tensors')
def test_auto_takes_triton_for_cuda_tensors():
    opt, params = make("auto")
    train(opt, params, 0, 1)
    assert opt._defers
