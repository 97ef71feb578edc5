"""Small models, seeded gradients, and bitwise pictures of everything that a step may change."""

import torch
from selective_peft import SelectiveAdam, SelectiveAdamW, SelectiveSGD
from torch.nn import Parameter

from selective_kernels.testing import assert_bitwise_equal

KINDS = {"AdamW": SelectiveAdamW, "Adam": SelectiveAdam, "SGD": SelectiveSGD}
# 1-D to 4-D, sizes 0, 1 and odd, and one tensor of more than one 4096-entry tile; 4,466 scalars.
SHAPES = [(5, 7), (0,), (1,), (67, 61), (2, 3, 5), (2, 1, 3, 3), (), (294,)]
SCALARS = 4466


def make_params(shapes=SHAPES, dtype=torch.float32, seed=0):
    """Parameters from N(0, 1/4), so that eps = 1 and the magnitude both count in the score."""
    generator = torch.Generator().manual_seed(seed)
    return [Parameter((torch.randn(shape, generator=generator) * 0.5).to(dtype)) for shape in shapes]


def make_grads(params, seed):
    """Gradients from N(0, 1), a fifth of them exactly zero."""
    generator = torch.Generator().manual_seed(1000 + seed)
    grads = []
    for param in params:
        grad = torch.randn(param.shape, generator=generator)
        grads.append((grad * (torch.rand(param.shape, generator=generator) > 0.2)).to(param.dtype))
    return grads


def set_grads(params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()


def train(opt, params, first, last):
    """Steps first .. last - 1, each with the gradients of its number."""
    for step in range(first, last):
        set_grads(params, make_grads(params, step))
        opt.step()


def leaves(tree, path=""):
    """A nested state as {path: tensor or primitive}."""
    if isinstance(tree, dict):
        return {key: leaf for name, value in tree.items() for key, leaf in leaves(value, f"{path}/{name}").items()}
    if isinstance(tree, (list, tuple)):
        return {key: leaf for i, value in enumerate(tree) for key, leaf in leaves(value, f"{path}/{i}").items()}
    return {path: tree}


def picture(opt, params):
    """Copies of all parameters, gradients and the whole state dict."""
    found = leaves(opt.state_dict())
    found |= {f"param/{i}": param.detach() for i, param in enumerate(params)}
    found |= {f"grad/{i}": param.grad for i, param in enumerate(params)}
    return {path: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for path, leaf in found.items()}


def assert_same_picture(actual, expected, ignore=()):
    """Raises AssertionError unless two pictures agree in every bit, but for paths that end with an ignored name."""
    keep = [{path for path in each if not path.endswith(tuple(ignore))} for each in (actual, expected)]
    assert keep[0] == keep[1]
    for path in sorted(keep[0]):
        a, b = actual[path], expected[path]
        assert isinstance(a, torch.Tensor) == isinstance(b, torch.Tensor), path
        if isinstance(a, torch.Tensor):
            assert_bitwise_equal(a, b, path)
        else:
            assert a == b, f"{path}: {a} != {b}"
