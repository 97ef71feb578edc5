"""The table of tensors that a kernel call works on: one row of integers per tensor."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from selective_kernels.checks import check_grad, check_numbers, check_param
from selective_kernels.index import SparseIndex

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
COLUMNS = 7  # param address, grad address, numel, dtype, id, begin, end: struct Row of csrc/selective.h


def place_of(param: Tensor) -> Hashable:
    """What tensors have in common that one kernel can read: their device."""
    return param.device


class Table:
    """A checked list of tensors; addresses are read anew for each call, since parameters and gradients may move.

    Args:
        params: the tensors, on one device or on several.
        names: of the tensors, for messages.
        ids: their numbers in a larger table, ascending, by which random scores differ; without, their places here.

    Attributes:
        device: the home device, that of the first tensor: index lists and per-entry arrays of the table are there.
        devices, places: of each tensor, and `place_of` it.
        spread: whether the tensors are in several places; see `_spread`.

    Raises:
        TypeError, ValueError: a tensor that the kernels cannot address (see `checks.check_param`), or one without
            values (on "meta") among others.
    """

    def __init__(
        self, params: Sequence[Tensor], names: Sequence[str] | None = None, ids: Sequence[int] | None = None
    ) -> None:
        self.params = list(params)
        self.names = list(names) if names is not None else [f"params[{i}]" for i in range(len(self.params))]
        for param, name in zip(self.params, self.names, strict=True):
            check_param(param, name)
        self.devices = [param.device for param in self.params]  # fixed: see `unchanged`
        self.device = self.devices[0] if self.devices else torch.device("cpu")
        self.places = [place_of(param) for param in self.params]
        self.spread = len(set(self.places)) > 1
        if self.spread:
            for param, name in zip(self.params, self.names, strict=True):
                if param.is_meta:
                    raise ValueError(f"{name}: expected a tensor with values, got one on meta (offloaded?)")
        self.ids = range(len(self.params)) if ids is None else list(ids)
        self.numels = [param.numel() for param in self.params]
        self.total = sum(self.numels)
        self.dtypes = [param.dtype for param in self.params]
        self.float32_only = all(dtype is torch.float32 for dtype in self.dtypes)
        self._shapes = [param.shape for param in self.params]
        self._fixed = array("q", bytes(8 * COLUMNS * len(self.params)))
        self._fixed[2::COLUMNS] = array("q", self.numels)
        self._fixed[3::COLUMNS] = array("q", [DTYPE_CODES[dtype] for dtype in self.dtypes])
        self._fixed[4::COLUMNS] = array("q", self.ids)
        self._pins = 0

    def unchanged(self) -> bool:
        """Whether all tensors still are of the size, dtype, layout and device checked (`.data` can be replaced)."""
        return self._pins > 0 or all(
            param.numel() == numel and param.dtype is dtype and param.is_contiguous() and param.device == device
            for param, numel, dtype, device in zip(self.params, self.numels, self.dtypes, self.devices, strict=True)
        )

    def apart(self) -> Table:
        """The table itself.

        Raises:
            ValueError: two of its tensors share memory, so that each would be trained as a part of the other, too.
        """
        found = sorted(
            (str(device), param.data_ptr(), numel * param.element_size(), name)
            for param, name, numel, device in zip(self.params, self.names, self.numels, self.devices, strict=True)
            if numel and not param.is_meta
        )
        for (device, begin, size, name), (next_device, next_begin, _, next_name) in pairwise(found):
            if device == next_device and next_begin < begin + size:
                raise ValueError(
                    f"{next_name}: expected tensors with memory of their own, got one that shares memory with {name}; "
                    "tie them by assigning one parameter to both modules"
                )
        return self

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Within the block nobody replaces the tensors: their addresses are read once, here, and nothing is checked.

        For a caller that has just made the table or asked `unchanged()`, and has many calls to make.
        """
        self._fixed[0::COLUMNS] = self._addresses()
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1

    def _addresses(self) -> array[int]:
        return array("q", [param.data_ptr() for param in self.params])

    def __len__(self) -> int:
        return len(self.params)

    def check_grads(self, tensors: Sequence[int], grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of the tensors numbered `tensors`, contiguous; for the errors see `checks`."""
        check_numbers(tensors, len(self.params))
        if len(grads) != len(tensors):
            raise ValueError(f"grads: expected {len(tensors)} gradients, one per tensor, got {len(grads)}")
        params, dtypes, shapes, devices = self.params, self.dtypes, self._shapes, self.devices
        return [
            grad
            if grad.dtype is dtypes[i]
            and grad.layout is torch.strided
            and grad.shape == shapes[i]
            and grad.is_contiguous()
            and grad.device == devices[i]
            else check_grad(grad, params[i], self.names[i])
            for i, grad in zip(tensors, grads, strict=True)
        ]

    def rows(
        self, index: SparseIndex, tensors: Sequence[int] | None = None, grads: Sequence[Tensor] | None = None
    ) -> array[int]:
        """Rows of the tensors numbered `tensors` (ascending; None: all), with their gradients and index slices."""
        if tensors is None or len(tensors) == len(self.params):
            rows = array("q", self._fixed)
            if not self._pins:
                rows[0::COLUMNS] = self._addresses()
            rows[5::COLUMNS] = array("q", index.starts[:-1])
            rows[6::COLUMNS] = array("q", index.starts[1:])
        else:  # a scan of one tensor must not cost a row of every other one
            rows = array("q")
            for i in tensors:
                row = self._fixed[i * COLUMNS : (i + 1) * COLUMNS]
                if not self._pins:
                    row[0] = self.params[i].data_ptr()
                row[5], row[6] = index.starts[i], index.starts[i + 1]
                rows.extend(row)
        if grads is not None:
            rows[1::COLUMNS] = array("q", [grad.data_ptr() for grad in grads])
        return rows


def as_table(params: Sequence[Tensor] | Table) -> Table:
    """The table of a list of tensors, checked; a table comes back as it is.

    Raises:
        TypeError, ValueError: see `Table`.
        RuntimeError: tensors of the table have changed their size, dtype or layout.
    """
    if not isinstance(params, Table):
        return Table(params)
    if not params.unchanged():
        raise RuntimeError("params: expected sizes, dtypes, layouts and device that the table was made for, got others")
    return params
