"""Bytes that a process holds, and the most it has held: Linux's own record (VmHWM), set back just before what counts.

The C allocator has to return freed memory at once, or buffers of earlier work would hide new ones: a process that is
measured starts with `RETURN_FREED_MEMORY` in its environment.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from selective_peft import SelectiveAdamW
from torch.optim import Optimizer

from benchmarks import rivals

RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
COUNTER = Path("/proc/self/clear_refs")  # what is written here sets the record back


def can_measure() -> bool:
    """Whether the record can be set back here: on Linux, mostly."""
    return os.access(COUNTER, os.W_OK)


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status, such as VmRSS or VmHWM."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def settle() -> int:
    """Returns freed memory to the system and sets the peak back; the resident bytes then."""
    ctypes.CDLL(None).malloc_trim(0)
    COUNTER.write_text("5", encoding="ascii")
    return resident("VmRSS")


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that the optimizer holds for its parameters, masks of selective-optimizers included."""
    selective = optimizer.state_nbytes() if isinstance(optimizer, SelectiveAdamW) else 0
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    for group in optimizer.param_groups:
        tensors.extend(group.get("chosen_masks", ()))
    return selective + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def warm_threads() -> None:
    """Starts the thread pools, whose stacks are no memory of a step."""
    torch.ones(1 << 20).sum()
    tiny = torch.ones(1 << 16, requires_grad=True)
    tiny.grad = torch.ones(1 << 16)
    rivals.all_selected([tiny], 1).step()
