"""Loads the compiled CPU kernels. torch comes first, so that both share one OpenMP runtime."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch  # noqa: F401  (loads libgomp before the kernels ask for it)


@functools.cache
def load() -> tuple[Any, str]:
    """The compiled module and "", or None and the reason why it is not there."""
    try:
        return importlib.import_module("selective_kernels._native_cpu"), ""
    except ImportError as error:
        return None, f"the compiled module selective_kernels._native_cpu does not load: {error}"


def cpu() -> Any:
    """The compiled CPU module.

    Raises:
        RuntimeError: it was not built or does not load.
    """
    module, reason = load()
    if module is None:
        raise RuntimeError(reason)
    return module
