"""What a step does before its update, so that a backend can take both as one call: see `Update.before`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from selective_kernels.index import SparseIndex


class Insertion(NamedTuple):
    """New entries whose place in an index is decided, and that have still to be brought there.

    Attributes:
        into: the index; its starts count the new entries already.
        starts: of the index before.
        new, arrays: see `selective_kernels.merge_`.
    """

    into: SparseIndex
    starts: list[int]
    new: SparseIndex
    arrays: Sequence[tuple[Tensor, Tensor | None]]


class Gathering(NamedTuple):
    """Gradients of the update's tensors that have still to be gathered into its `grads`.

    Attributes:
        grads: of each tensor of the update.
        flag: see `selective_kernels.gather_grads`.
    """

    grads: Sequence[Tensor]
    flag: Tensor


class Clipping(NamedTuple):
    """A limit of the gradients' norm: they are multiplied by min(1, limit / (norm + eps)), in float64."""

    limit: float
    eps: float


class Before(NamedTuple):
    """All of it, in the order in which it is done; None: not that."""

    insertion: Insertion | None = None
    gathering: Gathering | None = None
    clipping: Clipping | None = None
