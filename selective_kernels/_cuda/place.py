"""Where a native call enqueues its work: device, stream, and memory that it may use."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from selective_kernels._cuda import native


class Place(NamedTuple):
    """What a native call gets.

    Attributes:
        where: device number, address of the current stream, address and size of the room in bytes.
        room: the tensor that is the room: torch gives its memory away again in the order of the stream, so it may go
            once the call has returned.
    """

    where: tuple[int, int, int, int]
    room: Tensor


def place_for(device: torch.device, n_rows: int, more: int = 0) -> Place:
    """The place of a call with a table of `n_rows` tensors, with room for `more` bytes besides the table's."""
    module: Any = native()
    size = module.LEAST_ROOM + module.ROOM_PER_ROW * n_rows + more
    room = torch.empty(size, dtype=torch.uint8, device=device)
    if device.type != "cuda":
        return Place((0, 0, room.data_ptr(), size), room)
    number = torch.cuda.current_device() if device.index is None else device.index
    stream = torch.cuda.current_stream(number).cuda_stream
    return Place((number, stream, room.data_ptr(), size), room)


def address(tensor: Tensor | None) -> int:
    """Where a tensor's values are, 0 without a tensor."""
    return 0 if tensor is None else tensor.data_ptr()
