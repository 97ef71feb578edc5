"""What a step does before its update, so that a backend can take both as one call: see `Update.before`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from selective_kernels.index import SparseIndex
from selective_kernels.score import Score

Source = Literal["bits", "values", "grads"] | int  # what stands at new entries, see `Fetched`, or the same for all


class Chosen(NamedTuple):
    """What came of a selection.

    Attributes:
        finite: whether all gradients are; if not, nothing was changed.
        n_new: how many new entries there are.
        threshold: the lowest of their scores, 0.0 if there are none.
    """

    finite: bool
    n_new: int
    threshold: float


@dataclass
class Choosing:
    """A selection that has still to be made, from the gradients of the update's tensors.

    The update's `grads` then hold the gradients of all entries, old and new, as if they were one of the arrays.

    Attributes:
        k: how many entries are wanted, at least 1; there is room for as many in the index and all arrays.
        score: what ranks them; reads gradients.
        grads: of each tensor of the update, as `Table.check_grads` gives them.
        arrays: per-entry arrays of 4-byte items, and what new entries begin with.
        flag: int32, shape (1,), on the tensors' device: not zero if a gradient elsewhere is inf or NaN. None: all are
            finite.
        chosen: what came of it, once the update is made.
    """

    k: int
    score: Score
    grads: Sequence[Tensor]
    arrays: Sequence[tuple[Tensor, Source]]
    flag: Tensor | None = None
    chosen: Chosen | None = None


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
    """All of it, in the order in which it is done; None: not that. With `choosing` nothing is inserted or gathered."""

    choosing: Choosing | None = None
    insertion: Insertion | None = None
    gathering: Gathering | None = None
    clipping: Clipping | None = None
