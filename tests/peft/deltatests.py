"""What the tests of deltas share: models of any tensors, changed copies of them, and bits to compare."""

import copy

import torch
from hypothesis import strategies as st
from selective_peft import SelectiveAdamW
from torch import nn

from selective_kernels.testing import assert_bitwise_equal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Zeros of both signs, the smallest subnormal, the largest and the smallest normal number of each dtype.
EDGES = {
    dtype: torch.tensor(
        [0.0, -0.0, torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max, torch.finfo(dtype).min, 1.0],
        dtype=dtype,
    )
    for dtype in DTYPES
}


class Model(nn.Module):
    """Parameters by name; dots in it become submodules."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(tensor.clone()))


def tensors_of(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def assert_same_model(actual, expected):
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert_bitwise_equal(actual[name], tensor)


def random_tensor(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(dtype)
    flat, edges = values.view(-1), EDGES[dtype]
    places = torch.randperm(len(flat), generator=generator)[: len(edges)]
    flat[places] = edges[: len(places)]
    return values


def changed(tensor, share, seed):
    """A copy in which about a share of the scalars has other bits, some of them just another sign of zero."""
    generator = torch.Generator().manual_seed(seed)
    copied = tensor.clone()
    flat = copied.view(-1)
    places = (torch.rand(len(flat), generator=generator) < share).nonzero().view(-1)
    flat[places] = random_tensor((len(places),), tensor.dtype, seed + 1)
    return copied


@st.composite
def pairs(draw):
    """A model and a changed copy: 0-D to 3-D tensors of every dtype, empty ones, few or many changes, or none."""
    count = draw(st.integers(1, 5))
    base, tuned = {}, {}
    for i in range(count):
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        tensor = random_tensor(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
        name = draw(st.sampled_from(["layer.{}.weight", "a{}", "x.{}.values", "block.{}.ünï.bias"])).format(i)
        base[name] = tensor
        tuned[name] = changed(tensor, draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])), draw(st.integers(0, 99)))
    return Model(base), Model(tuned)


def fish_scores():
    """For what `trained` selects from."""
    shapes = {"0.weight": (50, 40), "0.bias": (50,), "2.weight": (30, 50), "2.bias": (30,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def trained(dtype=torch.float32, seed=0, budget=200, steps=3, head=True, **options):
    """A base, a copy of it tuned for a few steps, and the optimizer."""
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 30), nn.Tanh(), nn.Linear(30, 3)).to(dtype)
    model = copy.deepcopy(base)
    groups = [{"params": list(model[:4].named_parameters())}]
    if head:
        groups.append({"params": [(f"4.{n}", p) for n, p in model[4].named_parameters()], "selective": False})
    options = {"budget": budget, "total_steps": steps, **options}
    optimizer = SelectiveAdamW(groups, lr=1e-2, **options)
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(16, 40, dtype=dtype)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return base, model, optimizer
