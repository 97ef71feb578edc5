"""`selective-peft train`: from a file of labelled texts to a folder of results."""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from selective_kernels import dispatch
from selective_peft import (
    SelectiveAdamW,
    SparseDelta,
    data,
    fitting,
    loading,
    making,
    metrics,
    recipe_data,
    recipe_options,
    recipe_tests,
    results,
    summary,
)
from selective_peft.bases import BASES, settle_base
from selective_peft.encoding import Rows
from selective_peft.errors import InputError
from selective_peft.files import Columns
from selective_peft.options import BASE_OPTIONS
from selective_peft.output import Output, check_output
from selective_peft.sizes import Sizes
from selective_peft.tasks import TASKS, Task


def read_parts(options: argparse.Namespace, task: Task) -> data.Parts:
    """Reads and splits what the options name.

    Raises:
        InputError: see `selective_peft.data`.
    """
    if options.text_pair_column is not None and not task.pairs:
        raise InputError(
            f"--text-pair-column: expected none with --task {options.task}, got {options.text_pair_column}"
        )
    if options.chosen is not None:
        return recipe_data.read_parts(options.chosen.content, options)
    if options.text_column is None:
        options.text_column = task.prompt
    columns = Columns(
        options.text_column, options.label_column, options.text_pair_column, options.group_column, task.words
    )
    ordered = loading.known_classes(options.model) if task.classes else []
    examples, classes = task.read(options.data, columns, None, ordered)
    if options.eval_data is not None and options.eval_data.exists() and options.eval_data.samefile(options.data):
        raise InputError(f"--eval-data {options.eval_data}: expected another file than --data")
    if options.eval_data is None:
        return data.Parts(
            *data.split(options.data, examples, options.eval_share, options.seed, task.stratified), classes
        )
    held_out, _ = task.read(options.eval_data, columns, classes, ())
    if examples.groups is not None and held_out.groups is not None:
        shared = set(examples.groups) & set(held_out.groups)
        if shared:
            raise InputError(
                f"{options.eval_data}: expected no group of {options.data}, found {len(shared)} of them, such as "
                f"{min(shared)!r}"
            )
    return data.Parts(examples, held_out, classes)


def number_of_steps(options: argparse.Namespace, rows: int) -> int:
    """Optimizer steps: as given, or as many as the epochs need."""
    if options.steps is not None:
        return int(options.steps)
    per_step: int = options.batch_size * options.accumulation
    epochs: float = options.epochs
    return max(1, round(epochs * -(-rows // per_step)))


def announce(console: Console, options: argparse.Namespace, parts: data.Parts, model: Any, steps: int) -> int:
    """Says what is about to happen; returns how many evaluation rows stand among the training rows, too."""
    if parts.left_out:
        console.print(f"Rows without any words, which are left out: {parts.left_out:,}", highlight=False)
    scalars = sum(param.numel() for param in model.parameters())
    console.print(
        f"{len(parts.training):,} rows to train, {len(parts.evaluation):,} to evaluate; {options.model}: {scalars:,} "
        f"scalars, {steps:,} steps of {options.batch_size * options.accumulation}, "
        f"kernels: {dispatch.resolve(next(model.parameters()).device.type)}.",
        highlight=False,
        markup=False,
    )
    leaked = parts.seen(parts.evaluation)
    if leaked:
        console.print(
            f"[yellow]Evaluation rows that stand among the training rows, too, word for word: {leaked:,}[/yellow]"
        )
    return leaked


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs; for `whole` and `first` see `results.trained_delta`."""

    task: Task
    parts: data.Parts
    measure: metrics.Measure
    written: recipe_tests.Written | None
    loaded: loading.Loaded
    rows: Rows
    held_out: Rows
    tests: dict[str, Rows]
    steps: int
    optimizer: SelectiveAdamW
    whole: frozenset[str]
    first: dict[str, torch.Tensor] | None
    leaked: int

    def delta(self, options: argparse.Namespace, more: Mapping[str, Any]) -> SparseDelta:
        """What training has changed so far; `more` and what the model is made with join its hyper-parameters."""
        given = {name: getattr(options, name) for name in ("task", "base", *BASE_OPTIONS, "seed")}
        made_with = {name: value for name, value in given.items() if value is not None}
        new = self.loaded.new if options.base == "full" else frozenset()  # else they may be in the checkpoint
        return results.trained_delta(
            self.loaded.model, self.optimizer, self.whole, new, self.first, {**made_with, **more}
        )


def prepare(options: argparse.Namespace, console: Console) -> Prepared:
    """Reads, loads and checks all that was given; completes the options.

    Raises:
        InputError: something cannot be used.
    """
    making.settle_method(options)
    settle_base(options)
    task = TASKS[options.task]
    scorer = recipe_tests.scorer(options.chosen)
    parts = read_parts(options, task)
    steps = number_of_steps(options, len(parts.training))
    making.settle_warmup(options, steps)
    written = None if scorer is None else recipe_tests.Written(scorer, parts.tests)
    loaded = loading.load(options.model, options.seed, parts.classes, task.kind)
    rows, held_out = (task.encode(part, loaded, options.max_length) for part in (parts.training, parts.evaluation))
    measured = {} if written else parts.tests
    tests = {name: task.encode(part, loaded, options.max_length) for name, part in measured.items()}
    measure = recipe_tests.measure(options.chosen, task)(parts.classes)
    loaded = BASES[options.base].apply(loaded, options, task.peft)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    groups = making.groups_of(loaded, options)
    leaked = announce(console, options, parts, loaded.model, steps)
    tensors = None
    if options.method == "fish":
        tensors = making.fish(loaded, rows, task.collator(loaded), options)
    elif options.diff_tuned is not None:
        tensors = making.tuned(options, parts.classes, task.kind)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer = making.make_optimizer(groups, options, steps, tensors)
    for warning in told:
        console.print(f"[yellow]{warning.message}[/yellow]", highlight=False)
    whole, first = making.whole_names(groups), making.first_values(groups, options)
    return Prepared(
        task, parts, measure, written, loaded, rows, held_out, tests, steps, optimizer, whole, first, leaked
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Reads, trains, writes the results, prints a table.

    Raises:
        InputError: something that was given cannot be used; nothing is written then.
    """
    began = time.perf_counter()
    options.output = Path(os.path.realpath(options.output))
    check_output(options.output)
    loading.quiet()
    for line in recipe_options.announce(options.chosen):
        console.print(line, highlight=False, markup=False)
    made = prepare(options, console)
    model, optimizer, measure = made.loaded.model, made.optimizer, made.measure
    plan = fitting.Plan(
        made.steps,
        options.batch_size,
        options.accumulation,
        options.lr,
        options.warmup,
        options.precision,
        options.seed,
        options.evaluations,
    )
    with Output(options.output) as output:
        sizes = Sizes(options.save_at or [], optimizer, partial(made.delta, options), output)
        collator = made.task.collator(made.loaded)
        if made.written is not None and options.test_before:
            made.written.run(made.loaded, made.task, options, recipe_tests.BEFORE)
        trained = fitting.train(model, optimizer, plan, made.rows, made.held_out, collator, measure, sizes, made.tests)
        if made.written is not None:
            made.written.run(made.loaded, made.task, options, recipe_tests.AFTER)
        labels = ([row["labels"] for row in rows] for rows in (made.rows, made.held_out))
        report = summary.report(
            options, model, optimizer, made.whole, trained, measure.constant and measure.constant(*labels)
        )
        report |= {
            "saved": summary.sizes(sizes.saved, sizes.shares),
            "seconds": time.perf_counter() - began,
            "classes": made.parts.classes,
            "evaluation_rows_seen_in_training": made.leaked,
            "steps": made.steps,
            **recipe_tests.report(options.chosen, made.parts, made.written, trained),
        }
        files = {
            "metrics.json": lambda path: results.write_json(path, report),
            "delta": made.delta(options, {}).save,
            "report.png": summary.picture(options, report, measure),
            **summary.analyses(options, optimizer),
            **BASES[options.base].files(made.loaded, options),
            **({} if made.written is None else {"answers.jsonl": made.written.save}),
        }
        for name, write in files.items():
            output.write(name, write)
        output.publish()
    console.print(summary.table(report, measure))
    if made.parts.tests:
        console.print(summary.tests(report, measure.names if made.written is None else made.written.scorer.names))
    for line in [*summary.unspent(optimizer), *sizes.missed()]:
        console.print(f"[yellow]{line}[/yellow]", highlight=False)
    written = ", ".join([*(size.folder for size in sizes.saved), *files])
    console.print(f"written: {os.path.relpath(options.output)}/ ({written})", highlight=False, markup=False)
