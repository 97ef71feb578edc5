"""A GPU where there is none, which notices each time that the host waits for it.

Its tensors are those of `elsewhere`, Triton's kernels run on them in the interpreter. What waits on a GPU raises:
reading a value, sizes that depend on values, and copies between host and device but for those of `hostcopy`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from elsewhere import AWAY, COPIES, Elsewhere, two_devices
from selective_peft import dense
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from selective_kernels import _triton, hostcopy

READS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero",
         "aten::masked_select", "aten::bincount", "aten::repeat_interleave", "aten::_unique2",
         "aten::unique_consecutive", "aten::unique_dim"}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
QUEUED = {hostcopy.to_device.__code__, hostcopy.HostCopy.__init__.__code__}  # from page-locked memory, or into it


def _is_queued() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in QUEUED:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        away = [each for each in given if isinstance(each, Elsewhere)]
        if away and name in READS:
            raise AssertionError(f"{name} waits for the device")
        if name in INDEXING and any(each.dtype in (torch.bool, torch.uint8) for each in away[1:]):
            raise AssertionError(f"{name} by a mask waits for the device")
        if name in COPIES and any(each.numel() for each in given) and not _is_queued():
            target = kwargs.get("device") if name == "aten::_to_copy" else None
            places = {each.device for each in given} | ({torch.device(target)} if target is not None else set())
            if AWAY in places and len(places) > 1:
                raise AssertionError(f"{name} between host and device waits")
        return function(*args, **kwargs)


def _unwrapped(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(executor: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda each: each.inner if isinstance(each, Elsewhere) else each, (args, kwargs))
        return call(executor, *args, **kwargs)

    return run


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Watch]:
    """For the duration of a block backend="triton" serves tensors on `AWAY`. `with` what it gives, waiting raises."""
    from triton.runtime.interpreter import GridExecutor

    with monkeypatch.context() as patch, two_devices():
        patch.setattr(Elsewhere, "data_ptr", lambda self: self.inner.data_ptr())
        patch.setattr(GridExecutor, "__call__", _unwrapped(GridExecutor.__call__))
        patch.setattr(_triton, "unavailable", lambda device: "")
        patch.setattr(dense, "FUSED_DEVICES", (*dense.FUSED_DEVICES, AWAY.type))
        yield _Watch()
