"""What the Trainer does not know about selective optimizers: how many steps there are, what to log, what to save."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from selective_peft.delta import SparseDelta
from selective_peft.figures import PREFIX, selection_figures
from selective_peft.making_deltas import bare_optimizer
from selective_peft.optimizer import SelectiveOptimizer
from selective_peft.sizes import folder_name, needed, short

DELTA = "delta"
OFFSET = "selective/offset"  # in what checkpoints keep of callbacks: global step at the optimizer's step 0


class SelectiveCallback(TrainerCallback):
    """Tells the optimizer how many steps there will be, logs the selection, and saves deltas.

    - If the optimizer was made with `total_steps="later"`, as `selective_optimizer` does, it gets the run's number of
      steps.
    - The entries with the training loss in `state.log_history` get the numbers of `selection_figures`, with steps that
      a gradient scaler skipped counted in "selective/skipped_steps". Reporters (TensorBoard, W&B) come before
      `callbacks=[...]` and would not see them: `attach` puts this one first.
    - Each checkpoint gets the folder `delta` with what has changed so far, from the process that saves. There is none
      before a dense warm-up has ended, for a method that selects afresh in each step, and in a search for
      hyper-parameters.

    Args:
        save_at: ascending shares of the budget. In the first step after which a share is spent, the delta goes to
            `delta-0.10` (for 0.1) in the output folder. A resumed run does not write again what an earlier part of it
            has written; a search writes none.
        deltas: whether checkpoints get a delta.
        compact: see `SparseDelta.save`.
        base_model, base_revision: see `SparseDelta.from_optimizer`.

    Raises:
        ValueError: shares that are not ascending, or not in (0, 1].
    """

    def __init__(
        self,
        save_at: Iterable[float] = (),
        *,
        deltas: bool = True,
        compact: bool = False,
        base_model: str | None = None,
        base_revision: str | None = None,
    ) -> None:
        self.save_at = tuple(map(float, save_at)) if isinstance(save_at, Iterable) else (math.nan,)
        if not all(0.0 < share <= 1.0 for share in self.save_at) or sorted(set(self.save_at)) != list(self.save_at):
            raise ValueError(f"save_at: expected ascending shares > 0 and <= 1 such as (0.1, 0.5, 1.0), got {save_at}")
        self._deltas, self._compact = deltas, compact
        self._base = {"base_model": base_model, "base_revision": base_revision}
        self._first = False  # among the Trainer's callbacks
        self._due: list[float] = []  # shares that are not spent yet
        self._offset = 0  # global step at which the optimizer's step 0 would have been

    def attach(self, trainer: Trainer) -> SelectiveCallback:
        """Makes this the first of a Trainer's callbacks, whether it is one of them or not; returns it."""
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(each for each in callbacks if each is not self)]
        self._first = True
        return self

    # ------------------------------------------------------------------ events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """The model and the optimizer are there, a checkpoint is loaded, no step was made.

        Raises:
            ValueError: an optimizer that is not selective, or shares to save without a selection that grows.
        """
        optimizer = bare_optimizer(given["optimizer"])
        settings = optimizer._settings
        if self.save_at and (settings.whole or settings.repeats):
            raise ValueError(f"save_at: expected no shares with method={settings.method!r}, got {self.save_at}")
        optimizer.set_total_steps(state.max_steps)
        self._align(state, optimizer)
        spent = [share for share in self.save_at if _is_spent(share, optimizer)]
        self._due = [share for share in self.save_at if share not in spent and not _is_trial(state)]
        if args.should_save:
            self._warn(args, state, optimizer, spent)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Saves what is due."""
        if not self._due or not args.should_save:
            return
        optimizer = bare_optimizer(given["optimizer"])
        if not _may_be_spent(self._due[0], optimizer):
            return
        due = [share for share in self._due if _is_spent(share, optimizer)]
        self._due = self._due[len(due) :]
        for share in due:
            self._save(given["model"], optimizer, folder_of(args, share))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **given: Any,
    ) -> None:
        """Adds the selection's numbers to what is logged with the training loss."""
        if logs is None or "loss" not in logs:
            return
        optimizer = bare_optimizer(given["optimizer"])
        figures = selection_figures(optimizer)
        figures[f"{PREFIX}skipped_steps"] = state.global_step - self._offset - _steps(optimizer)
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """A checkpoint was written; the delta joins it."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if self._deltas and args.should_save and folder.is_dir() and not _is_trial(state):
            optimizer = bare_optimizer(given["optimizer"])
            if _has_delta(optimizer):
                self._save(given["model"], optimizer, folder / DELTA)
            elif (folder / DELTA).is_dir():  # of an earlier run, whose weights are replaced
                shutil.rmtree(folder / DELTA)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Says which shares were not reached."""
        if self._due and args.should_save:
            optimizer = bare_optimizer(given["optimizer"])
            warnings.warn(
                f"save_at: {_listed(self._due)} of the budget of {optimizer.budget} was not reached, "
                f"{optimizer.num_selected:,} scalars were selected; nothing was saved for it",
                stacklevel=2,
            )

    # ------------------------------------------------------------------

    def _align(self, state: TrainerState, optimizer: SelectiveOptimizer) -> None:
        """Compares the Trainer's steps with the optimizer's, and leaves a note in checkpoints if they differ."""
        kept = cast(dict[str, Any], state.stateful_callbacks)  # declared as what it is made of
        noted = kept.pop(OFFSET, 0)
        resumed = optimizer.begun and state.global_step > 0
        self._offset = int(noted) if resumed else state.global_step - _steps(optimizer)
        if self._offset:
            kept[OFFSET] = self._offset

    def _save(self, model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
        SparseDelta.from_optimizer(optimizer, model, **self._base).save(folder, compact=self._compact)

    def _warn(
        self, args: TrainingArguments, state: TrainerState, optimizer: SelectiveOptimizer, spent: list[float]
    ) -> None:
        if args.report_to and not self._first:
            warnings.warn(
                f"report_to={args.report_to}: reporters come before callbacks=[...] and will not see {PREFIX}...; "
                "SelectiveCallback.attach(trainer) lets them",
                stacklevel=3,
            )
        if optimizer._settings.repeats and self._deltas:
            warnings.warn(
                "deltas: none are saved for a method that selects afresh in each step; SparseDelta.from_models makes "
                "them",
                stacklevel=3,
            )
        if state.global_step > 0 and not optimizer.begun:
            warnings.warn(
                f"step {state.global_step}: resumed without the optimizer's state; the selection begins anew, and "
                "deltas are to the weights of this step",
                stacklevel=3,
            )
        lost = [share for share in spent if not folder_of(args, share).is_dir()]
        if lost:
            warnings.warn(
                f"save_at: {_listed(lost)} of the budget was spent before this run began; nothing is saved for it",
                stacklevel=3,
            )


def folder_of(args: TrainingArguments, share: float) -> Path:
    """Where the delta goes when a share of the budget is spent: delta-0.10, with more digits if the share has more."""
    return Path(str(args.output_dir)) / folder_name(share)


def _is_trial(state: TrainerState) -> bool:
    """Whether this is a run of a search, whose checkpoints are elsewhere; not for one that resumes a trial's."""
    return state.is_hyper_param_search and state.trial_params is not None


def _listed(shares: Iterable[float]) -> str:
    return ", ".join(map(short, shares))


def _steps(optimizer: SelectiveOptimizer) -> int:
    """Steps that were made, those of a warm-up included."""
    selection = optimizer._selection
    return 0 if selection is None else selection.step + selection.warmup


def _is_spent(share: float, optimizer: SelectiveOptimizer) -> bool:
    return optimizer.budget is not None and optimizer.num_selected >= needed(share, optimizer.budget)


def _may_be_spent(share: float, optimizer: SelectiveOptimizer) -> bool:
    """Whether the share is spent if the last step was made, which this does not wait to know."""
    selection = optimizer._settled
    return selection is not None and optimizer.budget is not None and selection.count >= needed(share, optimizer.budget)


def _has_delta(optimizer: SelectiveOptimizer) -> bool:
    settings, selection = optimizer._settings, optimizer._selection
    return selection is not None and not settings.repeats and selection.warmup >= settings.warmup_steps
