"""Which backend serves which operation on which device: one table, one environment variable.

Backends: "cpu" (compiled C++), "triton" (CUDA tensors; CPU tensors only in Triton's interpreter, to test), "cuda"
(compiled CUDA C++ for CUDA tensors; experimental: by name only, since no GPU has run it yet) and "reference" (PyTorch,
any device). `backend="auto"` takes the first of the device's list that is available;
`SELECTIVE_KERNELS_BACKEND` replaces "auto" everywhere. A backend that is asked for by name and missing raises; when
"auto" has to skip one, it says so once.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch

from selective_kernels import _cuda, _native, _triton

if TYPE_CHECKING:
    from selective_kernels.table import Table

ENVIRONMENT_VARIABLE = "SELECTIVE_KERNELS_BACKEND"
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}
OPS = {
    "topk": ("scan",),
    "indexing": ("gather", "gather_bits", "gather_grads", "scatter_", "swap_", "merge_"),
    "optim": ("adam_", "sgd_", "square_sum"),
}
HOST_OPS = {"gaps": ("encode_gaps", "decode_gaps")}  # on what files hold: no table, and no tensors on a device
MODULE_OF = {op: module for module, ops in OPS.items() for op in ops}
HOST_MODULE_OF = {op: module for module, ops in HOST_OPS.items() for op in ops}
BACKENDS = ("cpu", "triton", "cuda", "reference")
ON_GPUS = ("triton", "cuda")
WHOLE_STEPS = ("cuda",)  # backends whose updates also do what comes before them, as one call
DEFERRING = ON_GPUS  # backends whose kernels look at flags on the device, so that nobody has to wait for them


def _order(device_type: str) -> tuple[str, ...]:
    return ORDER.get(device_type, ("reference",))


def unavailable(backend: str, device: torch.device | str) -> str:
    """Why a backend cannot serve a device, or "" if it can."""
    if backend == "reference":
        return ""
    device = torch.device(device)
    if backend == "triton":
        return _triton.unavailable(device)
    if backend == "cuda":
        return _cuda.unavailable(device)
    if device.type != "cpu":
        return f"its kernels work on CPU tensors, these are on {device.type!r}"
    return _native.load()[1]


@functools.cache
def _warn_skipped(backend: str, reason: str, used: str) -> None:
    warnings.warn(f"backend {backend!r} is not available ({reason}); using {used!r}, which is slower", stacklevel=5)


def resolve(device: torch.device | str, backend: str = "auto") -> str:
    """The name of the backend that serves a device.

    Raises:
        ValueError: unknown backend name.
        RuntimeError: the backend asked for is not available; the message lists what is and why the rest is not.
    """
    source = "backend"
    if backend == "auto" and os.environ.get(ENVIRONMENT_VARIABLE, "auto") != "auto":
        backend, source = os.environ[ENVIRONMENT_VARIABLE], ENVIRONMENT_VARIABLE
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"{source}: expected 'auto' or one of {list(BACKENDS)}, got {backend!r}")
        reason = unavailable(backend, device)
        if reason:
            raise RuntimeError(f"{source}={backend!r} is not available: {reason}\n{available()}")
        return backend
    return _first_of_order(device)


def _first_of_order(device: torch.device | str) -> str:
    """What "auto" means for a device."""
    skipped = ""
    for name in _order(torch.device(device).type):
        reason = unavailable(name, device)
        if not reason:
            if skipped:
                _warn_skipped(skipped, unavailable(skipped, device), name)
            return name
        skipped = name
    raise AssertionError("the reference backend serves every device")


@functools.cache
def _function(op: str, backend: str) -> Any:
    module = MODULE_OF.get(op) or HOST_MODULE_OF[op]
    if backend == "reference":
        return getattr(importlib.import_module(f"selective_kernels.{module}"), reference_name(op))
    return getattr(importlib.import_module(f"selective_kernels._{backend}.{module}"), op)


def reference_name(op: str) -> str:
    """Name of an operation's PyTorch form: `adam_` -> `adam_ref_`, `gather` -> `gather_ref`."""
    return op[:-1] + "_ref_" if op.endswith("_") else op + "_ref"


def implementation(op: str, device: torch.device, backend: str = "auto") -> Any:
    """The function that implements an operation; see `resolve` for the errors."""
    return _function(op, resolve(device, backend))


def resolve_host(backend: str = "auto") -> str:
    """The name of the backend that serves the operations on what files hold; see `resolve` for the errors.

    They have no GPU kernels: SELECTIVE_KERNELS_BACKEND=triton or =cuda leaves "auto" as it is.

    Raises:
        ValueError: a backend for GPUs was asked for by argument.
    """
    if backend == "auto" and os.environ.get(ENVIRONMENT_VARIABLE, "auto") in ("auto", *ON_GPUS):
        # A model has many short lists, so what "auto" almost always means is found first.
        return _first_of_order("cpu") if _native.load()[1] else "cpu"
    if backend in ON_GPUS:
        raise ValueError(f"backend: expected 'auto', 'cpu' or 'reference' for what files hold, got {backend!r}")
    return resolve("cpu", backend)


def on_host(op: str, backend: str = "auto") -> Any:
    """The function that implements an operation on what files hold; see `resolve_host` for the errors."""
    return _function(op, resolve_host(backend))


def resolve_all(table: Table, backend: str = "auto") -> dict[Hashable, str]:
    """The name of the backend that serves each place of a table, the home place first.

    Raises:
        ValueError: unknown backend name.
        RuntimeError: the backend asked for does not serve one of the devices.
    """
    devices = dict(zip(reversed(table.places), reversed(table.devices), strict=True))  # of each place's first tensor
    found = {}
    for place in dict.fromkeys(table.places):
        try:
            found[place] = resolve(devices[place], backend)
        except RuntimeError as error:
            if not table.spread:
                raise
            lie_on = ", ".join(sorted({str(device) for device in table.devices}))
            raise RuntimeError(
                f"params: expected devices that one backend serves, got tensors on {lie_on}, and for {devices[place]} "
                f"{error}\nbackend='auto' takes a backend for each device"
            ) from error
    return found


def serving(op: str, table: Table, backend: str = "auto") -> Any:
    """The function that implements an operation for a table, wherever its tensors are; see `resolve` for the errors."""
    if table.spread:
        return functools.partial(_function(op, "spread"), backend=backend)
    return implementation(op, table.device, backend)


def defers(device: torch.device, backend: str = "auto") -> bool:
    """Whether the backend that serves a device enqueues updates that look at a flag on the device before they run."""
    return resolve(device, backend) in DEFERRING


def takes_whole_steps(table: Table, backend: str = "auto") -> bool:
    """Whether the backend that serves a table does in one call what precedes an update, and the update."""
    return not table.spread and resolve(table.device, backend) in WHOLE_STEPS


def available() -> str:
    """One line per backend: whether it is there, with what, or why not."""
    module, reason = _native.load()
    if module is None:
        cpu = f"not available: {reason}"
    else:
        threads = f"{torch.get_num_threads()} threads (torch.get_num_threads())"
        if not module.has_openmp():
            threads = "1 thread (built without OpenMP)"
        cpu = f"available, instruction set {module.isa()} (of {', '.join(module.available_isas())}), {threads}"
    on_gpus = f"triton: {_triton.describe()}\ncuda: {_cuda.describe()}"
    return f"cpu: {cpu}\n{on_gpus}\nreference: available (PyTorch, any device)"


def _name_or_reason(choose: Callable[[], str]) -> str:
    try:
        return choose()
    except (RuntimeError, ValueError) as error:
        return f"none ({str(error).splitlines()[0]})"


def explain() -> str:
    """Which backend serves which operation, and why: instruction set, threads, what is missing."""
    lines = [f"{ENVIRONMENT_VARIABLE}={os.environ.get(ENVIRONMENT_VARIABLE, 'auto')}", available()]
    devices = {"cpu": "cpu", "other": "meta"}
    if torch.cuda.is_available():
        devices["cuda"] = "cuda"
    for device, example in devices.items():
        chosen = _name_or_reason(functools.partial(resolve, example))
        lines.extend(f"{device} tensors: {op} -> {chosen}" for op in MODULE_OF)
    lines.extend(f"files: {op} -> {_name_or_reason(resolve_host)}" for op in HOST_MODULE_OF)
    return "\n".join(lines)
