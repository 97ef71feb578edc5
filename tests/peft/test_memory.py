"""C10: what is held is O(B), and a step needs next to nothing beyond it; no dense mask, no dense moment anywhere."""

import pytest
import torch
from harness import KINDS, make_params, train
from probing import needs_peak_counter, probed
from torch.utils._python_dispatch import TorchDispatchMode

from selective_kernels import Table

SHAPES = [(300, 40), (50,), (4000,), (1,), (0,)]
SCALARS = 16051
BUDGET = 1000
BYTES_PER_ENTRY = 24  # C10
BYTES_PER_TENSOR = 32
MIXED = (torch.float32, torch.bfloat16, torch.float16)


def mixed_params():
    return [make_params([shape], MIXED[i % 3], seed=i)[0] for i, shape in enumerate(SHAPES)]


PARAMS = {
    "float32": lambda: make_params(SHAPES),
    "bfloat16": lambda: make_params(SHAPES, torch.bfloat16),
    "float16": lambda: make_params(SHAPES, torch.float16),
    "mixed": mixed_params,
}


def tensors_in(thing, seen):
    """Storage sizes by address of all tensors that can be reached from an object of ours, but for parameters."""
    if id(thing) in seen[0]:
        return
    seen[0].add(id(thing))
    if isinstance(thing, torch.Tensor):
        storage = thing.untyped_storage()
        seen[1][storage.data_ptr()] = storage.nbytes()
    elif isinstance(thing, dict):
        for value in thing.values():
            tensors_in(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            tensors_in(value, seen)
    elif hasattr(thing, "__dict__") or hasattr(thing, "__slots__"):
        names = [*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())]
        for name in names:
            tensors_in(getattr(thing, name, None), seen)


def held(opt, params):
    """Bytes of each storage that the optimizer keeps besides the parameters and their gradients."""
    seen = ({id(param) for param in params}, {})
    tensors_in({name: value for name, value in vars(opt).items() if "hook" not in name}, seen)
    mine = {each.untyped_storage().data_ptr() for param in params for each in (param, param.grad) if each is not None}
    return {address: size for address, size in seen[1].items() if address not in mine and size}


@pytest.mark.parametrize("bias_correction", ["global", "per_entry"])
@pytest.mark.parametrize("params", sorted(PARAMS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_state_is_within_the_bound(kind, params, bias_correction, backend):
    """C10: everything that can be reached from the optimizer, counted; so is the state dict."""
    made = PARAMS[params]()
    momentum = {"momentum": 0.9} if kind == "SGD" else {}
    opt = KINDS[kind](
        made, lr=1e-2, budget=BUDGET, total_steps=4, bias_correction=bias_correction, backend=backend, **momentum
    )
    train(opt, made, 0, 6)
    assert opt.num_selected == BUDGET
    bound = BYTES_PER_ENTRY * BUDGET + BYTES_PER_TENSOR * len(made)
    schedule = 8 * 4
    assert sum(held(opt, made).values()) <= bound + schedule
    assert opt.state_nbytes() <= bound
    packed = opt.state_dict()["state"]["selective"]
    tensors = [value for value in (*packed.values(), *packed["arrays"].values()) if isinstance(value, torch.Tensor)]
    assert sum(each.untyped_storage().nbytes() for each in tensors) <= bound + schedule


def test_the_bound_would_notice_a_dense_mask():
    """`held` finds what a bool per scalar would add."""
    made = make_params(SHAPES)
    opt = KINDS["AdamW"](made, lr=1e-2, budget=BUDGET, total_steps=4)
    train(opt, made, 0, 2)
    before = sum(held(opt, made).values())
    opt._selection.extra = torch.zeros(SCALARS, dtype=torch.bool)
    assert sum(held(opt, made).values()) == before + SCALARS


class Largest(TorchDispatchMode):
    """Size in bytes of the largest new tensor that torch makes."""

    def __init__(self):
        super().__init__()
        self.known, self.size, self.name = set(), 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in self.known:
            size = result.untyped_storage().nbytes()
            if size > self.size:
                self.size, self.name = size, str(func)
        return result


@pytest.mark.parametrize("method", ["id3", "snip", "gradient", "pafi", "pafi-increment", "random"])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_step_makes_no_tensor_of_a_parameters_size(steps, method):
    """C10: nor does torch inside it; in the first, a selecting and a later step. No score is ever written down."""
    made = make_params([(400, 300), (200, 200)])
    opt = KINDS["AdamW"](made, lr=1e-2, budget=BUDGET, total_steps=4, method=method, backend="cpu")
    train(opt, made, 0, steps - 1)
    watch = Largest()
    watch.known = {param.untyped_storage().data_ptr() for param in made}
    for i, param in enumerate(made):
        param.grad = torch.full_like(param, 1.0 + i)
        watch.known.add(param.grad.untyped_storage().data_ptr())
    with watch:
        opt.step()
    assert 0 < watch.size <= 8 * BUDGET, watch.name


PROBE = """
import json, sys
import torch
from benchmarks.resident import settle, resident, warm_threads
from selective_peft import SelectiveAdamW

torch.manual_seed(0)
params = [torch.randn(4000, 1000).mul_(0.05).requires_grad_() for _ in range(5)]
for param in params:
    param.grad = torch.randn(4000, 1000).mul_(1e-3)
warm_threads()
opt = SelectiveAdamW(params, budget=60_000, total_steps=6, method=sys.argv[1], backend="cpu")
extra = []
for step in range(4):
    held = opt.state_nbytes()
    before = settle()
    opt.step()
    extra.append(resident("VmHWM") - before - (opt.state_nbytes() - held))
print(json.dumps([extra, opt.num_selected, sum(p.numel() * 4 for p in params)]))
"""


@needs_peak_counter
@pytest.mark.parametrize(("method", "count"), [("id3", 40_000), ("random", 60_000)])
def test_peak_memory_of_a_step(method, count):
    """C10 and the bound on a step's extra memory: 1 % of the parameters' bytes + 40 bytes per selected scalar."""
    from benchmarks.step_memory import PARAM_SHARE, PER_SELECTED

    extra, selected, parameter_bytes = probed(PROBE, method)
    assert selected == count
    assert max(extra[1:]) <= PARAM_SHARE * parameter_bytes + PER_SELECTED * selected, extra  # [0] loads code, too


def test_a_table_holds_integers_only():
    """The table of a thousand tensors: seven integers each."""
    table = Table([torch.zeros(8) for _ in range(1000)])
    assert len(table._fixed) == 7 * 1000
