"""What a scan is given piece by piece, checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels.checks import (
    check_added_once,
    check_entries,
    check_gathers,
    check_index,
    check_keys,
    check_numbers,
    check_sources,
)
from selective_kernels.index import SparseIndex
from selective_kernels.score import Score
from selective_kernels.table import Table


class Additions:
    """The arguments of a scan's `add`, so far.

    Args:
        table, index, score: see `selective_kernels.topk.scan`.

    Attributes:
        numbers: of the tensors that were added.
        grads: of each `add` the tensors' numbers and their gradients, which may have to be read again; none of keys.
    """

    def __init__(self, table: Table, index: SparseIndex, score: Score) -> None:
        self._table, self._index, self._score = table, index, score
        self.numbers: set[int] = set()
        self.grads: list[tuple[Sequence[int], list[Tensor]]] = []

    def take(
        self, tensors: Sequence[int], grads: Sequence[Tensor] | None, grads_out: Tensor | None
    ) -> list[Tensor] | None:
        """What is to be read of these tensors, contiguous: gradients, or keys; None if the score reads neither.

        Raises:
            TypeError, ValueError: an argument is not what `Scan.add` says.
        """
        check_added_once(tensors, self.numbers)
        check_numbers(tensors, len(self._table))
        check_sources(self._score, grads, grads_out)
        sources = None
        if grads is not None and self._score.family == "given":
            sources = check_keys(grads, [self._table.params[i] for i in tensors])
        elif grads is not None:
            sources = self._table.check_grads(tensors, grads)
            if grads_out is not None:
                check_entries(grads_out, torch.float32, self._index.count, self._table.device, "grads_out")
            self.grads.append((tensors, sources))
        self.numbers.update(tensors)
        return sources

    def check_gather(self, index: SparseIndex, out: Tensor) -> None:
        """Raises TypeError or ValueError if an argument is not what `Scan.gather` says."""
        check_gathers(self._score)
        check_index(index, self._table.numels, self._table.device)
        check_entries(out, torch.float32, index.count, self._table.device, "out")
