"""Tensors as bytes and as integers, without a copy."""

from __future__ import annotations

import ctypes
import hashlib

import torch
from torch import Tensor

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
DIGEST = 32  # hex digits


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor in row-major order; they live as long as it does."""
    assert tensor.device.type == "cpu"
    assert tensor.is_contiguous()
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(bytearray())  # as writable as others
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")


def bits(values: Tensor) -> Tensor:
    """The same memory as integers, for which 0 and -0 differ and a NaN equals itself."""
    return values.view(BITS[values.dtype])


def from_bits(raw_bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of this dtype from raw bits in int32, as the kernels keep them: 16-bit ones in the low half."""
    return raw_bits.to(BITS[dtype]).view(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape are equal bit for bit."""
    return torch.equal(bits(a), bits(b))


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes in row-major order (little endian), its first 32 hexadecimal digits.

    Dtype and shape are not in it. A tensor on a GPU is copied first.
    """
    return hashlib.sha256(raw(tensor.detach().cpu().contiguous())).hexdigest()[:DIGEST]
