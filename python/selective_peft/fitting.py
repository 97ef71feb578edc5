"""The training of the command: a Hugging Face model under a selective optimizer, with the Trainer."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from selective_kernels.ranges import stopwatch
from selective_peft import SelectiveAdamW
from selective_peft.encoding import Rows
from selective_peft.errors import InputError
from selective_peft.metrics import Measure

METRIC = "eval_"


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: examples per forward pass.
        accumulation: forward passes per step.
        lr: learning rate, which falls linearly to 0 after `warmup` steps.
        precision: "fp32", "bf16" or "fp16" (mixed: the weights stay float32).
        evaluations: at most so many during training, evenly spread, the last one at its end.
    """

    steps: int
    batch_size: int
    accumulation: int
    lr: float
    warmup: int
    precision: str
    seed: int
    evaluations: int


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # or launches would be timed, not work
    return time.perf_counter()


@dataclass
class Times(TrainerCallback):
    """Seconds per step: forward and backward, and the optimizer."""

    forward_backward: list[float] = field(default_factory=list)
    optimizer: list[float] = field(default_factory=list)
    _began: float = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The first forward pass of a step begins."""
        self._began = _now()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """All gradients are there."""
        now = _now()
        self.forward_backward.append(now - self._began)
        self._began = now

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The step is done."""
        self.optimizer.append(_now() - self._began)


class Bar(ProgressCallback):
    """The Trainer's progress bar with the loss beside it, instead of a line per log entry."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, float] = {}

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        """Shows the newest losses."""
        bar: Any = self.training_bar
        if bar is not None and logs:
            newest = {"loss": logs.get("loss"), "evaluation": logs.get("eval_loss")}
            self.shown |= {key: value for key, value in newest.items() if value is not None}
            bar.set_postfix(self.shown, refresh=False)


@dataclass(frozen=True)
class Trained:
    """What a training run leaves besides the model.

    Attributes:
        before, after: metrics on the evaluation part.
        history: the Trainer's log: loss and metrics by step.
        forward_backward, optimizer: seconds of each step.
        tests: metrics on each of the tests, before and after.
        ranges: seconds of all steps by part of the optimizer ("scan", "finalize", "merge", "gather", "update").
    """

    before: dict[str, float]
    after: dict[str, float]
    history: list[dict[str, float]]
    forward_backward: list[float]
    optimizer: list[float]
    ranges: dict[str, float]
    tests: dict[str, tuple[dict[str, float], dict[str, float]]]


AfterStep = Callable[[int, Callable[[], dict[str, float]]], None]


class Visits(TrainerCallback):
    """Calls a function after each step, with the number of steps and a way to evaluate the model as it is."""

    def __init__(self, visit: AfterStep) -> None:
        self._visit = visit
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All of the step is done."""
        self._visit(int(state.global_step), self._evaluate)

    def _evaluate(self) -> dict[str, float]:
        return _predict(self.trainer, self.trainer.eval_dataset)


class Undisturbed(Trainer):
    """A Trainer whose evaluations draw no random numbers, so that training is the same with more or less of them."""

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """As in the Trainer."""
        with torch.random.fork_rng():
            return super().evaluation_loop(*arguments, **named)


def train(
    model: Any,
    optimizer: SelectiveAdamW,
    plan: Plan,
    training: Rows,
    evaluation: Rows,
    collator: Callable[[list[Any]], dict[str, Any]],
    measure: Measure,
    after_step: AfterStep = lambda _, __: None,
    tests: Mapping[str, Rows] | None = None,
) -> Trained:
    """Evaluates, trains with a progress bar, evaluates again.

    Args:
        model: of transformers, or a PEFT model around one.
        optimizer: for its parameters.
        plan: how to train.
        training, evaluation: rows of tokens with labels.
        collator: makes a batch of them.
        measure: what the evaluations are to say.
        tests: more rows to evaluate on, before and after training only.
        after_step: called with the number of completed steps and a function that evaluates the model as it is.

    Raises:
        InputError: the machine cannot do what the plan asks for.
        RuntimeError: the loss is not finite after training.
    """
    on_gpu = torch.cuda.is_available()
    if plan.precision == "fp16" and not on_gpu:
        raise InputError("--precision fp16: expected a GPU, found none; on a CPU use bf16 or fp32")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=str(Path(folder)),
            max_steps=plan.steps,
            per_device_train_batch_size=plan.batch_size,
            per_device_eval_batch_size=2 * plan.batch_size,
            gradient_accumulation_steps=plan.accumulation,
            learning_rate=plan.lr,
            warmup_steps=plan.warmup,
            lr_scheduler_type="linear",
            max_grad_norm=0.0,  # the optimizer clips by what it trains, if it is asked to
            bf16=plan.precision == "bf16",
            fp16=plan.precision == "fp16",
            use_cpu=not on_gpu,
            seed=plan.seed,
            logging_steps=max(1, plan.steps // 50),
            eval_strategy="steps",
            eval_steps=-(-plan.steps // plan.evaluations),
            save_strategy="no",
            report_to="none",
            disable_tqdm=False,  # by default quiet logging turns the bar into printed lines
            dataloader_pin_memory=on_gpu,
            label_names=["labels"],
        )
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # or the Trainer would take every GPU, and a batch for each
        times, visits = Times(), Visits(after_step)
        trainer = visits.trainer = Undisturbed(
            model,
            arguments,
            train_dataset=training,
            eval_dataset=evaluation,
            data_collator=collator,
            optimizers=(optimizer, None),
            compute_metrics=lambda given: measure.compute(given.predictions, given.label_ids),
            preprocess_logits_for_metrics=measure.reduce,
            callbacks=[times, visits],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar())
        before = _evaluate(trainer)
        before_tests = {name: _predict(trainer, rows) for name, rows in (tests or {}).items()}
        trainer.state.log_history.clear()
        with stopwatch() as ranges:
            trainer.train()
        last = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), None)
        after = _metrics(last) if last and last["step"] == plan.steps else _evaluate(trainer)
        if not math.isfinite(after["loss"]):
            raise RuntimeError("the loss is not finite after training; nothing was written (a lower --lr may help)")
        both = {name: (before_tests[name], _predict(trainer, rows)) for name, rows in (tests or {}).items()}
        log = trainer.state.log_history
        return Trained(before, after, log, times.forward_backward, times.optimizer, dict(ranges), both)


def _predict(trainer: Any, rows: Any) -> dict[str, float]:
    """Unlike `evaluate`, this leaves the Trainer's log alone, and what it is about to do."""
    return _metrics(trainer.predict(rows, metric_key_prefix="eval").metrics)


def _evaluate(trainer: Trainer) -> dict[str, float]:
    return _metrics(trainer.evaluate())


def _metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    speed = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    found = {key.removeprefix(METRIC): value for key, value in logged.items() if key.startswith(METRIC)}
    return {key: float(value) for key, value in found.items() if key not in speed}
