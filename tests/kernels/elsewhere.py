"""A second device on a machine that has none: tensors that say they are on "meta", hold their values on the CPU, and
refuse to be mixed with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

AWAY = torch.device("meta")
COPIES = {"aten::copy_", "aten::_to_copy"}  # what may have tensors of several devices


class Elsewhere(Tensor):
    """A tensor on `AWAY`; `inner` is where its values are."""

    inner: Tensor
    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=AWAY,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner})"

    def data_ptr(self) -> int:
        """An address that no kernel may use: no process has memory there."""
        return (1 << 62) + self.inner.data_ptr()


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == AWAY:  # hides from the other mode
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(AWAY)
        return function(*args, **kwargs)


@contextmanager
def two_devices() -> Iterator[None]:
    """For the duration of a block `device=AWAY` and `.to(AWAY)` give tensors with values."""
    with _Operations(), _Literals():
        yield


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value


def _run(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    schema = function._schema  # type: ignore[attr-defined]
    given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    away = [each for each in given if isinstance(each, Elsewhere)]
    here = [each for each in given if not isinstance(each, Elsewhere) and each.dim()]
    if away and here and schema.name not in COPIES:
        raise RuntimeError(f"{schema.name}: expected tensors on one device, got some on cpu and some elsewhere")
    device = kwargs.get("device")
    goes_away = bool(away) if device is None else torch.device(device) == AWAY
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if schema.returns and schema.returns[0].alias_info is not None and schema.returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])
    if schema.name == "aten::_to_copy":
        result = result.clone()  # nothing to convert may mean that nothing is copied
    return tree_map(lambda each: Elsewhere(each) if goes_away and isinstance(each, Tensor) else each, result)
