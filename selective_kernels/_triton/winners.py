"""From candidates to new entries: the best of them in the order of the index, with what stands there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from selective_kernels._triton.layout import CONTROL, FLAT_BITS, FLAT_MASK, MIDDLE, UNUSED, find_rows
from selective_kernels._triton.rows import (
    DTYPE,
    N_COLUMNS,
    OPTIONS,
    PARAM,
    Rows,
    column,
    load_mixed,
    load_mixed_bits,
    on_device,
)
from selective_kernels._triton.scores import LARGEST
from selective_kernels.fetched import Fetched
from selective_kernels.hostcopy import HostCopy, to_device
from selective_kernels.index import SparseIndex
from selective_kernels.table import Table

BASE = tl.constexpr(N_COLUMNS)  # flat position of a tensor's first entry
SOURCE = tl.constexpr(N_COLUMNS + 1)  # address of its gradient, 0 without one
FETCHED = 512  # entries per program of NUM_WARPS warps; each takes many registers
NUM_WARPS = 8


@triton.jit(do_not_specialize=["n_rows", "row_steps", "count"])
def fetch_kernel(
    rows, n_rows, row_steps, ordered, flats, count, lowest, offsets, bits, grads, values,
    HAS_GRADS: tl.constexpr, HAS_VALUES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Splits flat positions (int64, (count,), ascending, the unused ones last) and reads what stands there.

    `lowest` (int64, 1) receives the score's bits of the last used one of `ordered`, the candidates best first.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    candidate = tl.load(ordered + place, mask=inside, other=UNUSED)
    following = tl.load(ordered + place + 1, mask=place + 1 < count, other=UNUSED)
    last = (candidate != UNUSED) & (following == UNUSED)
    score = -((candidate >> FLAT_BITS) + MIDDLE) + LARGEST
    tl.store(lowest + tl.zeros_like(place), score, mask=last)
    flat = tl.load(flats + place, mask=inside, other=FLAT_MASK)
    used = flat != FLAT_MASK
    row = find_rows(rows + BASE * (n_rows + 1), n_rows, flat, row_steps)
    offset = flat - column(rows, n_rows, row, BASE)
    tl.store(offsets + place, offset.to(tl.int32), mask=used)
    param, dtype = column(rows, n_rows, row, PARAM), column(rows, n_rows, row, DTYPE)
    tl.store(bits + place, load_mixed_bits(param, offset, used, dtype), mask=used)
    if HAS_VALUES:
        tl.store(values + place, load_mixed(param, offset, used, dtype), mask=used)
    if HAS_GRADS:
        grad = column(rows, n_rows, row, SOURCE)
        tl.store(grads + place, load_mixed(grad, offset, used, dtype), mask=used)


class Report(NamedTuple):
    """What the host has to know of a scan.

    Attributes:
        lowest: bits of the lowest score among the best, 0 if there is none.
        starts: of the index of the new entries.
        controls: the reads' control blocks, see `layout`.
    """

    lowest: int
    starts: list[int]
    controls: list[list[int]]


class Winners:
    """The new entries and what stands there; enqueued, nobody waits until `starts` is asked for.

    Args:
        table: all tensors.
        sources: addresses of the gradients by tensor number, 0 without; None if the scan has read none.
        ordered: int64, on the device: candidates, best first, then `UNUSED`; at most as many as are wanted.
        controls: of the scan's reads, see `layout`.
    """

    def __init__(
        self, table: Table, sources: Sequence[int] | None, ordered: Tensor, controls: Sequence[Tensor]
    ) -> None:
        device, count = table.device, len(ordered)
        numels = torch.tensor(table.numels, dtype=torch.int64, device="cpu")
        bases = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), numels.cumsum(0)])
        extra = [bases[:-1], torch.tensor(sources or [0], dtype=torch.int64, device="cpu")]
        rows = Rows(table, SparseIndex.empty(len(table), device=device), extra=extra)
        flats = torch.sort(ordered & FLAT_MASK.value).values
        self._table, self._offsets = table, torch.empty(count, dtype=torch.int32, device=device)
        self._bits = torch.empty(count, dtype=torch.int32, device=device)
        self._grads = None if sources is None else torch.empty(count, device=device, dtype=torch.float32)
        self._values = None if table.float32_only else torch.empty(count, device=device, dtype=torch.float32)
        lowest = torch.zeros(1, dtype=torch.int64, device=device)
        if count:
            with on_device(device):
                fetch_kernel[(-(-count // FETCHED),)](
                    rows.data,
                    rows.n_rows,
                    rows.n_rows.bit_length(),
                    ordered,
                    flats,
                    count,
                    lowest,
                    self._offsets,
                    self._bits,
                    self._bits if self._grads is None else self._grads,
                    self._bits if self._values is None else self._values,
                    HAS_GRADS=self._grads is not None,
                    HAS_VALUES=self._values is not None,
                    BLOCK=FETCHED,
                    num_warps=NUM_WARPS,
                    **OPTIONS,
                )
        starts = torch.searchsorted(flats, to_device(bases, device))
        self._n_controls = len(controls)
        self._report = HostCopy(torch.cat([lowest, starts, *controls]))

    def wait(self) -> Report:
        """Waits for the counts."""
        report = self._report.wait().tolist()
        split = 2 + len(self._table)
        controls = [report[split + i * CONTROL : split + (i + 1) * CONTROL] for i in range(self._n_controls)]
        return Report(report[0], report[1:split], controls)

    def index(self, starts: list[int]) -> SparseIndex:
        """The new entries; `starts` is the report's."""
        return SparseIndex(self._offsets[: starts[-1]], starts, self._table.numels)

    def fetched(self, count: int) -> Fetched:
        """What stands there."""
        grads = None if self._grads is None else self._grads[:count]
        return Fetched(grads, self._bits[:count], None if self._values is None else self._values[:count])
