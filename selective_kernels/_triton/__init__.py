"""The operations on Triton kernels, for CUDA tensors. Arguments are checked by the public functions that dispatch here.

This module imports no Triton: it says whether the others, which do, can be imported. With `TRITON_INTERPRET=1` in the
environment before Triton is imported, the kernels run on CPU tensors, one program after the other.
"""

from __future__ import annotations

import functools
import importlib
import os
import re

import torch

OLDEST = (3, 6)
LEAST_CAPABILITY = (8, 0)


@functools.cache
def load() -> tuple[str, str]:
    """Triton's version and "", or "" and the reason why it cannot be used."""
    try:
        version = str(importlib.import_module("triton").__version__)
    except ImportError as error:
        return "", (
            f"the package triton does not import ({error}); it comes with torch's CUDA builds, or install it: "
            "pip install 'triton>=3.6'"
        )
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return "", f"expected triton 3.6 or newer, got {version}; upgrade it: pip install 'triton>=3.6'"
    return version, ""


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable(device: torch.device) -> str:
    """Why the kernels cannot serve a device, or "" if they can."""
    if device.type == "cpu" and not interpreted():
        return "its kernels work on CUDA tensors, these are on 'cpu' (to test, set TRITON_INTERPRET=1 before the start)"
    if device.type not in ("cpu", "cuda"):
        return f"its kernels work on CUDA tensors, these are on {device.type!r}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        name, found = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return f"its kernels need a GPU of compute capability 8.0 or more, {name} has {found[0]}.{found[1]}"
    return load()[1]


def describe() -> str:
    """Whether the backend is there, with what, or why not."""
    version, reason = load()
    if reason:
        return f"not available: {reason}"
    if interpreted():
        return f"available in the interpreter, for tests (triton {version})"
    if not torch.cuda.is_available():
        return f"not available: triton {version} is there, but no CUDA GPU that torch can use"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"available (triton {version}; {names})"
