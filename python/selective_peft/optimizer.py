"""The flow of one step of the selective optimizers.

A scan reads every gradient once, and what it needs of the parameters; if all gradients are finite, the best new entries
join the index list and all selected entries are updated. Nothing is changed before the scan has seen every gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from selective_kernels import SparseIndex, Table, Update, dispatch, gather_grads, square_sum
from selective_kernels.hostcopy import HostCopy
from selective_kernels.optim import Ages
from selective_kernels.prelude import Before, Choosing, Clipping, Gathering
from selective_peft import dense_phases
from selective_peft.dense_phases import CLIP_EPS
from selective_peft.gradients import dense_grads, nonfinite_names
from selective_peft.pending import Pending, Verdict
from selective_peft.resume import ResumableOptimizer
from selective_peft.scores import describe_score, kernel_form, needs_grad
from selective_peft.search import Gradients, find
from selective_peft.selection import Selection
from selective_peft.tensor_scores import Spent
from selective_peft.undisturbed import Undisturbed
from selective_peft.weight_patches import WeightPatch, patches_of_optimizer


class SelectiveOptimizer(ResumableOptimizer):
    """A torch optimizer that selects scalars step by step and updates only those; see `SelectiveAdamW`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Selects this step's scalars and updates all selected ones; returns the closure's value.

        Ctrl-C waits until the step is made.

        Raises:
            TypeError, ValueError: a gradient of another dtype, size, layout or device than its parameter.
            FloatingPointError: a gradient is inf or NaN and `nonfinite="raise"`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        table, selection = self._bind()
        with Undisturbed(), table.pinned():
            self._step(table, selection)
        return loss

    def iter_patches(self, model: nn.Module | None = None) -> Iterator[WeightPatch]:
        """All that training has changed so far, tensor by tensor, as inference engines take it into a running model.

        Patches are of absolute values: a receiver that began with the base, or with the patches of any earlier step,
        has the weights of this step afterwards, bit for bit. What a `selective=False` group trains comes as whole
        tensors, without indices. O(selected scalars) time and memory beside these; nothing is searched for. Tensors are
        copies and lie where the optimizer works. A tied tensor comes once, under its first name.

        Args:
            model: whose parameters these are; possibly wrapped for several processes or compiled. Without it the names
                are those of the groups, which have to be the whole model's.

        Raises:
            ValueError: the optimizer has made no step, is amid its warm-up or selects afresh in each step
                ("d3-repeat"); its groups have no names, one name twice or those of a wrapper, or it has parameters
                that are not the model's.
            RuntimeError: a parameter has another size or dtype than in the last step; while iterating, the optimizer
                has stepped before its whole tensors were read.
            DeltaError: a changed scalar is inf or NaN, or a tensor trained whole has a dtype that no delta holds.
        """
        return patches_of_optimizer(self, model)

    def _step(self, table: Table, selection: Selection) -> None:
        dense = [[p for p in group["params"] if p.grad is not None] for group in self._groups(selective=False)]
        grads = [param.grad for param in table.params]
        tensors = [i for i, grad in enumerate(grads) if grad is not None]
        given = Gradients(tensors, [grad for grad in grads if grad is not None])
        if not tensors and not any(dense):
            warnings.warn(
                "step: no parameter has a gradient, so nothing is trained (was the model replaced or sharded after the "
                "optimizer was built?)",
                stacklevel=5,
            )
            return
        verdict = self._verdict(table, selection)
        missed: list[int] | None
        if selection.warmup < self._settings.warmup_steps:
            missed = [] if verdict.dense_finite() and dense_phases.warm_up(self, table, selection, given) else None
        elif self._settings.repeats:
            missed = [] if verdict.dense_finite() and dense_phases.repeat(self, table, selection, given) else None
        else:
            missed = self._step_selected(table, selection, given, verdict)
        if missed is None:
            self._report_nonfinite(selection)
            return
        before = {}
        if verdict.open:
            before = {param: dict(self.state.get(param, {})) for params in dense for param in params}
        for params, group in zip(dense, self._groups(selective=False), strict=True):
            if params:
                self._update_dense(params, group, verdict.skip)
        if verdict.skip is not None:
            self._pending = Pending(
                HostCopy(verdict.skip), given.tensors, missed, before, verdict.starts, verdict.threshold
            )

    def _verdict(self, table: Table, selection: Selection) -> Verdict:
        """What is known of the dense groups' gradients, or will be."""
        grads = dense_grads(self.param_groups)
        home = table.device if table.params or not grads else grads[0].device
        defers = bool(self._defers) and selection.warmup >= self._settings.warmup_steps
        return Verdict(grads, home, defers and all(grad.device.type == home.type for grad in grads))

    def _step_selected(
        self, table: Table, selection: Selection, given: Gradients, verdict: Verdict
    ) -> list[int] | None:
        """The step of the selective groups; None, and nothing is changed, if a gradient is known to be not finite.

        Returns:
            The tensors that this step counts as missed for.
        """
        found = self._select(table, selection, given, verdict)
        if found is None:
            return None
        selected_grads, before = found
        per_entry = self._settings.bias_correction == "per_entry"
        missed = selection.count_updates(given.tensors, keep_missed=per_entry)
        try:
            self._update_selected(table, selection, given, verdict, selected_grads, before)
        except BaseException:  # say for want of memory: the update was not made
            selection.uncount_updates(given.tensors, missed)
            if verdict.starts is not None and selection.index.starts != verdict.starts:
                selection.take_out(verdict.starts)
                selection.threshold = verdict.threshold
            raise
        if before.choosing is not None and not self._take_chosen(before.choosing, selection, verdict):
            selection.uncount_updates(given.tensors, missed)
            return None
        selection.step += 1
        if not verdict.open:
            self._finish(selection, selected=verdict.starts is not None)
        return missed

    def _update_selected(
        self,
        table: Table,
        selection: Selection,
        given: Gradients,
        verdict: Verdict,
        selected_grads: Tensor,
        before: Before,
    ) -> None:
        """Updates the selected entries, and does what has to be done before; the step counts as made already."""
        per_entry = self._settings.bias_correction == "per_entry"
        ages = Ages(selection.arrays["chosen"], selection.missed, selection.step) if per_entry else None
        clip: float | Tensor = 1.0
        if self._takes_whole_steps(verdict) and self._settings.max_grad_norm is not None:
            before = before._replace(clipping=Clipping(self._settings.max_grad_norm, CLIP_EPS))
        else:
            clip = self._clip_factor(table, selection.index, given.tensors, selected_grads)
        if given.tensors:
            self._update(
                Update(
                    table,
                    selection.index,
                    given.tensors,
                    selected_grads,
                    selection.master,
                    self._group_of,
                    selection.tensor_steps,
                    ages,
                    clip,
                    verdict.skip,
                    before if any(before) else None,
                )
            )

    def _takes_whole_steps(self, verdict: Verdict) -> bool:
        """Whether what precedes the update of this step is left to it, so that one call does all."""
        assert self._table is not None
        return verdict.flag is not None and dispatch.takes_whole_steps(self._table, self._settings.backend)

    def _select(
        self, table: Table, selection: Selection, given: Gradients, verdict: Verdict
    ) -> tuple[Tensor, Before] | None:
        """Reads the gradients, adds this step's entries.

        Returns:
            The selected gradients, and what the update has to do before they are all there; None to skip the step.
        """
        settings = self._settings
        wanted = self._wanted(table, selection)
        total = wanted if isinstance(wanted, int) else sum(wanted)
        selected_grads = torch.empty(selection.count + total, device=table.device, dtype=torch.float32)
        by_grad = needs_grad(settings.score)
        index, backend = selection.index, settings.backend
        if not total or (by_grad and not given.tensors):
            verdict.leave_open()
            if verdict.flag is not None and given.tensors and self._takes_whole_steps(verdict):
                grads = table.check_grads(given.tensors, given.grads)
                return selected_grads, Before(gathering=Gathering(grads, verdict.flag))
            finite = not given.tensors or gather_grads(
                table, index, given.tensors, given.grads, selected_grads, flag=verdict.flag, backend=backend
            )
            return (selected_grads, Before()) if finite and verdict.dense_finite() else None
        form = kernel_form(settings.score) if by_grad and isinstance(wanted, int) else None
        if form is not None and self._takes_whole_steps(verdict):
            verdict.starts, verdict.threshold = list(index.starts), selection.threshold
            grads, arrays = table.check_grads(given.tensors, given.grads), selection.fresh_arrays()
            choosing = Choosing(total, form, grads, arrays, verdict.dense_flag)
            return selected_grads, Before(choosing=choosing)
        if by_grad:
            verdict.ask()
        else:
            verdict.leave_open()  # what is selected does not depend on gradients, and can be taken out again
        eligible = [] if by_grad else self._eligible(table)
        found = find(table, index, wanted, settings.score, given, eligible, selected_grads, backend, verdict.skip)
        if found is None or not verdict.dense_finite():
            return None
        new, before = found.new, Before()
        if new.count:
            verdict.starts, verdict.threshold = list(index.starts), selection.threshold
            aligned = [(selected_grads, found.fetched.grads)]
            state = self._fresh_state(table, new)
            if given.tensors and self._takes_whole_steps(verdict):
                before = Before(insertion=selection.begin_insert(new, found.fetched, aligned, state))
            else:
                selection.insert(new, found.fetched, aligned, state, backend)
            selection.threshold = found.threshold
        return selected_grads, before

    def _take_chosen(self, choosing: Choosing, selection: Selection, verdict: Verdict) -> bool:
        """Takes over what came of a selection in the update's call; False to skip the step."""
        assert choosing.chosen is not None
        if not choosing.chosen.finite:
            return False
        if choosing.chosen.n_new:
            selection.threshold = choosing.chosen.threshold
        else:
            verdict.starts = None
        return True

    def _fresh_state(self, table: Table, new: SparseIndex) -> dict[str, Tensor]:
        """Per-entry state that new entries begin with, where it is not zero."""
        return {}

    def _finish(self, selection: Selection, *, selected: bool) -> None:
        if selected:
            self._let_go()
        if selection.step == self.total_steps and not selection.count and self.budget:
            warnings.warn(
                f"none of the budget of {self.budget} was selected in {selection.step} steps: no scalar had a finite "
                "score above zero",
                stacklevel=5,
            )

    def _let_go(self) -> None:
        """Frees scores that were handed in, as large as the model, once they have served."""
        score = self._settings.score
        spent = self._settings.strategy == "static" and self.num_selected == self.budget
        if spent and not hasattr(score, "kernel_score"):
            self._settings = replace(self._settings, score=Spent(describe_score(score)))

    def _report_nonfinite(self, selection: Selection) -> None:
        if self._settings.nonfinite == "raise":
            bad = nonfinite_names(self.param_groups)
            raise FloatingPointError(f"gradients: expected finite values, got inf or NaN in {bad}")
        selection.skipped += 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"step {selection.step}: skipped, a gradient is inf or NaN; later ones are counted in `skipped_steps`",
                stacklevel=4,
            )

    def _clip_factor(self, table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> float | Tensor:
        limit = self._settings.max_grad_norm
        if limit is None:
            return 1.0
        total = square_sum(table, index, tensors, grads, backend=self._settings.backend)
        if self._defers:
            return (limit / (total.sqrt() + CLIP_EPS)).clamp(max=1.0).float()
        return min(1.0, limit / (math.sqrt(float(total)) + CLIP_EPS))
