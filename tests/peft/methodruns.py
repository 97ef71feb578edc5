"""What the tests of methods share: named parameters, an optimizer by method, and running it beside an oracle."""

import warnings

import torch
from harness import SHAPES, make_grads, set_grads
from method_oracle import Repeat
from selective_peft import SelectiveAdamW

from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

BUDGET, TOTAL, STEPS = 300, 6, 8
ADAMW = {"lr": 0.01, "weight_decay": 0.1}
NAMES = [f"layer.{i}.weight" for i in range(len(SHAPES))]
LENGTH = {"budget": BUDGET, "total_steps": TOTAL}
STATIC = {"strategy": "static"}


def named(params):
    return list(zip(NAMES, params, strict=True))


def run_both(opt, oracle, params, dtype, gap=None):
    """Steps both; after each the same scalars are selected, close where selected, bit-identical elsewhere."""
    for step in range(STEPS):
        grads = make_grads(params, step)
        if gap is not None:
            grads[gap] = None
        set_grads(params, grads)
        opt.step()
        oracle.step(grads)
        for i, param in enumerate(params):
            assert torch.equal(opt.selected_indices(param), oracle.selected(i)), f"step {step}, tensor {i}"
            mask = oracle.masks[i]
            visible = oracle.visible(i).to(dtype)
            torch.testing.assert_close(param.detach()[mask], visible[mask], **TOLERANCES[dtype])
            if not isinstance(oracle, Repeat):
                assert_bitwise_equal(param.detach()[~mask], oracle.frozen[i][~mask])
            if grads[i] is not None:
                assert_bitwise_equal(param.grad, grads[i])  # C8


def make(params, method, backend="auto", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if method == "d3-repeat" else "error")
        return SelectiveAdamW(
            named(params),
            **{**ADAMW, "budget": BUDGET, "total_steps": TOTAL, **options},
            method=method,
            backend=backend,
        )
