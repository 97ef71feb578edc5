"""What stands at the entries that a scan has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from selective_kernels.index import SparseIndex
from selective_kernels.indexing import gather, gather_bits
from selective_kernels.score import Score
from selective_kernels.table import Table


class Fetched(NamedTuple):
    """Gradients and parameters at single entries; each of shape (count,), ordered like their index."""

    grads: Tensor | None  # float32; None if the scan has read no gradients
    bits: Tensor  # int32: raw bits of the parameters, zero-extended
    values: Tensor | None  # float32: the parameters' values; None if all parameters are float32


def fetch(
    table: Table, found: SparseIndex, score: Score, gather_grads: Callable[[SparseIndex, Tensor], None], backend: str
) -> Fetched:
    """Gathers everything anew.

    Args:
        table: all tensors.
        found: what the scan gave.
        score: what the scan ranks by.
        gather_grads: the scan's `gather`.
        backend: what gathers.
    """
    grads = None
    if score.reads_gradients:
        grads = torch.empty(found.count, device=table.device, dtype=torch.float32)
        gather_grads(found, grads)
    values = None if table.float32_only else gather(table, found, backend=backend)
    return Fetched(grads, gather_bits(table, found, backend=backend), values)
