"""Whole runs of the optimizers on CUDA kernels against plain PyTorch: on a GPU if there is one, else emulated."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from cudatests import CUDA_DEVICE, on_cuda_kernels
from harness import KINDS, assert_same_picture, make_grads, make_params, picture
from test_triton_optim import DENSE, SHAPES, STEPS, assert_same_run, make, train

from selective_kernels import _cuda
from selective_kernels._cuda import choosing, indexing, optim, read, winners

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def kernels():
    with on_cuda_kernels():
        yield


def mine_and_theirs(kind="AdamW", dtype=torch.float32, **options):
    mine = make("cuda", kind, dtype, device=CUDA_DEVICE, **options)
    return mine, make("reference", kind, dtype, device="cpu", **options)


@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS, DTYPES, strict=True)))
def test_c6_c7_a_run_equals_the_reference(kind, dtype):
    """C3-C7: selections bit for bit, updates to rounding, with a tensor that misses a gradient and two groups."""
    options = {"AdamW": {"max_grad_norm": 0.5}, "Adam": {"bias_correction": "per_entry"}, "SGD": {"nesterov": True}}
    mine, reference = mine_and_theirs(kind, dtype, **options[kind])
    for opt, params in (mine, reference):
        train(opt, params, 0, STEPS + 2)
    assert mine[0]._defers
    assert_same_run(mine, reference, dtype)


@pytest.mark.parametrize(
    "options",
    [{"scope": "tensor"}, {"method": "pafi-increment"}, {"method": "random", "method_kwargs": {"seed": 3}}],
    ids=["tensor", "pafi", "random"],
)
def test_c4_ways_to_select(options):
    mine, reference = mine_and_theirs(**options)
    for opt, params in (mine, reference):
        train(opt, params, 0, 3)
    assert mine[0].num_selected > 0
    assert_same_run(mine, reference, torch.float32)


def test_c9_bad_gradients_skip_the_step_on_the_device():
    """C9: in a selecting step and later, in selective and dense groups: nothing changes, all is counted."""
    spoil = {1: {2: math.nan}, 4: {DENSE: math.inf}, 5: {2: -math.inf}}
    mine, reference = mine_and_theirs(max_grad_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for opt, params in (mine, reference):
            train(opt, params, 0, 6, spoil)
    assert mine[0].skipped_steps == len(spoil)
    assert_same_run(mine, reference, torch.float32)


def test_c11_a_resumed_run_is_the_same_bit_for_bit():
    whole, params = make("cuda", device=CUDA_DEVICE, max_grad_norm=0.5)
    train(whole, params, 0, 2)
    saved = copy.deepcopy(whole.state_dict())
    again, others = make("cuda", device=CUDA_DEVICE, max_grad_norm=0.5)
    for mine, other in zip(others, params, strict=True):
        mine.detach().copy_(other.detach())
    again.load_state_dict(saved)
    for opt, mine in ((whole, params), (again, others)):
        train(opt, mine, 2, 5)
    assert_same_picture(picture(again, others), picture(whole, params))


ENQUEUE = ("read", "repair", "select", "gather", "gather_bits", "gather_grads", "square_sum", "adam", "sgd", "Merge")


class Watched:
    """The native module, which notes the calls that enqueue work."""

    def __init__(self, module, made):
        self._module, self._made = module, made

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if name not in ENQUEUE:
            return found
        return lambda *arguments: self._made.append(name) or found(*arguments)


@pytest.fixture
def enqueued(monkeypatch):
    """Names of the native calls that enqueue something."""
    made = []
    for module in (choosing, indexing, optim, read, winners):
        monkeypatch.setattr(module, "native", lambda: Watched(_cuda.native(), made))
    return made


def make_steps(opt, params, expected, made):
    for step, calls in enumerate(expected):
        made.clear()
        for param, grad in zip(params, make_grads(make_params(SHAPES, torch.float32), step), strict=True):
            param.grad = grad.to(param.device)
        opt.step()
        assert made == calls, step


def test_a_step_is_one_call(enqueued):
    """Scan, merge or gather, norm, clipping and update."""
    opt, params = make("cuda", device=CUDA_DEVICE, max_grad_norm=0.5)
    make_steps(opt, params, [["adam"]] * (STEPS + 2), enqueued)


def test_scores_without_gradients_take_a_call_for_the_scan(enqueued):
    """A view of a merge enqueues nothing by itself."""
    opt, params = make("cuda", device=CUDA_DEVICE, max_grad_norm=0.5, method="pafi-increment")
    gathers = ["gather_grads"] * 2  # of old and of new entries
    selecting = ["read", "select", *gathers, "Merge", "adam"]
    make_steps(opt, params, [selecting] * STEPS + [["adam"]] * 2, enqueued)
