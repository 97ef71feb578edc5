"""The peak of a fine-tuning run's memory, and what it consists of: `measured`, in a process of its own (`apart`).

The peak is what the process (or on a GPU torch's allocator) has held at most from when the model was loaded to the end
of the second training step, less what it held without the model. The first step makes the optimizer's state and
selects; the second one has everything at once. Before that a tiny model of the same family has been trained the same
way, so that code, threads and libraries are there already. A reading is taken whenever autograd saves a tensor, lets go
of one or has a gradient ready, and after each part of a step; a peak seen first at a reading is split by what was
alive then:

- weights: parameters and buffers, with those of adapters, and tensors that their modules hold besides;
- gradients: of parameters, as they stood;
- state: what the optimizer held, dense masks included;
- activations: storages that autograd had saved for the backward pass, parameters not counted;
- temporaries: the rest. Results not saved, copies, workspaces of libraries, what the allocator rounds up.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.finetuning import METHODS, TOTAL_STEPS, Fitted, import_late, plan_for
from benchmarks.peft_methods import Unavailable
from benchmarks.resident import resident, settle
from benchmarks.workloads import WORKLOADS, Batch, Workload, import_models

STEPS = 2
DONE = TOTAL_STEPS - STEPS  # the end of a run, when the budget is spent


@dataclass
class Split:
    """Bytes."""

    weights: int = 0
    gradients: int = 0
    state: int = 0
    activations: int = 0
    temporaries: int = 0

    @property
    def peak(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.state + self.activations + self.temporaries


def _storages(tensor: Tensor) -> dict[int, int]:
    """Bytes of a tensor's storages by address; a sparse one has two."""
    dense = [tensor] if tensor.layout == torch.strided else [tensor._indices(), tensor._values()]
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in dense}


class _Saved:
    """A tensor that autograd has saved; `gone` is called when it is let go of."""

    def __init__(self, tensor: Tensor, addresses: list[int], gone: Callable[[int], None]) -> None:
        self.tensor, self._addresses, self._gone = tensor, addresses, gone

    def __del__(self) -> None:
        for address in self._addresses:
            self._gone(address)


class Watch:
    """What is alive, and how it was at the peak.

    Args:
        weights: of the model, bytes; counted as held from the beginning.
        fixed: addresses of storages that are no activation when they are saved.
        peak: gives the largest number of bytes held so far.
        base: bytes of these that are not the model's.
    """

    def __init__(self, weights: int, fixed: set[int], peak: Callable[[], int], base: int) -> None:
        self.now = Split(weights=weights)
        self.at_peak = Split(weights=weights)
        self._fixed, self._peak, self._base = fixed, peak, base
        self._highest = 0
        self._saved: dict[int, list[int]] = {}  # address of a storage: how often it is saved, its bytes

    def read(self) -> None:
        """Takes a reading."""
        highest = self._peak() - self._base
        if highest > self._highest:
            self._highest = highest
            self.at_peak = Split(**asdict(self.now))
            self.at_peak.temporaries = highest - self.at_peak.peak

    def pack(self, tensor: Tensor) -> Any:
        """Called with what autograd saves."""
        found = {address: size for address, size in _storages(tensor).items() if address not in self._fixed}
        for address, size in found.items():
            held = self._saved.setdefault(address, [0, size])
            held[0] += 1
            if held[0] == 1:
                self.now.activations += size
        self.read()
        return _Saved(tensor.detach(), list(found), self._drop)  # detached, or a node would hold itself

    def unpack(self, packed: Any) -> Tensor:
        """Gives it back."""
        self.read()
        tensor: Tensor = packed.tensor
        return tensor

    def _drop(self, address: int) -> None:
        held = self._saved[address]
        held[0] -= 1
        if not held[0]:
            self.now.activations -= held[1]
            del self._saved[address]

    def graded(self, param: Tensor) -> None:
        """Called when a parameter's gradient is ready."""
        assert param.grad is not None
        self.now.gradients += param.grad.untyped_storage().nbytes()
        self.read()


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that modules hold in attributes or in dicts of them (indices of adapters)."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        for value in vars(module).values():
            for each in value.values() if isinstance(value, dict) else (value,):
                if isinstance(each, Tensor):
                    yield each


def storages(model: nn.Module) -> dict[int, int]:
    """Bytes of the distinct storages of `held_tensors` by address."""
    return {address: size for each in held_tensors(model) for address, size in _storages(each).items()}


def train(fitted: Fitted, batches: list[Batch], watch: Watch) -> int:
    """Training steps under watch, one for each batch; how many scalars the first one trained."""
    trained = []
    trained_params: list[Any] = [param for param in fitted.params if param.requires_grad]
    hooks = [param.register_post_accumulate_grad_hook(watch.graded) for param in trained_params]
    fitted.model.train()
    for batch in batches:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack):
            loss = fitted.model(**batch).loss
            watch.read()
            loss.backward()
            watch.read()
        del loss
        fitted.step()
        watch.now.state = fitted.state_bytes()
        watch.read()
        fitted.zero_grad()
        watch.now.gradients = 0
        trained.append(fitted.trained())
    for hook in hooks:
        hook.remove()
    return trained[0]


def _fit_and_train(work: Workload, method: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    batches = work.batches(STEPS, device)
    model = work.model(dtype, device)
    plan = plan_for(model, DONE)
    scalars = sum(param.numel() for param in model.parameters())
    gc.collect()
    own = sum(storages(model).values())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        base, peak = torch.cuda.memory_allocated(device) - own, lambda: torch.cuda.max_memory_allocated(device)
    else:
        base, peak = settle() - own, lambda: resident("VmHWM")
    fitted = METHODS[method](model, work, plan)
    found = storages(fitted.model)
    watch = Watch(sum(found.values()), set(found), peak, base)
    first = train(fitted, batches, watch)
    counts = {"scalars": scalars, "budget": plan.budget, "expected": fitted.expected, "first": first}
    held = {"trained": fitted.trained(), "held": fitted.state_bytes()}
    return {**asdict(watch.at_peak), "peak": watch.at_peak.peak, **counts, **held}


def prepare() -> None:
    """Imports what methods and models import late."""
    import_late()
    import_models()


def measured(model: str, method: str, dtype: str, device: str, threads: int) -> dict[str, Any]:
    """Trains and looks.

    Args:
        model: a name of WORKLOADS.
        method: a name of METHODS.
        dtype, device: names.
        threads: of torch and the kernels.

    Returns:
        Bytes at the peak (the fields of `Split` and "peak") and "held", the bytes of state after the last step;
        "scalars" and "budget" of the model, how many of them the first step was "expected" to train and did train
        ("first"), and how many are "trained" in the end. Or only "note": why the method cannot be run.
    """
    torch.set_num_threads(threads)
    work, kind, where = WORKLOADS[model], getattr(torch, dtype), torch.device(device)
    try:
        _fit_and_train(WORKLOADS[work.tiny], method, kind, where)
        return _fit_and_train(work, method, kind, where)
    except Unavailable as error:
        return {"note": str(error)}
