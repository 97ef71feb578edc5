"""A selection that an update was left to make first, for backends that do not make both in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels.checks import check_entries, check_numbers, check_sources
from selective_kernels.fetched import Fetched
from selective_kernels.index import SparseIndex
from selective_kernels.indexing import merge_
from selective_kernels.prelude import Choosing, Chosen, Source
from selective_kernels.table import Table
from selective_kernels.topk import scan


def check_choosing(
    choosing: Choosing, table: Table, index: SparseIndex, tensors: Sequence[int], grads_out: Tensor
) -> None:
    """Raises TypeError or ValueError if anything is of another dtype, length or range than `Choosing` says."""
    check_numbers(tensors, len(table))
    check_sources(choosing.score, choosing.grads, grads_out)
    if choosing.k < 1:
        raise ValueError(f"k: expected an integer >= 1, got {choosing.k}")
    total = index.count + min(choosing.k, sum(table.numels[i] for i in tensors))
    arrays = {f"arrays[{i}][0]": array for i, (array, _) in enumerate(choosing.arrays)}
    for name, array in {**arrays, "grads": grads_out}.items():
        check_entries(array, None, total, table.device, name)
    check_entries(index.offsets, torch.int32, total, table.device, "index.offsets")
    if choosing.flag is not None:
        check_entries(choosing.flag, torch.int32, 1, table.device, "flag")


def _fresh(fetched: Fetched, source: Source) -> Tensor | None:
    if isinstance(source, int):
        return None if source == 0 else torch.full_like(fetched.bits, source)
    return {"bits": fetched.bits, "values": fetched.values, "grads": fetched.grads}[source]


def choose(
    table: Table, index: SparseIndex, tensors: Sequence[int], grads_out: Tensor, choosing: Choosing, backend: str
) -> bool:
    """Selects and inserts; see `Choosing`.

    Args:
        table, index: all tensors, and what is selected already.
        tensors: numbers of the tensors that have a gradient.
        grads_out: the gradients of all entries afterwards, float32.
        choosing: what is wanted; gets to know what came of it.
        backend: "auto" or a backend's name.

    Returns:
        Whether all gradients are finite; if not, nothing was changed but `grads_out`.
    """
    running = scan(table, index, choosing.k, choosing.score, backend=backend)
    running.add(tensors, choosing.grads, grads_out)
    if running.nonfinite or (choosing.flag is not None and bool(choosing.flag)):
        choosing.chosen = Chosen(False, 0, 0.0)
        return False
    new, fetched = running.finalize(), running.fetch()
    arrays = [(array, _fresh(fetched, source)) for array, source in choosing.arrays]
    merge_(index, new, [*arrays, (grads_out, fetched.grads)], backend=backend)
    choosing.chosen = Chosen(True, new.count, running.threshold)
    return True
