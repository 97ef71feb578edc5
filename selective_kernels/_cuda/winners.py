"""From candidates to new entries: the best of them in the order of the index, with what stands there."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selective_kernels._cuda import native
from selective_kernels._cuda.place import address, place_for
from selective_kernels._cuda.plan import plan_of
from selective_kernels._cuda.read import Read
from selective_kernels.fetched import Fetched
from selective_kernels.hostcopy import HostCopy
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table


class Reading(NamedTuple):
    """What the host learns of a read.

    Attributes:
        found: candidates, also those without room.
        nonfinite: whether a gradient is inf or NaN.
        threshold: bits of the lowest score that is a candidate.
        repairs: further reads of a repair.
    """

    found: int
    nonfinite: bool
    threshold: int
    repairs: int


class Report(NamedTuple):
    """What the host has to know of a scan.

    Attributes:
        lowest: bits of the lowest score among the best, 0 if there is none.
        starts: of the index of the new entries, over all tensors of the table.
        readings: of the reads.
    """

    lowest: int
    starts: list[int]
    readings: list[Reading]


class Winners:
    """Enqueues the selection of the best k of what some reads have found; nobody waits until the report is asked for.

    Args:
        table: all tensors.
        reads: of different tensors of it; at least one.
        gradients: of the tensors that have been read, by number; None if gradients are not wanted.
        k: how many entries are wanted.
    """

    def __init__(self, table: Table, reads: Sequence[Read], gradients: Mapping[int, Tensor] | None, k: int) -> None:
        module: Any = native()
        device = table.device
        self._table, self._n_readings = table, len(reads)
        self._tensors = sorted(i for read in reads for i in read.tensors)
        count = k if any(read.exact for read in reads) else min(k, sum(read.capacity for read in reads))
        self._offsets = torch.empty(count, dtype=torch.int32, device=device)
        self._bits = torch.empty(count, dtype=torch.int32, device=device)
        self._grads = None if gradients is None else torch.empty(count, device=device, dtype=torch.float32)
        self._values = None if table.float32_only else torch.empty(count, device=device, dtype=torch.float32)
        report = torch.empty(2 + len(self._tensors) + 4 * len(reads), dtype=torch.int64, device=device)
        plan = plan_of(table, self._tensors)
        segments = {number: place for read in reads for number, place in read.segments().items()}
        grads = None if gradients is None else [gradients[i] for i in self._tensors]
        place = place_for(device, 0, module.select_room(len(self._tensors), plan.n_slots, len(reads)))
        module.select(
            place.where,
            table.rows(SparseIndex.empty(len(table), device=device), self._tensors, grads),
            plan.for_native(),
            array("q", [segments[i] for i in self._tensors]),
            [read.native for read in reads],
            k,
            (
                self._offsets.data_ptr(),
                self._bits.data_ptr(),
                address(self._values),
                address(self._grads),
                report.data_ptr(),
            ),
        )
        self._report = HostCopy(report)

    def wait(self) -> Report:
        """Waits for the counts."""
        lowest, *numbers = self._report.wait().tolist()
        found, numbers = numbers[: len(self._tensors) + 1], numbers[len(self._tensors) + 1 :]
        counts = [0] * len(self._table)
        for number, begin, end in zip(self._tensors, found, found[1:], strict=False):
            counts[number] = end - begin
        starts = [0]
        for count in counts:
            starts.append(starts[-1] + count)
        readings = [numbers[4 * i : 4 * i + 4] for i in range(self._n_readings)]
        return Report(lowest, starts, [Reading(a, bool(b), c, d) for a, b, c, d in readings])

    def index(self, starts: list[int]) -> SparseIndex:
        """The new entries; `starts` is the report's."""
        return SparseIndex(self._offsets[: starts[-1]], starts, self._table.numels)

    def fetched(self, count: int) -> Fetched:
        """What stands there."""
        grads = None if self._grads is None else self._grads[:count]
        return Fetched(grads, self._bits[:count], None if self._values is None else self._values[:count])
