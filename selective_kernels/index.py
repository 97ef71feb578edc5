"""Sorted positions of single scalars over a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor


class SparseIndex:
    """Flat positions in a list of tensors, sorted by (tensor, offset), without duplicates.

    Attributes:
        offsets: int32, shape (capacity,). The first `count` are valid: flat row-major offsets in their tensor.
        starts: `n_tensors + 1` integers; tensor i owns `offsets[starts[i]:starts[i + 1]]`.
    """

    __slots__ = ("checked_for", "offsets", "starts")

    def __init__(self, offsets: Tensor, starts: list[int], checked_for: list[int] | None = None) -> None:
        self.offsets = offsets
        self.starts = starts
        # The very list of tensor sizes that the offsets are known to fit, so that a step checks nothing twice.
        self.checked_for = checked_for

    @classmethod
    def empty(cls, n_tensors: int, capacity: int = 0, device: torch.device | str = "cpu") -> SparseIndex:
        """An index without entries over `n_tensors` tensors, with room for `capacity` of them."""
        return cls(torch.empty(capacity, dtype=torch.int32, device=device), [0] * (n_tensors + 1))

    @classmethod
    def from_lists(cls, offsets: Sequence[Tensor | Sequence[int]]) -> SparseIndex:
        """From one sequence of sorted distinct flat offsets per tensor.

        Raises:
            ValueError: offsets of a tensor are negative, not ascending or not below 2^31.
        """
        tensors = [each if isinstance(each, Tensor) else torch.tensor(each, device="cpu") for each in offsets]
        lists = [each.to(torch.int64).reshape(-1) for each in tensors]
        for i, each in enumerate(lists):
            if len(each) and (int(each[0]) < 0 or int(each[-1]) >= 2**31 or bool((each.diff() <= 0).any())):
                raise ValueError(f"offsets[{i}]: expected ascending distinct integers in [0, 2^31), got {each}")
        starts = [0, *accumulate(len(each) for each in lists)]
        joined = torch.cat(lists) if lists else torch.empty(0, dtype=torch.int64, device="cpu")
        return cls(joined.to(torch.int32), starts)

    @property
    def n_tensors(self) -> int:
        """Number of tensors that the index is over."""
        return len(self.starts) - 1

    @property
    def count(self) -> int:
        """Number of entries."""
        return self.starts[-1]

    @property
    def valid(self) -> Tensor:
        """View of the `count` valid offsets, int32."""
        return self.offsets[: self.count]

    def of(self, tensor: int) -> Tensor:
        """View of one tensor's offsets, int32."""
        return self.offsets[self.starts[tensor] : self.starts[tensor + 1]]

    def tensor_ids(self) -> Tensor:
        """Number of the tensor of each entry, int64, shape (count,), on the CPU."""
        lengths = torch.tensor(self.starts, device="cpu").diff()
        return torch.repeat_interleave(torch.arange(self.n_tensors, device="cpu"), lengths)

    def __repr__(self) -> str:
        return f"SparseIndex(count={self.count}, n_tensors={self.n_tensors}, capacity={len(self.offsets)})"
