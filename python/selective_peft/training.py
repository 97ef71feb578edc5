"""`selective-peft train`: from a file of labelled texts to a folder of results."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import selective_kernels
from selective_kernels import dispatch
from selective_peft import D3, SelectiveAdamW, data, hf, loading, metrics, results
from selective_peft.errors import InputError
from selective_peft.report import draw

STRATEGIES = {"id3": "increment", "d3-static": "static"}


@dataclass(frozen=True)
class Parts:
    """Training and evaluation examples; `classes` is None for regression."""

    training: data.Examples
    evaluation: data.Examples
    classes: list[str] | None


def read_parts(options: argparse.Namespace) -> Parts:
    """Reads and splits what the options name.

    Raises:
        InputError: see `selective_peft.data`.
    """
    columns = data.Columns(options.text_column, options.label_column, options.text_pair_column, options.group_column)
    is_class = options.task == "classification"
    classes: list[str] | None = None
    if is_class:
        examples, classes = data.read_examples(options.data, columns, ordered=loading.known_classes(options.model))
    else:
        examples = data.read_regression(options.data, columns)
    if options.eval_data is not None and options.eval_data.exists() and options.eval_data.samefile(options.data):
        raise InputError(f"--eval-data {options.eval_data}: expected another file than --data")
    if options.eval_data is None:
        return Parts(*data.split(options.data, examples, options.eval_share, options.seed, is_class), classes)
    if is_class:
        held_out, _ = data.read_examples(options.eval_data, columns, classes)
    else:
        held_out = data.read_regression(options.eval_data, columns)
    if examples.groups is not None and held_out.groups is not None:
        shared = set(examples.groups) & set(held_out.groups)
        if shared:
            raise InputError(
                f"{options.eval_data}: expected no group of {options.data}, found {len(shared)} of them, such as "
                f"{min(shared)!r}"
            )
    return Parts(examples, held_out, classes)


def make_optimizer(loaded: loading.Loaded, options: argparse.Namespace, steps: int) -> SelectiveAdamW:
    """The optimizer that the options describe.

    Raises:
        InputError: an impossible budget or another argument that the optimizer refuses.
    """
    try:
        return SelectiveAdamW(
            hf.groups_of(loaded),
            lr=options.lr,
            weight_decay=options.weight_decay,
            budget=options.budget,
            total_steps=steps,
            score=D3(options.score_exp, options.score_eps),
            strategy=STRATEGIES[options.method],
            schedule=options.schedule,
            select_every=options.select_every,
            bias_correction=options.bias_correction,
            max_grad_norm=options.max_grad_norm,
        )
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error


def number_of_steps(options: argparse.Namespace, rows: int) -> int:
    """Optimizer steps: as given, or as many as the epochs need."""
    if options.steps is not None:
        return int(options.steps)
    per_step: int = options.batch_size * options.accumulation
    epochs: float = options.epochs
    return max(1, round(epochs * -(-rows // per_step)))


def run(options: argparse.Namespace, console: Console) -> None:
    """Reads, trains, writes the results, prints a table.

    Raises:
        InputError: something that was given cannot be used; nothing is written then.
    """
    began = time.perf_counter()
    options.output = Path(os.path.realpath(options.output))
    results.check_output(options.output)
    loading.quiet()
    parts = read_parts(options)
    loaded = loading.load(options.model, options.seed, parts.classes)
    steps = number_of_steps(options, len(parts.training))
    optimizer = make_optimizer(loaded, options, steps)
    scalars = sum(param.numel() for param in loaded.model.parameters())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console.print(
        f"{len(parts.training):,} rows to train, {len(parts.evaluation):,} to evaluate; {options.model}: {scalars:,} "
        f"scalars, {steps:,} steps of {options.batch_size * options.accumulation}, "
        f"kernels: {dispatch.resolve(device)}.",
        highlight=False,
    )
    seen = set(parts.training.inputs())
    leaked = sum(each in seen for each in parts.evaluation.inputs())
    if leaked:
        console.print(
            f"[yellow]Evaluation rows that stand among the training rows, too, word for word: {leaked:,}[/yellow]"
        )
    recipe = hf.Recipe(
        steps,
        options.batch_size,
        options.accumulation,
        options.lr,
        options.warmup,
        options.precision,
        options.seed,
        options.max_length,
        options.evaluations,
    )
    is_class = parts.classes is not None
    measure = metrics.classification if is_class else metrics.regression
    trained = hf.train(loaded, optimizer, recipe, parts.training, parts.evaluation, measure)
    constant = metrics.baseline(parts.training.labels, parts.evaluation.labels, is_class)
    report = {
        "metrics": {"constant_answer": constant, "not_fine_tuned": trained.before, "fine_tuned": trained.after},
        "scalars": scalars,
        "selected": optimizer.num_selected,
        "trained_whole": sum(p.numel() for name, p in loaded.model.named_parameters() if name in loaded.new),
        "whole_parameters": sorted(loaded.new),
        "state_bytes": optimizer.state_nbytes(),
        "skipped_steps": optimizer.skipped_steps,
        "seconds_per_step": seconds_per_step(trained),
        "seconds": time.perf_counter() - began,
        "classes": parts.classes,
        "evaluation_rows_seen_in_training": leaked,
        "steps": steps,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in public(options).items()},
        "budget_by_module_and_layer": results.where(loaded.model, optimizer, loaded.new),
        "selected_per_step": optimizer.selected_per_step().tolist(),
        "history": trained.history,
        "versions": versions(),
    }
    write(options, report, loaded, optimizer, is_class)
    console.print(summary(report, is_class))
    shown = os.path.relpath(options.output)
    console.print(f"written: {shown}/ (metrics.json, selected.safetensors, report.png)", highlight=False)


def public(options: argparse.Namespace) -> dict[str, Any]:
    """The options without what argparse needs itself."""
    return {key: value for key, value in vars(options).items() if key != "command"}


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    return {
        "selective_kernels": selective_kernels.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def seconds_per_step(trained: hf.Trained) -> dict[str, float]:
    """Means over the steps; "selection" is everything in the optimizer that is no update."""
    optimizer = statistics.fmean(trained.optimizer)
    update = trained.ranges.get("update", 0.0) / len(trained.optimizer)
    return {
        "forward_backward": statistics.fmean(trained.forward_backward),
        "selection": optimizer - update,
        "update": update,
    }


def write(
    options: argparse.Namespace,
    report: dict[str, Any],
    loaded: loading.Loaded,
    optimizer: SelectiveAdamW,
    is_class: bool,
) -> None:
    """Writes the output folder, all of it or nothing."""
    values = results.selected_values(loaded.model, optimizer, loaded.new)
    about = {"base_model": str(options.model), "method": options.method, "selected": str(optimizer.num_selected)}
    metric = (metrics.CLASSIFICATION if is_class else metrics.REGRESSION)[0]
    picture = partial(
        draw,
        title=f"{Path(options.model).name or options.model} on {options.data.name}: {options.method}, "
        f"{optimizer.num_selected:,} of {report['scalars']:,} scalars",
        history=report["history"],
        metric=metric,
        before=report["metrics"]["not_fine_tuned"][metric],
        baseline=report["metrics"]["constant_answer"][metric],
        selected_per_step=report["selected_per_step"],
        where=report["budget_by_module_and_layer"],
    )
    results.write_folder(
        options.output,
        {
            "metrics.json": lambda path: results.write_json(path, report),
            "selected.safetensors": lambda path: results.write_values(path, values, about),
            "report.png": picture,
        },
    )


def summary(report: dict[str, Any], is_class: bool) -> Table:
    """The final table."""
    table = Table(show_header=True, header_style="bold")
    names = metrics.CLASSIFICATION if is_class else metrics.REGRESSION
    for heading in ("", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right" if heading else "left")
    for row, values in report["metrics"].items():
        table.add_row(row.replace("_", " "), *(f"{values[name]:.4f}" for name in names))
    table.add_section()
    blank = [""] * (len(names) - 1)
    whole = f" + {report['trained_whole']:,} whole" if report["trained_whole"] else ""
    share = 100 * report["selected"] / report["scalars"]
    table.add_row("scalars trained", f"{report['selected']:,} ({share:.2f} %){whole}", *blank)
    table.add_row("optimizer state", f"{report['state_bytes'] / 1e6:.2f} MB", *blank)
    if report["skipped_steps"]:
        table.add_row("[red]steps skipped: inf or NaN[/red]", f"{report['skipped_steps']:,}", *blank)
    table.add_section()
    seconds = report["seconds_per_step"]
    total = sum(seconds.values())
    for name, value in seconds.items():
        label = f"{name.replace('_', ' + ')}, ms per step"
        table.add_row(label, f"{1e3 * value:.2f} ({100 * value / total:.1f} %)", *blank)
    return table
