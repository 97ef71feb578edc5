"""Small tensors on their way between host and devices, without waiting where the host does not need the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on a device, enqueued on the current stream; the CPU tensor may change at once.

    torch's allocator of page-locked memory gives a block away again only when the copies that read it are done.
    """
    if device.type != "cuda":
        return values.to(device, copy=True)
    return torch.empty_like(values, pin_memory=True).copy_(values).to(device, non_blocking=True)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device: the tensor itself if it is there, else a copy, enqueued on the current streams of both.

    The tensor may change at once. Waits only if the values are for the CPU.
    """
    if values.device == device:
        return values
    if values.device.type == "cpu":
        return to_device(values, device)
    return values.to(device, non_blocking=device.type != "cpu")


class HostCopy:
    """A tensor's values at this point of the current stream, to be read by the host later.

    Args:
        tensor: on any device; may change once the copy is enqueued.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        if tensor.device.type != "cuda":
            self._values = tensor.detach().to("cpu", copy=True)
            return
        self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.device(tensor.device):
            self._values.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> Tensor:
        """The values, on the CPU; waits for the copy alone, not for what was enqueued after it."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._values
