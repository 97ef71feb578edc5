"""The operations on compiled CUDA kernels, for CUDA tensors. Arguments are checked by the functions that dispatch here.

Experimental: no GPU has run these kernels yet, so that "auto" never takes them. Tests run them on CPU tensors, built
for an emulation of the device; see `emulate`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "selective_kernels._native_cuda"
EXPERIMENTAL = 'experimental: no GPU has run it yet, so that "auto" leaves it out'
OLDEST_DRIVER = 12080  # cudaStreamGetDevice needs it
_emulations: list[Any] = []


@functools.cache
def load() -> tuple[Any, str]:
    """The compiled module and "", or None and the reason why it is not there."""
    try:
        return importlib.import_module(NAME), ""
    except ModuleNotFoundError:
        return None, (
            f"the compiled module {NAME} was not built; it is when nvcc 12.8 or newer is found, and "
            "SELECTIVE_KERNELS_CUDA=ON in the environment of a build says what it lacks"
        )
    except ImportError as error:
        return None, f"the compiled module {NAME} does not load: {error}"


@contextmanager
def emulate(module: Any) -> Iterator[None]:
    """For tests: within the block the kernels work on CPU tensors, with `module` in the compiled module's place."""
    _emulations.append(module)
    try:
        yield
    finally:
        _emulations.remove(module)


def emulated() -> bool:
    """Whether the kernels run in an emulation of the device."""
    return bool(_emulations)


def native() -> Any:
    """The compiled module, or what stands in for it.

    Raises:
        RuntimeError: it was not built or does not load.
    """
    if _emulations:
        return _emulations[-1]
    module, reason = load()
    if module is None:
        raise RuntimeError(reason)
    return module


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _without_gpu() -> str:
    """Why the kernels cannot run on any GPU of this machine, or ""."""
    module, reason = load()
    if module is None:
        return reason
    driver, runtime = module.driver_version(), module.runtime_version()
    if driver == 0:
        return "there is no NVIDIA driver on this machine"
    least = max(runtime // 1000 * 1000, OLDEST_DRIVER)
    if driver < least:
        return (
            f"the NVIDIA driver serves CUDA {_version(driver)}, the module {NAME} was built with {_version(runtime)}: "
            f"expected a driver for CUDA {_version(least)} or newer"
        )
    return ""


def serves(capability: tuple[int, int], architectures: str) -> bool:
    """Whether code for these architectures runs on a GPU of a compute capability.

    Code for 8.0 runs on 8.x; of the last architecture there is PTX, too, which newer GPUs translate.
    """
    built = [divmod(int(each), 10) for each in architectures.split()]
    return capability >= built[-1] or any(capability[0] == major and capability[1] >= minor for major, minor in built)


def unavailable(device: torch.device) -> str:
    """Why the kernels cannot serve a device, or "" if they can."""
    if device.type == "cpu" and emulated():
        return ""
    if device.type != "cuda":
        return f"its kernels work on CUDA tensors, these are on {device.type!r}"
    reason = _without_gpu()
    if reason:
        return reason
    capability, built = torch.cuda.get_device_capability(device), native().ARCHITECTURES
    if not serves(capability, built):
        name = torch.cuda.get_device_name(device)
        return (
            f"{name} has compute capability {capability[0]}.{capability[1]}, the module {NAME} was built for {built} "
            "(of the last one newer ones, too); SELECTIVE_KERNELS_CUDA_ARCHITECTURES names others for a build"
        )
    return ""


def describe() -> str:
    """Whether the backend is there, with what, or why not."""
    if emulated():
        return "available in an emulation of the device, for tests"
    reason = _without_gpu()
    if reason:
        return f"not available: {reason}; {EXPERIMENTAL}"
    runtime = f"CUDA {_version(native().runtime_version())}, compute capabilities {native().ARCHITECTURES}"
    if not torch.cuda.is_available():
        return f"not available: {runtime} is there, but no CUDA GPU that torch can use; {EXPERIMENTAL}"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"available by name ({runtime}; {names}); {EXPERIMENTAL}"
