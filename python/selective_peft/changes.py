"""How one tensor of a model differs from the base's: a few of its scalars, or all of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from selective_kernels.checks import MAX_NUMEL
from selective_peft.errors import DeltaError
from selective_peft.rawbytes import BITS, DIGEST, digest

HEX = re.compile(rf"[0-9a-f]{{{DIGEST}}}")


@dataclass(frozen=True, eq=False)
class Change:
    """What a delta says of one tensor; its own tensors are on the CPU and not to be modified.

    Attributes:
        shape, dtype: of the model's tensor; float32, bfloat16 or float16, fewer than 2^31 scalars.
        indices: int32, shape (n,), flat row-major positions, strictly ascending; None if the whole tensor is replaced.
        values: the new values, absolute, of this dtype, shape (n,), or `shape` for a whole one.
        originals: the base's values at the same places; of a tensor that the base lacks, what stood there before it was
            trained (a head as it was drawn); None if they were not kept.
        digest: of the base's whole tensor, see `rawbytes.digest`; "" if the base has no such tensor.
        tied: further names of the same tensor in the model; None if they are not known.

    Raises:
        DeltaError: these do not fit together, or a value is inf or NaN; the message begins with the argument's name.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    indices: Tensor | None
    values: Tensor
    originals: Tensor | None
    digest: str
    tied: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in BITS:
            raise DeltaError(f"dtype: expected float32, bfloat16 or float16, got {self.dtype}")
        if any(size < 0 for size in self.shape) or self.numel >= MAX_NUMEL:
            raise DeltaError(f"shape: expected sizes >= 0 with fewer than 2^31 scalars, got {list(self.shape)}")
        expected = self.shape if self.indices is None else (len(self._checked_indices(self.indices)),)
        for name, values in (("values", self.values), ("originals", self.originals)):
            if values is None:
                continue
            if values.dtype != self.dtype or values.shape != expected:
                given = f"{values.dtype} {list(values.shape)}"
                raise DeltaError(f"{name}: expected {self.dtype} {list(expected)}, got {given}")
            if not bool(values.isfinite().all()):
                raise DeltaError(f"{name}: expected finite values, got inf or NaN in {int((~values.isfinite()).sum())}")
        if not HEX.fullmatch(self.digest) and not self.is_new:
            raise DeltaError(f"digest: expected {DIGEST} hexadecimal digits, got {self.digest!r}")
        if self.tied is not None and len(set(self.tied)) < len(self.tied):
            raise DeltaError(f"tied: expected names, each once, got {self.tied}")

    def _checked_indices(self, indices: Tensor) -> Tensor:
        if indices.dtype != torch.int32 or indices.dim() != 1 or not len(indices):
            raise DeltaError(f"indices: expected a vector of int32, got {indices.dtype} {list(indices.shape)}")
        if bool((indices[1:] <= indices[:-1]).any()):
            raise DeltaError("indices: expected ascending positions, each once, got others")
        first, last = int(indices[0]), int(indices[-1])
        if first < 0 or last >= self.numel:
            raise DeltaError(f"indices: expected positions in [0, {self.numel}), got {first} to {last}")
        return indices

    @classmethod
    def whole(cls, values: Tensor, originals: Tensor | None) -> Change:
        """A replaced tensor; `originals` is None if the base has none of this name."""
        marked = "" if originals is None else digest(originals)
        return cls(tuple(values.shape), values.dtype, None, values, originals, marked)

    @property
    def numel(self) -> int:
        """Scalars of the model's tensor."""
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether the whole tensor is replaced."""
        return self.indices is None

    @property
    def is_new(self) -> bool:
        """Whether the base has no such tensor, as far as is known."""
        return self.indices is None and not self.digest

    @property
    def scalars(self) -> int:
        """Scalars that the delta gives a value."""
        return self.values.numel()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (self.indices, self.values, self.originals)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)

    def substituted(self, tensor: Tensor, values: Tensor) -> Tensor:
        """A copy of the model's tensor, on the CPU, with `values` at this change's places."""
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if self.indices is None:
            return copy.copy_(values)
        copy.view(-1)[self.indices.long()] = values
        return copy
