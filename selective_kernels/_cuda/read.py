"""One read of some tensors by a scan, enqueued by one native call."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selective_kernels._cuda import native
from selective_kernels._cuda.place import address, place_for
from selective_kernels._cuda.plan import plan_of
from selective_kernels.index import SparseIndex
from selective_kernels.sampling import (
    LEAST_CAPACITY,
    Sample,
    allocate,
    capacity_for,
    float_bits,
    sample_for,
    warn_of_memory,
)
from selective_kernels.score import FAMILIES, Score
from selective_kernels.table import COLUMNS, DTYPE_CODES, Table

FLOAT32 = DTYPE_CODES[torch.float32]


def first_sample(k: int, n_lines: int, numel: int, hint: float | None) -> tuple[Sample, int]:
    """How a read for the best k gets its threshold: the sample, and the bits of a threshold where there is none.

    Args:
        k: how many entries are wanted.
        n_lines, numel: of what is read.
        hint: see `selective_kernels.scan`; replaces the sample unless it is NaN.
    """
    sample = sample_for(k, n_lines, numel)
    if hint is not None and hint == hint:
        return sample._replace(lines=0), max(float_bits(hint), 1)
    return sample, 0 if sample.lines else 1


def room_for_candidates(count: int, device: torch.device) -> Tensor:
    """Room for candidates, less if there is no memory: then a repair follows."""
    while True:
        try:
            return allocate(count, device)
        except torch.OutOfMemoryError:
            if count <= LEAST_CAPACITY:
                raise
            warn_of_memory(count)
            count //= 4


class Read:
    """Enqueues the read of some tensors; nobody waits.

    Args:
        table, index: all tensors and what is selected already.
        tensors, sources: numbers of the tensors, of which there are some entries, and their gradients (or keys); None
            if the score reads none.
        score: what ranks.
        k: how many entries are wanted of all tensors.
        hint: see `selective_kernels.scan`; replaces the sample.
        grads_out: see `Scan.add`.

    Attributes:
        tensors, sources: as given.
        native: the native call's result, which other native calls get; holds addresses of what this object holds.
        capacity: how many candidates have room.
        selects: whether candidates are looked for.
        exact: whether nothing can be missing: a repair has replaced what was found.
    """

    def __init__(
        self,
        table: Table,
        index: SparseIndex,
        tensors: Sequence[int],
        sources: Sequence[Tensor] | None,
        score: Score,
        k: int,
        hint: float | None,
        grads_out: Tensor | None,
    ) -> None:
        module: Any = native()
        self.tensors, self.sources, self._index = list(tensors), sources, index
        keys = score.family == "given"
        self._plan = plan_of(table, tensors)
        sample, fixed = first_sample(k, self._plan.n_lines, self._plan.numel, hint)
        self.selects, self.exact = k > 0, False
        self._candidates = room_for_candidates(
            capacity_for(sample, self._plan.numel) if self.selects else 0, table.device
        )
        self.capacity = len(self._candidates)
        self._segments = torch.empty(
            self._plan.n_slots * module.SEGMENT_BYTES if self.selects else 0, dtype=torch.uint8, device=table.device
        )
        rows = table.rows(index, tensors, sources)
        if keys:
            rows[3::COLUMNS] = array("q", [FLOAT32]) * len(tensors)
        n_slots = self._plan.n_slots if index.count else 0
        self._place = place_for(table.device, 0, module.read_room(len(tensors), n_slots))
        self.native = module.read(
            self._place.where,
            rows,
            self._plan.for_native(keys=keys),
            (FAMILIES.index(score.family), score.exponent, score.eps, score.seed),
            (sample.lines, sample.stride, sample.rank, fixed),
            self.selects,
            (
                index.offsets.data_ptr() if index.count else 0,
                address(grads_out) if index.count else 0,
                self._candidates.data_ptr(),
                self._segments.data_ptr(),
            ),
            self.capacity,
        )

    def segments(self) -> dict[int, int]:
        """Where the segments of each tensor begin, by its number; 0 if no candidates are looked for."""
        size, base = int(native().SEGMENT_BYTES), self._segments.data_ptr()
        if not self.selects:
            return dict.fromkeys(self.tensors, 0)
        return {i: base + size * slot for i, slot in zip(self.tensors, self._plan.slots, strict=True)}


def repair(reads: Sequence[Read], k: int, device: torch.device) -> Tensor:
    """Enqueues reads that leave exactly the best k candidates of some reads, which then are exact.

    Returns:
        The memory of these candidates, which has to stay.

    Raises:
        torch.OutOfMemoryError: there is no room for k candidates.
    """
    module: Any = native()
    candidates = allocate(k, device)
    place = place_for(device, 0, module.repair_room())
    module.repair(place.where, [read.native for read in reads], k, candidates.data_ptr())
    for read in reads:
        read.exact = True
    return candidates
