"""Merging what scans of several parts have found, on the home device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selective_kernels._spread.parts import Part
from selective_kernels.fetched import Fetched
from selective_kernels.hostcopy import HostCopy, moved
from selective_kernels.index import SparseIndex
from selective_kernels.sampling import float_of
from selective_kernels.score import Score, score_at
from selective_kernels.table import Table


class Found(NamedTuple):
    """Entries by (tensor ascending, offset ascending), each of shape (n,), on the home device.

    Attributes:
        keys: float32: their scores, above 0 and finite.
        owners: int64: numbers of their tensors in the whole table.
        offsets: int32: their places there.
        grads, bits, values: see `Fetched`, but `values` are always there; None with keys of the caller's own.
    """

    keys: Tensor
    owners: Tensor
    offsets: Tensor
    grads: Tensor | None
    bits: Tensor | None
    values: Tensor | None


def brought(fetched: Fetched, home: torch.device) -> Fetched:
    """What a part's scan has fetched, on the home device, with values."""
    values = fetched.bits.view(torch.float32) if fetched.values is None else fetched.values
    grads = None if fetched.grads is None else moved(fetched.grads, home)
    return Fetched(grads, moved(fetched.bits, home), moved(values, home))


def owners_of(part: Part, index: SparseIndex, home: torch.device) -> Tensor:
    """Numbers in the whole table of the tensors of a part's entries, int64, on the home device."""
    return moved(torch.tensor(part.table.ids, dtype=torch.int64, device="cpu")[index.tensor_ids()], home)


def found_by_score(part: Part, index: SparseIndex, fetched: Fetched, score: Score, table: Table) -> Found:
    """What a part's scan has found, with the scores computed anew."""
    owners, offsets = owners_of(part, index, table.device), moved(index.valid, table.device)
    grads, bits, values = brought(fetched, table.device)
    assert values is not None
    keys = score_at(grads, values, score, owners, offsets, len(table))
    return Found(keys, owners, offsets, grads, bits, values)


def found_by_keys(
    part: Part, index: SparseIndex, tensors: Sequence[int], keys: Sequence[Tensor], table: Table
) -> Found:
    """What a part's scan has found by keys of the caller's own, those of the part's tensors numbered `tensors`."""
    scores = [key.detach().reshape(-1)[index.of(i).long()] for i, key in zip(tensors, keys, strict=True)]
    owners, offsets = owners_of(part, index, table.device), moved(index.valid, table.device)
    return Found(moved(torch.cat(scores), table.device), owners, offsets, None, None, None)


def best_of(found: Sequence[Found], k: int) -> Found:
    """The min(k, all) best entries by (score descending, tensor ascending, offset ascending)."""
    joined = _rows(torch.cat(column) if column[0] is not None else None for column in zip(*found, strict=True))
    order = torch.argsort((joined.owners << 32) + joined.offsets)
    if len(order) > k:
        best = torch.sort(joined.keys[order], descending=True, stable=True).indices[:k]
        order = order[best.sort().values]
    return _rows(None if column is None else column[order] for column in joined)


def _rows(columns: Iterable[Any]) -> Found:
    return Found(*columns)


def counted(found: Found, table: Table) -> tuple[SparseIndex, float]:
    """The index of found entries, and the lowest of their scores, 0.0 without any; waits once."""
    numbers = torch.arange(len(table) + 1, device=table.device)
    starts = torch.searchsorted(found.owners, numbers)
    lowest = found.keys.min() if len(found.keys) else torch.zeros((), device=table.device, dtype=torch.float32)
    *counts, bits = HostCopy(torch.cat([starts, lowest.view(torch.int32).view(1).long()])).wait().tolist()
    threshold = float_of(bits)
    return SparseIndex(found.offsets, counts, table.numels), threshold
