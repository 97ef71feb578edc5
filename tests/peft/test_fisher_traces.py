"""Computing Fisher scores leaves no trace, and takes the memory of the result and of one set of gradients."""

import copy
import random

import pytest
import torch
from probing import needs_peak_counter, probed
from selective_peft.fisher import fisher_scores

from selective_kernels.testing import assert_bitwise_equal

pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

from fishing import ROWS, Plain, plain_rows


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("sample_type", ["label", "expected"])
def test_nothing_is_left_behind(sample_type, fails):
    """Modes per module, `.grad` objects and their values, parameters, buffers, random numbers; after an error, too."""
    model, rows = Plain().train(), plain_rows()
    model.body[1].eval()
    model.head.bias.requires_grad_(False)
    for param in (model.head.weight, model.scale):
        param.grad = torch.full_like(param, 3.0)
    modes = [module.training for module in model.modules()]
    wanted = [param.requires_grad for param in model.parameters()]
    grads = [param.grad for param in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    if fails:
        rows["x"][3, 2] = float("nan")
    data = [{key: value[i] for key, value in rows.items()} for i in range(ROWS)]
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    torch_random, python_random = torch.get_rng_state(), random.getstate()
    with torch.no_grad():
        if fails:
            with pytest.raises(FloatingPointError):
                fisher_scores(model, loader, ROWS, sample_type, progress=False)
        else:
            fisher_scores(model, loader, ROWS, sample_type, progress=False)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), torch_random)
    assert random.getstate() == python_random
    assert [module.training for module in model.modules()] == modes
    assert [param.requires_grad for param in model.parameters()] == wanted
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))
    assert all(grad is None or bool((grad == 3.0).all()) for grad in grads)
    for name, value in model.state_dict().items():
        assert_bitwise_equal(value, state[name], name)


def test_progress_is_shown_if_wanted(capsys):
    fisher_scores(Plain(), [plain_rows()], ROWS, progress=False)
    assert capsys.readouterr().err == ""
    fisher_scores(Plain(), [plain_rows()], ROWS)
    assert f"/{ROWS} " in capsys.readouterr().err


PROBE = """
import json, sys
import torch
from benchmarks.resident import resident, settle
from selective_peft.fisher import fisher_scores

class Model(torch.nn.Module):
    def __init__(self, layers, width):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(layers))
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"loss": x.square().sum(), "logits": x[:, :3]}

torch.set_num_threads(1)
sample_type, grad_type, dtype = sys.argv[1:]
model = Model(4, 2000).to(getattr(torch, dtype))
rows = [{"x": torch.randn(3, 2000, dtype=getattr(torch, dtype))}]
for _ in range(2):  # the first time loads code
    result = None
    before = settle()
    result = fisher_scores(model, rows, 3, sample_type, grad_type, progress=False)
    extra = resident("VmHWM") - before
print(json.dumps([extra, sum(p.numel() for p in model.parameters()), len(result)]))
"""


@needs_peak_counter
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("types", [("label", "square"), ("expected", "absolute")], ids="-".join)
def test_peak_memory(types, dtype):
    """The result and one set of gradients; a temporary of one of the four matrices would already be too much."""

    extra, scalars, tensors = probed(PROBE, *types, dtype)
    assert tensors == 4
    allowed = (4 + getattr(torch, dtype).itemsize) * scalars
    assert 0.9 * allowed < extra < 1.05 * allowed
