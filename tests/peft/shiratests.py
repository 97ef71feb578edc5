"""What the tests of SHiRA adapters share: models with changes of every kind, and PEFT's merge."""

import copy
import json

import torch
from families import tiny
from peft import PeftModel
from selective_peft import SparseDelta

from selective_kernels.testing import assert_bitwise_equal


def tuned_copy(model, counts, seed=0):
    """A copy with so many random scalars changed in each tensor whose name has such an ending."""
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(model)
    found = dict.fromkeys(counts, 0)
    with torch.no_grad():
        for name, param in tuned.named_parameters():
            for ending, count in counts.items():
                if name.endswith(ending):
                    found[ending] += 1
                    flat = param.view(-1)
                    places = torch.randperm(len(flat), generator=generator)[:count]
                    flat[places] += 0.01 * torch.randn(len(places), generator=generator).to(param.dtype)
    assert all(found.values())
    return tuned


def model_and_delta(family, counts, dtype=torch.float32, **more):
    """A base with zeros of both signs in its matrices, the tuned model, and the delta."""
    base = tiny(family).to(dtype).eval()
    with torch.no_grad():
        for param in base.parameters():
            if param.dim() == 2:
                param[0, :4] = -0.0
                param[1, :4] = 0.0
    tuned = tuned_copy(base, counts)
    return base, tuned, SparseDelta.from_models(base, tuned, **more)


def merged(base, folder):
    """The base with the adapter merged in by PEFT; the base itself stays as it is."""
    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).merge_and_unload()


def assert_same_state(actual, expected):
    """Equal bits of all parameters and buffers."""
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            assert_bitwise_equal(actual[name], tensor, name)
        else:
            assert torch.equal(actual[name], tensor), name


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())
