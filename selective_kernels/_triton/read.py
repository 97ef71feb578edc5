"""One read of some tensors: a threshold from a sample, the scan with it, and the slower reads that repair a bad one."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels._triton import layout
from selective_kernels._triton.plan import plan_of, salts
from selective_kernels._triton.repair import DIGITS, repair_kernel
from selective_kernels._triton.rows import OPTIONS, Rows, on_device
from selective_kernels._triton.sample import (
    BINS,
    BLOCKS_PER_PROGRAM,
    LINES_AT_ONCE,
    SLOTS_PER_PROGRAM,
    filter_kernel,
    prepare_kernel,
)
from selective_kernels._triton.scan import PART, SELECTED_AT_ONCE, scan_kernel
from selective_kernels._triton.scores import kind_of
from selective_kernels.hostcopy import to_device
from selective_kernels.index import SparseIndex
from selective_kernels.sampling import LEAST_CAPACITY, allocate, capacity_for, float_bits, warn_of_memory
from selective_kernels.score import Score
from selective_kernels.table import DTYPE_CODES, Table

NUM_WARPS = 8


def double_bits(value: float) -> int:
    """The bits of a float64, as an int64."""
    return int(torch.tensor(value, dtype=torch.float64, device="cpu").view(torch.int64))


@functools.lru_cache(maxsize=64)
def control_of(score: Score) -> Tensor:
    """The control block of a scan by a score, on the CPU; see `layout`."""
    control = torch.zeros(layout.CONTROL, dtype=torch.int64, device="cpu")
    exponent = float(score.exponent)
    # A negative exponent may make the power subnormal, which rounds by up to a factor of two.
    slack = 0.0861 * (1.0 + max(-exponent, 0.0)) + 1e-3 * (1.0 + abs(exponent)) + (1.0 if exponent < 0.0 else 0.0)
    eps = float(torch.tensor(score.eps, dtype=torch.float32, device="cpu"))
    control[layout.EPS.value] = float_bits(eps)
    control[layout.EXPONENT.value] = double_bits(exponent)
    control[layout.LEAST_POWER.value] = double_bits(eps ** max(exponent, 0.0))
    control[layout.SLACK.value] = double_bits(slack)
    return control


class Read:
    """Enqueues the scan of some tensors; nobody waits.

    Args:
        table, index: all tensors and what is selected already.
        tensors, sources: numbers of the tensors, and their gradients (or keys); None if the score reads none.
        score: what ranks.
        k: how many entries are wanted of all tensors.
        hint: see `selective_kernels.scan`; replaces the sample.
        grads_out: see `Scan.add`.

    Attributes:
        control: int64, on the device, see `layout`.
        candidates: int64, on the device; those found, in any order, and `layout.UNUSED`.
        selects: whether candidates are looked for.
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
        self._index, self.sources, self._device = index, sources, table.device
        self._plan = plan_of(table, tensors)
        self._kind = kind_of(score)
        keys = score.family == "given"
        self._dtype_code = DTYPE_CODES[torch.float32] if keys else self._plan.dtype_code
        ids = [table.ids[i] for i in tensors]
        extra = [
            *self._plan.columns,
            salts(score.seed, ids) if score.family == "random" else torch.zeros(1, dtype=torch.float32, device="cpu"),
        ]
        self._rows = Rows(table, index, tensors, sources, extra, DTYPE_CODES[torch.float32] if keys else None)
        self.selects = k > 0 and self._plan.n_chunks > 0
        sample = self._plan.sample(k)
        fixed = 0 if sample.lines else 1
        if hint is not None and hint == hint:
            sample, fixed = sample._replace(lines=0), max(float_bits(hint), 1)
        control = control_of(score).clone()
        control[layout.STRIDE.value] = sample.stride
        control[layout.RANK.value] = sample.rank
        control[layout.FIXED.value] = fixed
        self.control = to_device(control, table.device)
        self._starts = torch.empty(self._plan.n_slots if index.count else 0, dtype=torch.int32, device=table.device)
        self.candidates = self._allocate(capacity_for(sample, self._plan.numel)) if self.selects else None
        if self._plan.n_chunks:
            with on_device(table.device):
                self._prepare(sample.lines)
                self._scan(grads_out)

    def _allocate(self, count: int) -> Tensor:
        """Room for candidates, less if there is no memory: then a repair follows."""
        while True:
            try:
                return allocate(count, self._device).fill_(layout.UNUSED.value)
            except torch.OutOfMemoryError:
                if count <= LEAST_CAPACITY:
                    raise
                warn_of_memory(count)
                count //= 4

    def _prepare(self, n_samples: int) -> None:
        rows, index, plan = self._rows, self._index, self._plan
        sampling = -(-n_samples // (LINES_AT_ONCE * BLOCKS_PER_PROGRAM)) if self.selects else 0
        filling = -(-plan.n_slots // SLOTS_PER_PROGRAM) if index.count else 0
        histogram = torch.zeros(BINS if sampling else 0, dtype=torch.int32, device=self._device)
        if sampling + filling:
            prepare_kernel[(sampling + filling,)](
                rows.data,
                rows.n_rows,
                index.offsets,
                self.control,
                histogram,
                self._starts,
                n_samples,
                plan.n_slots,
                rows.n_rows.bit_length(),
                rows.longest.bit_length(),
                sampling,
                KIND=self._kind,
                HAS_SELECTED=index.count > 0,
                LINES_AT_ONCE=LINES_AT_ONCE,
                BLOCKS_PER_PROGRAM=BLOCKS_PER_PROGRAM,
                SLOTS_PER_PROGRAM=SLOTS_PER_PROGRAM,
                BINS=BINS,
                num_warps=NUM_WARPS,
                **OPTIONS,
            )
        if self.selects:
            filter_kernel[(1,)](self.control, histogram, KIND=self._kind, BINS=BINS, num_warps=NUM_WARPS, **OPTIONS)

    def _scan(self, grads_out: Tensor | None) -> None:
        rows, plan, gathering = self._rows, self._plan, grads_out is not None and self._index.count > 0
        scan_kernel[(plan.n_chunks,)](
            rows.data,
            rows.n_rows,
            plan.chunk_rows,
            plan.tiles_per_chunk,
            self._index.offsets,
            self._starts,
            self.control,
            self.control if self.candidates is None else self.candidates,
            0 if self.candidates is None else len(self.candidates),
            grads_out if gathering else self.control,
            KIND=self._kind,
            DTYPE_CODE=self._dtype_code,
            SELECTING=self.selects,
            HAS_SELECTED=self._index.count > 0,
            GATHERING=gathering,
            TILE=layout.TILE,
            PART=PART,
            SELECTED_AT_ONCE=SELECTED_AT_ONCE,
            num_warps=NUM_WARPS,
            **OPTIONS,
        )

    def count_digits(self, bounds: Tensor, shift: int, digits: int, histogram: Tensor) -> None:
        """Adds to `histogram` (int64, DIGITS) the candidates within bounds (int64, 2) by digit; see `repair_kernel`."""
        self._repair(bounds, shift, digits, histogram, self.control, self.control, 0, collecting=False)

    def collect(self, bounds: Tensor, candidates: Tensor, control: Tensor) -> None:
        """Appends all candidates within bounds (int64, 2); `control`, of the same score, counts them."""
        self._repair(bounds, 0, 1, control, control, candidates, len(candidates), collecting=True)

    def _repair(
        self,
        bounds: Tensor,
        shift: int,
        digits: int,
        histogram: Tensor,
        control: Tensor,
        candidates: Tensor,
        capacity: int,
        *,
        collecting: bool,
    ) -> None:
        rows, plan = self._rows, self._plan
        with on_device(self._device):
            repair_kernel[(plan.n_chunks,)](
                rows.data,
                rows.n_rows,
                plan.chunk_rows,
                plan.tiles_per_chunk,
                self._index.offsets,
                self._starts,
                control,
                bounds,
                shift,
                digits,
                histogram,
                candidates,
                capacity,
                COLLECTING=collecting,
                KIND=self._kind,
                HAS_SELECTED=self._index.count > 0,
                TILE=layout.TILE,
                PART=PART,
                SELECTED_AT_ONCE=SELECTED_AT_ONCE,
                DIGITS=DIGITS,
                num_warps=NUM_WARPS,
                **OPTIONS,
            )
