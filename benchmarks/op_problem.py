"""What single operations are measured on: the tensors of a model, a selection among them, and what a step adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.harness import Contender
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, Shape, random_tensors, total
from selective_kernels import Score, SparseIndex, Table, topk

SCORE = Score(exponent=2.0, eps=1.0)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# No model: for a size below those of real ones, and to try things.
MATRICES: dict[str, dict[str, Shape]] = {
    "1m": {f"matrix.{i}": (256, 256) for i in range(16)},
    "64k": {f"matrix.{i}": (64, 128) for i in range(8)},
}
ALL, QUICK, NONE = "all", "quick", "none"
LINE = {"cpu": 64, "cuda": 32}  # bytes of a cache line; of a sector on a GPU


def shapes_of(name: str) -> Mapping[str, Shape]:
    """Shapes of a model, or of some matrices.

    Raises:
        ValueError: there is none of that name.
    """
    known = {**MATRICES, **MODELS}
    if name not in known:
        raise ValueError(f"--models: expected some of {', '.join(known)}, got {name!r}")
    return known[name]


@dataclass(frozen=True)
class Point:
    """One combination to measure.

    Attributes:
        axis: in what it differs from the first point: "base", "N", "k", "selected", "dtype", "threads", "isa" or
            "backend".
        model: see `shapes_of`.
        dtype: name of parameters' and gradients' type.
        selected: share of all scalars that are selected already.
        k: share of all scalars that a step selects.
        threads: of torch and of the kernels.
        isa: instruction set of the CPU kernels; "" on other devices.
        backend: of ours.
    """

    axis: str
    model: str
    dtype: str
    selected: float
    k: float
    threads: int
    isa: str
    backend: str


@dataclass
class Problem:
    """Tensors, and two selections among them by the score of random gradients.

    Attributes:
        params, grads: same shapes, one dtype, one device.
        index: the selected entries, by other gradients than `grads`.
        k: how many a step selects.
        backend: of ours.
        rivals: who is checked and timed beside ours: `ALL`, `QUICK` (without those that take seconds) or `NONE`.
    """

    params: list[Tensor]
    grads: list[Tensor]
    index: SparseIndex
    k: int
    backend: str
    rivals: str

    @cached_property
    def table(self) -> Table:
        """Of the parameters."""
        return Table(self.params)

    @cached_property
    def fresh(self) -> SparseIndex:
        """The entries that a step selects by `grads`."""
        return topk(self.params, self.grads, self.k, SCORE, self.index, backend=self.backend)

    @cached_property
    def positions(self) -> list[Tensor]:
        """Per tensor: int64 positions of the selected entries."""
        return [self.index.of(i).long() for i in range(len(self.params))]

    @cached_property
    def flat(self) -> Tensor:
        """The same in all tensors laid end to end."""
        return flat_positions(self.index, self.params)

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.params[0].device


@dataclass(frozen=True)
class Made:
    """An operation on a problem, ready to be timed.

    Attributes:
        contenders: ours, then its rivals.
        nbytes: that the operation must move: contiguous arrays whole, of scattered entries the cache lines that hold
            them, each once, or twice if it is read and written.
        bound: the bandwidth to compare with: "read", or "copy" where as much is written as read.
        check: raises `gate.Mismatch` unless ours gives what the PyTorch reference gives, and the rivals the same.
    """

    contenders: list[Contender]
    nbytes: int
    bound: str
    check: Callable[[], None]


def make(point: Point, rivals: str = ALL, device: torch.device | str = "cpu") -> Problem:
    """The problem of a point; what is selected is the best by other gradients."""
    shapes, kind = shapes_of(point.model), DTYPES[point.dtype]
    params = random_tensors(shapes, PARAM_STD, kind, 0, device)
    other = random_tensors(shapes, GRAD_STD, kind, 1, device)
    index = topk(params, other, round(point.selected * total(shapes)), SCORE, backend=point.backend)
    grads = random_tensors(shapes, GRAD_STD, kind, 2, device)
    return Problem(params, grads, index, max(1, round(point.k * total(shapes))), point.backend, rivals)


def flat_positions(index: SparseIndex, tensors: Sequence[Tensor]) -> Tensor:
    """Entries as int64 positions in all tensors laid end to end."""
    sizes = torch.tensor([0, *(tensor.numel() for tensor in tensors)])
    begins = sizes.cumsum(0)[index.tensor_ids()]
    return index.valid.long() + begins.to(index.offsets.device)


def line_bytes(tensors: Sequence[Tensor], index: SparseIndex) -> int:
    """Bytes of the cache lines (sectors, on a GPU) that hold an index's entries."""
    line = LINE[tensors[0].device.type]
    found = 0
    for i, tensor in enumerate(tensors):
        places = index.of(i).long() * tensor.element_size() + tensor.data_ptr() % line
        found += line * len(torch.unique_consecutive(places // line))
    return found
