"""Where the tests of the CUDA kernels run: on a GPU if there is one and the module was built, else on an emulation."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from emulation.build import build_module

from selective_kernels import _cuda, _native

ON_GPU = torch.cuda.is_available() and not _cuda.unavailable(torch.device("cuda", 0))
CUDA_DEVICE = "cuda" if ON_GPU else "cpu"  # the device whose tensors the kernels are tested on
# On a GPU whose driver or capability the module does not serve there is nothing to test; elsewhere the emulation is.
CUDA_AVAILABLE = ON_GPU or not torch.cuda.is_available()
# Under sanitizers the emulation takes minutes; the tests of the CUDA kernels alone run it there.
SANITIZED = (native := _native.load()[0]) is not None and native.sanitized()
CUDA_BESIDE_OTHERS = CUDA_AVAILABLE and not SANITIZED


@functools.cache
def emulation() -> Any:
    """The kernels compiled for the emulation of the device, by the machine's own C++ compiler."""
    path = build_module(sanitized=SANITIZED)
    spec = importlib.util.spec_from_file_location("_native_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def on_cuda_kernels() -> Iterator[None]:
    """Within the block the backend "cuda" serves the tensors of CUDA_DEVICE."""
    if ON_GPU:
        yield
        return
    with _cuda.emulate(emulation()):
        yield
