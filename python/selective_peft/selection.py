"""The selected scalars and everything kept for them: O(B) memory, sorted by position (C10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selective_kernels import Fetched, SparseIndex, Table, gather, merge_
from selective_kernels.indexing import MergeArrays, begin_insertion
from selective_kernels.prelude import Insertion, Source


class Selection:
    """Positions, optimizer state and history of the selected scalars of a table of tensors.

    Attributes:
        index: positions; its capacity is the budget.
        arrays: per-entry tensors of 4-byte items, ordered like `index`: the optimizer's moments (float32), "original"
            (int32: raw bits at selection), "chosen" (int32: step of selection, from 0), and "master" (float32 copies,
            only if a tensor is 16-bit).
        moments: names of the optimizer's.
        tensor_steps: updates of each tensor so far.
        missed: per tensor number, the steps in which it had selected scalars but no gradient (kept only for
            "per_entry" bias correction).
        step: completed steps.
        skipped: steps skipped because of inf or NaN.
        threshold: the lowest score that was selected in the last step that selected; None before, and if there is none.
        warmup: completed dense steps before the first selection; these are no steps of the selection.
    """

    def __init__(self, table: Table, budget: int, moments: Sequence[str]) -> None:
        device = table.device
        self.moments = tuple(moments)
        self.index = SparseIndex.empty(len(table), budget, device)
        self.arrays = {name: torch.zeros(budget, dtype=torch.float32, device=device) for name in moments}
        self.arrays["original"] = torch.empty(budget, dtype=torch.int32, device=device)
        self.arrays["chosen"] = torch.empty(budget, dtype=torch.int32, device=device)
        self.tensor_steps = [0] * len(table)
        self.missed: dict[int, list[int]] = {}
        self.step = 0
        self.skipped = 0
        self.warmup = 0
        self.threshold: float | None = None
        self._ensure_master(table)

    @property
    def count(self) -> int:
        """Number of selected scalars."""
        return self.index.count

    @property
    def master(self) -> Tensor | None:
        """float32 copies of 16-bit parameters' selected scalars, or None if no tensor is 16-bit."""
        return self.arrays.get("master")

    def _ensure_master(self, table: Table) -> None:
        if "master" in self.arrays or all(param.dtype == torch.float32 for param in table.params):
            return
        self.arrays["master"] = torch.empty(len(self.index.offsets), dtype=torch.float32, device=table.device)
        gather(table, self.index, out=self.arrays["master"])

    def adapt(self, table: Table) -> None:
        """Follows a table that got more tensors at its end, or whose tensors moved to another device."""
        added = len(table) - self.index.n_tensors
        self.index.starts.extend([self.index.count] * added)
        self.tensor_steps.extend([0] * added)
        if self.index.offsets.device != table.device:
            self.index.offsets = self.index.offsets.to(table.device)
            self.arrays = {name: array.to(table.device) for name, array in self.arrays.items()}
        self._ensure_master(table)

    def insert(
        self,
        new: SparseIndex,
        fetched: Fetched,
        aligned: MergeArrays = (),
        state: Mapping[str, Tensor] | None = None,
        backend: str = "auto",
    ) -> None:
        """Adds new entries with fresh state.

        Args:
            new: the entries.
            fetched: what stands there.
            aligned: pairs (array ordered like the index, values of the new entries) that are merged alike.
            state: float32 moments that the new entries begin with, by name; zeros without.
            backend: see `SelectiveAdamW`.
        """
        merge_(self.index, new, self._merged(fetched, aligned, state or {}), backend=backend)

    def begin_insert(
        self, new: SparseIndex, fetched: Fetched, aligned: MergeArrays, state: Mapping[str, Tensor]
    ) -> Insertion:
        """The same, but the update that comes next brings the entries in; they are counted from now on."""
        return begin_insertion(self.index, new, self._merged(fetched, aligned, state))

    def fresh_arrays(self) -> list[tuple[Tensor, Source]]:
        """All per-entry arrays, and what new entries of this step begin with."""
        history: dict[str, Source] = {"original": "bits", "chosen": self.step, "master": "values"}
        return [(array, history.get(name, 0)) for name, array in self.arrays.items()]

    def _merged(self, fetched: Fetched, aligned: MergeArrays, state: Mapping[str, Tensor]) -> MergeArrays:
        fresh = {**self._history(fetched), **state}
        return [*((array, fresh.get(name)) for name, array in self.arrays.items()), *aligned]

    def take_out(self, starts: list[int]) -> None:
        """Takes out again what this step has inserted, and nothing else has touched since.

        Args:
            starts: of the index before.
        """
        is_new = self.arrays["chosen"][: self.count] == self.step
        stay = torch.argsort(is_new.to(torch.uint8), stable=True)[: starts[-1]]  # nobody waits for their number
        for array in (self.index.offsets, *self.arrays.values()):
            array[: starts[-1]] = array[stay]
        self.index.starts[:] = starts

    def replace(self, new: SparseIndex, fetched: Fetched) -> None:
        """Forgets all entries and holds these instead."""
        self.index.offsets[: new.count] = new.valid
        self.index = SparseIndex(self.index.offsets, new.starts)
        for name, values in self._history(fetched).items():
            self.arrays[name][: new.count] = values

    def _history(self, fetched: Fetched) -> dict[str, Tensor]:
        """What is kept of each entry from the time of its selection."""
        found = {"original": fetched.bits, "chosen": torch.full_like(fetched.bits, self.step)}
        if fetched.values is not None:
            found["master"] = fetched.values
        return found

    def count_updates(self, tensors: Sequence[int], keep_missed: bool) -> list[int]:
        """Advances the step counters of the tensors that have a gradient in this step.

        Returns:
            The tensors that this step counts as missed for.
        """
        for i in tensors:
            self.tensor_steps[i] += 1
        missed = []
        if keep_missed and len(tensors) < len(self.tensor_steps):
            starts = self.index.starts
            for i in sorted(set(range(len(self.tensor_steps))) - set(tensors)):
                if starts[i] < starts[i + 1]:
                    self.missed.setdefault(i, []).append(self.step)
                    missed.append(i)
        return missed

    def uncount_updates(self, tensors: Sequence[int], missed: Sequence[int]) -> None:
        """Takes back `count_updates` of a step that was not made; `missed` is what it returned."""
        for i in tensors:
            self.tensor_steps[i] -= 1
        for i in missed:
            self.missed[i].pop()
            if not self.missed[i]:
                del self.missed[i]

    def nbytes(self) -> int:
        """Bytes per selected scalar times their number, plus the per-tensor tables."""
        per_entry = sum(array.element_size() for array in (self.index.offsets, *self.arrays.values()))
        tables = 8 * (len(self.index.starts) + len(self.tensor_steps))
        return per_entry * self.count + tables + 8 * sum(len(steps) for steps in self.missed.values())
