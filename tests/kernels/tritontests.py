"""Where the tests of the Triton kernels run: on a GPU with TRITON_INTERPRET=0, else in the interpreter."""

from __future__ import annotations

from typing import Any

import torch

from selective_kernels import SparseIndex, _triton, dispatch

INTERPRETED = _triton.interpreted()


def triton_device() -> str:
    """The device whose tensors Triton's kernels are tested on."""
    return "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


DEVICE = triton_device()
# Not without a GPU and with the interpreter turned off, and not without Triton.
AVAILABLE = not dispatch.unavailable("triton", DEVICE)


def placed(index: SparseIndex, device: str) -> SparseIndex:
    """A copy of an index with its offsets on a device."""
    return SparseIndex(index.offsets.to(device, copy=True), list(index.starts))


def shifted(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A copy of a tensor on a device, one entry past an aligned address: 2 bytes past it for 16-bit types."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=device)
    room[1:] = tensor.reshape(-1)
    return room[1:].view(tensor.shape)


def at_home(result: Any) -> Any:
    """What a test compares, with all tensors in it on the CPU."""
    if isinstance(result, torch.Tensor):
        return result.cpu()
    if isinstance(result, SparseIndex):
        return SparseIndex(result.offsets.cpu(), result.starts)
    if isinstance(result, (list, tuple)):
        build = getattr(type(result), "_make", type(result))  # of a NamedTuple, or of a list
        return build(at_home(each) for each in result)
    return result
