"""C2-C8: the optimizers against the dense oracle, over generated models, options and gradients, on both backends."""

from dataclasses import dataclass, field

import pytest
import torch
from harness import KINDS
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import Oracle
from selective_peft import D3
from torch.nn import Parameter

from selective_kernels.testing import TOLERANCES, assert_bitwise_equal

EXAMPLES = 150  # per optimizer and backend: two to five seconds each
EXTRA_STEPS = 3  # after the last scheduled one: nothing more is selected, training goes on
# 0-D to 4-D; sizes 0, 1, odd, vectors around a SIMD width, and one that spans two 4096-entry tiles.
SHAPES = [(), (0,), (1,), (3,), (17,), (33,), (5, 7), (0, 4), (3, 2, 5), (2, 1, 3, 3), (4099,)]
# Moments are fp32 on both sides whatever the parameters are, and of scale 1; a few roundings apart.
MOMENTS = {"rtol": 1e-5, "atol": 1e-6}
MIXES = [[torch.float32], [torch.bfloat16], [torch.float16], [torch.float32, torch.bfloat16, torch.float16]]
LR = [1e-3, 1e-2]  # small against parameters of scale 1/2, so that rounding errors stay below the tolerances


@dataclass
class Case:
    """A generated run: groups of shapes with options, keyword arguments for both sides, and how gradients look."""

    kind: str
    groups: list
    options: list
    mix: list
    common: dict
    eps: float
    exp: float
    seed: int
    levels: int  # gradients take this many distinct magnitudes, 0 for continuous ones: few of them make ties
    missing: float  # share of (tensor, step) pairs whose gradient is None
    params: list = field(default_factory=list)

    def build(self):
        generator = torch.Generator().manual_seed(self.seed)
        groups = []
        for shapes, options in zip(self.groups, self.options, strict=True):
            params = []
            for shape in shapes:
                value = torch.randn(shape, generator=generator) * 0.5
                value = (value * 4).round() / 4 if self.levels else value
                dtype = self.mix[len(self.params) % len(self.mix)]
                params.append(Parameter(value.to(dtype)))
                self.params.append(params[-1])
            groups.append({**options, "params": params})
        return groups

    def gradients(self, step):
        generator = torch.Generator().manual_seed(self.seed + 7919 * (step + 1))
        found = []
        for param in self.params:
            grad = torch.randn(param.shape, generator=generator)
            if self.levels:
                grad = (grad * self.levels).round() / self.levels
            grad = grad * (torch.rand(param.shape, generator=generator) > 0.2)
            missing = torch.rand((), generator=generator) < self.missing
            found.append(None if missing else grad.to(param.dtype))
        return found


def group_options(kind):
    shared = {"lr": st.sampled_from(LR), "weight_decay": st.sampled_from([0.0, 0.1])}
    if kind == "SGD":
        plain = st.fixed_dictionaries(
            {**shared, "momentum": st.sampled_from([0.0, 0.9]), "dampening": st.sampled_from([0.0, 0.5])}
        )
        nesterov = st.fixed_dictionaries({**shared, "momentum": st.just(0.8), "nesterov": st.just(True)})
        return st.one_of(plain, nesterov)
    betas = st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
    return st.fixed_dictionaries({**shared, "betas": betas, "eps": st.sampled_from([1e-8, 1e-3])})


@st.composite
def cases(draw, kind):
    groups = draw(st.lists(st.lists(st.sampled_from(SHAPES), max_size=4), min_size=1, max_size=3))
    scalars = sum(torch.Size(shape).numel() for group in groups for shape in group)
    assume(scalars > 0)
    common = {
        "budget": draw(st.integers(1, scalars)),
        "total_steps": draw(st.integers(1, 7)),
        "strategy": draw(st.sampled_from(["increment", "increment", "static"])),
        "schedule": draw(st.sampled_from(["uniform", "linear", "cosine", "front"])),
        "select_every": draw(st.sampled_from([1, 1, 2, 3])),
        "bias_correction": draw(st.sampled_from(["global", "per_entry"])),
        "max_grad_norm": draw(st.sampled_from([None, None, 0.5])),
    }
    return Case(
        kind=kind,
        groups=groups,
        options=[draw(group_options(kind)) for _ in groups],
        mix=draw(st.sampled_from(MIXES)),
        common=common,
        eps=draw(st.sampled_from([1.0, 1e-3])),
        exp=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        seed=draw(st.integers(0, 10**6)),
        levels=draw(st.sampled_from([0, 2])),
        missing=draw(st.sampled_from([0.0, 0.3])),
    )


def check_step(opt, oracle, params):
    """The same selection, the same parameters to rounding, untouched ones bit for bit, the same history."""
    assert opt.num_selected == oracle.count
    for i, param in enumerate(params):
        assert torch.equal(opt.selected_indices(param), oracle.selected(i))
        expected, mask = oracle.visible(i), oracle.masks[i]
        torch.testing.assert_close(param.detach(), expected, **TOLERANCES[param.dtype])
        assert_bitwise_equal(param.detach()[~mask], expected[~mask], f"unselected entries of params[{i}]")


def check_state(opt, oracle, params):
    """Per-entry state against the dense one at the selected entries."""
    arrays = opt.state_dict()["state"]["selective"]["arrays"]

    def at_selected(tensors):
        return torch.cat([tensor[mask] for tensor, mask in zip(tensors, oracle.masks, strict=True)])

    chosen = at_selected(oracle.chosen)
    assert torch.equal(arrays["chosen"].long(), chosen)
    if "master" in arrays:  # counts for entries of 16-bit parameters only
        expected = at_selected([value.detach() for value in oracle.values])
        half = at_selected([torch.full(p.shape, p.dtype != torch.float32) for p in params])
        torch.testing.assert_close(arrays["master"][half], expected[half], **TOLERANCES[torch.float32])
    if oracle.per_entry:
        return
    for name in set(arrays) & {"exp_avg", "exp_avg_sq", "momentum_buffer"}:
        states = [oracle.dense.state[value].get(name) for value in oracle.values]
        pairs = zip(states, params, strict=True)
        expected = at_selected([torch.zeros(p.shape) if state is None else state for state, p in pairs])
        torch.testing.assert_close(arrays[name], expected, **MOMENTS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_optimizer_is_the_dense_one_restricted_to_the_selection(kind, backend):
    """C2-C8: selections exactly, parameters and state to rounding, step after step."""

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=cases(kind))
    def run(case):
        groups = case.build()
        common = case.common
        oracle = Oracle(groups, kind, exp=case.exp, eps=case.eps, **common)
        opt = KINDS[kind](groups, score=D3(exp=case.exp, eps=case.eps), backend=backend, **common)
        params, selecting = case.params, 0
        for step in range(common["total_steps"] + EXTRA_STEPS):
            grads = case.gradients(step)
            for param, grad in zip(params, grads, strict=True):
                param.grad = None if grad is None else grad.clone()
            opt.step()
            oracle.step(grads)
            check_step(opt, oracle, params)
            selecting += any(grad is not None for grad in grads)
            for param, grad in zip(params, grads, strict=True):
                if grad is not None:
                    assert_bitwise_equal(param.grad, grad, "gradient (C8)")
        if selecting:
            check_state(opt, oracle, params)

    run()
