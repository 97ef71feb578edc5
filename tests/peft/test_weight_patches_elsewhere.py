"""Patches of parameters that are not on the CPU, and in files as TRL lays them out."""

import pytest
import torch
from deltatests import Model, random_tensor
from elsewhere import AWAY
from engines import Engine
from harness import SHAPES, make_grads, make_params, set_grads
from pretendedgpu import pretended_gpu
from safetensors import safe_open
from safetensors.torch import save_file
from selective_peft import SelectiveAdamW, SparseDelta, selective_param_groups
from torch.nn import Parameter

from selective_kernels.testing import DEALS, assert_bitwise_equal, pretended_places

DENSE = 6  # number of the tensor that is trained whole


def groups_of(params):
    named = [(f"layer.{i}", param) for i, param in enumerate(params)]
    return [
        {"params": [*named[:DENSE], *named[DENSE + 1 :]]},
        {"params": [named[DENSE]], "selective": False},
    ]


def check_patches_on(device, dtype, backend):
    """Two steps on a device: the patches lie there, and hold what the parameters do at what is selected."""
    params = [Parameter(param.detach().to(device)) for param in make_params(SHAPES, dtype)]
    optimizer = SelectiveAdamW(groups_of(params), lr=1e-2, budget=1500, total_steps=2, backend=backend)
    for step in range(2):
        set_grads(params, [grad.to(device) for grad in make_grads(make_params(SHAPES, dtype), step)])
        optimizer.step()
    patches = {patch.name: patch for patch in optimizer.iter_patches()}
    for i, param in enumerate(params):
        flat = param.detach().cpu().view(-1)
        places = torch.arange(len(flat)) if i == DENSE else optimizer.selected_indices(param)
        patch = patches.pop(f"layer.{i}", None)
        if patch is None:
            assert not len(places)
            continue
        assert {each.device for each in patch[3:] if each is not None} == {param.device}
        assert_bitwise_equal(patch.to("cpu").values, flat[places], patch.name)
        if patch.indices is not None:
            assert_bitwise_equal(patch.to("cpu").indices, places.int(), patch.name)
    assert not patches


def assert_same_patches(actual, expected):
    assert [patch[:3] for patch in actual] == [patch[:3] for patch in expected]
    for patch, other in zip(actual, expected, strict=True):
        assert_bitwise_equal(patch.values, other.values, patch.name)
        assert (patch.indices is None) == (other.indices is None)
        if patch.indices is not None:
            assert_bitwise_equal(patch.indices, other.indices, patch.name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_patches_lie_where_the_parameters_do(dtype, monkeypatch):
    """On a GPU, a pretended one where there is none."""
    dtype = getattr(torch, dtype)
    if torch.cuda.is_available():
        check_patches_on("cuda", dtype, "triton")
        return
    with pretended_gpu(monkeypatch):
        check_patches_on(AWAY, dtype, "triton")


def test_patches_of_a_model_over_several_places():
    pictures = []
    for deal in (None, *DEALS):
        params = make_params(SHAPES)
        with pretended_places(params, DEALS[deal] if deal else [0]):
            optimizer = SelectiveAdamW(groups_of(params), lr=1e-2, budget=1500, total_steps=1)
            set_grads(params, make_grads(params, 0))
            optimizer.step()
            pictures.append(list(optimizer.iter_patches()))
    for other in pictures[1:]:
        assert_same_patches(other, pictures[0])


def trained(dtype):
    """A model after two steps, and what an engine had before them."""
    model = Model({"a.weight": random_tensor((40, 30), dtype, 1), "head.weight": random_tensor((3, 5), dtype, 2)})
    with torch.no_grad():
        for param in model.parameters():
            param.clamp_(-2, 2)
    engine = Engine(model)
    groups = selective_param_groups(model, train_fully=["head"])
    optimizer = SelectiveAdamW(groups, lr=1e-2, budget=50, total_steps=2)
    params = list(model.parameters())
    for step in range(2):
        set_grads(params, make_grads(params, step))
        optimizer.step()
    return model, engine, optimizer


def read_published(path):
    """TRL's published layout: `<name>.indices` and `<name>.values` , `<name>` of what is whole."""
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        names = {key.removesuffix(".values") for key in keys if key.endswith(".values")}
        for name in sorted(names):
            yield name, file.get_tensor(f"{name}.indices"), file.get_tensor(f"{name}.values")
        for name in sorted(keys - {f"{name}.{part}" for name in names for part in ("indices", "values")}):
            yield name, None, file.get_tensor(name)


def test_a_plain_delta_is_the_file_that_trl_lays_out(tmp_path, dtype):
    """Its reader needs to know nothing of ours, and our file has the very tensors that its writer would put there."""
    model, engine, optimizer = trained(dtype)
    SparseDelta.from_optimizer(optimizer, model).save(tmp_path, originals=False)
    theirs = {}
    for patch in optimizer.iter_patches(model):
        name = patch.name
        if patch.indices is None:
            theirs[name] = patch.values.view(patch.shape)
        else:
            theirs |= {f"{name}.indices": patch.indices, f"{name}.values": patch.values}
    assert sorted(theirs) == ["a.weight.indices", "a.weight.values", "head.weight"]
    save_file(theirs, tmp_path / "theirs.safetensors", metadata={"sparse": "True", "model_version": "1"})
    ours, read = (
        list(read_published(tmp_path / name)) for name in ("selective_delta.safetensors", "theirs.safetensors")
    )
    assert [name for name, _, _ in ours] == [name for name, _, _ in read] == ["a.weight", "head.weight"]
    for (name, indices, values), (_, others, expected) in zip(ours, read, strict=True):
        assert_bitwise_equal(values, expected)
        weight = engine.weights[name]
        if indices is None:
            assert others is None
            weight.copy_(values)
            continue
        assert (indices.dtype, values.dtype) == (torch.int32, dtype)
        assert_bitwise_equal(indices, others)
        weight.view(-1)[indices.long()] = values
    engine.assert_is(model)
