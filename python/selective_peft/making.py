"""From the options of a run to its optimizer: which method, on which parameters, with what budget."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from selective_peft import SelectiveAdamW
from selective_peft.encoding import Rows
from selective_peft.errors import InputError, first_line
from selective_peft.fisher import fisher_scores
from selective_peft.groups import selective_param_groups
from selective_peft.loading import Kind, Loaded, load
from selective_peft.methods import METHODS
from selective_peft.options import BUDGETED, D3_METHODS, METHOD_OPTIONS, settle

Collator = Callable[[list[Any]], dict[str, Any]]


def settle_method(options: argparse.Namespace) -> None:
    """Sets the defaults of what only some methods have.

    Raises:
        InputError: an option of another method.
    """
    settle(options, "method", METHOD_OPTIONS)


def settle_warmup(options: argparse.Namespace, steps: int) -> None:
    """Sets the default of --diff-warmup, a tenth of the steps.

    Raises:
        InputError: no steps are left after it.
    """
    if options.method == "diff" and options.diff_tuned is None:
        if options.diff_warmup is None:
            options.diff_warmup = max(1, round(0.1 * steps))
        if options.diff_warmup >= steps:
            raise InputError(f"--diff-warmup {options.diff_warmup}: expected fewer than the {steps} steps of the run")


def groups_of(loaded: Loaded, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Parameter groups: a new head, --train-fully and all of method full is trained whole, --exclude is not trained.

    Raises:
        InputError: a pattern that fits nothing, or nothing is left to select from.
    """
    try:
        groups = selective_param_groups(
            loaded.model,
            train_fully=[*sorted(loaded.new), *options.train_fully],
            exclude=options.exclude,
            weight_decay=options.weight_decay,
        )
    except ValueError as error:
        message = str(error)
        if message.startswith("exclude: expected no parameter that"):
            message += " (the new head is always trained whole)"
        message = message.replace("that train_fully names", "that --train-fully names")
        for argument in ("train_fully", "exclude"):
            message = message.replace(f"{argument}:", f"--{argument.replace('_', '-')}:")
        raise InputError(message) from error
    for group in groups:
        group["selective"] = group["selective"] and not METHODS[options.method].whole
    used = {id(param) for group in groups for _, param in group["params"]}
    for param in loaded.model.parameters():
        param.requires_grad_(param.requires_grad and id(param) in used)  # no gradients for what is excluded
    return groups


def whole_names(groups: list[dict[str, Any]]) -> frozenset[str]:
    """Names of the parameters that are trained whole."""
    return frozenset(name for group in groups if not group["selective"] for name, _ in group["params"])


def first_values(groups: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, torch.Tensor] | None:
    """Copies of what is trained, for a method that may change scalars and drop them again; else None."""
    if METHODS[options.method].strategy != "repeat":
        return None
    return {name: param.detach().clone() for group in groups for name, param in group["params"]}


def fish(loaded: Loaded, rows: Rows, collator: Collator, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Fisher scores over rows drawn from the training part.

    Raises:
        InputError: the task has no classes per row, which --fish-type expected needs.
        RuntimeError: a gradient is not finite.
    """
    loader: Any = torch.utils.data.DataLoader(
        rows,  # type: ignore[arg-type]  # a list is one
        batch_size=options.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(options.seed),
        collate_fn=collator,
    )
    try:
        return fisher_scores(loaded.model, loader, min(options.fish_samples, len(rows)), options.fish_type)
    except ValueError as error:
        raise InputError(f"--method fish: {first_line(error)}") from error
    except FloatingPointError as error:
        raise RuntimeError(first_line(error)) from error


def tuned(options: argparse.Namespace, classes: list[str] | None, kind: Kind) -> dict[str, torch.Tensor]:
    """The values of the model that --diff-tuned names.

    Raises:
        InputError: it does not load, or the run is not on the model's own weights.
    """
    if options.base != "full":
        raise InputError(f"--diff-tuned {options.diff_tuned}: expected --base full with it, got {options.base}")
    try:
        model = load(options.diff_tuned, options.seed, classes, kind).model
    except InputError as error:
        raise InputError(str(error).replace("--model", "--diff-tuned", 1)) from error
    return {name: param.detach() for name, param in model.named_parameters()}


def method_kwargs(options: argparse.Namespace, tensors: dict[str, torch.Tensor] | None) -> dict[str, Any]:
    """What the method is told besides its name."""
    if options.method in D3_METHODS:
        return {"exp": options.score_exp, "eps": options.score_eps}
    return {
        "random": {"seed": options.seed},
        "fish": {"scores": tensors},
        "diff": {"warmup_steps": options.diff_warmup} if tensors is None else {"tuned": tensors},
    }.get(options.method, {})


def make_optimizer(
    groups: list[dict[str, Any]],
    options: argparse.Namespace,
    steps: int,
    tensors: dict[str, torch.Tensor] | None = None,
) -> SelectiveAdamW:
    """The optimizer that the options describe; `tensors` are the Fisher scores or the tuned values.

    Raises:
        InputError: an impossible budget or another argument that the optimizer refuses.
    """
    spends = {"budget": options.budget, "scope": options.scope} if options.method in BUDGETED else {}
    try:
        return SelectiveAdamW(
            groups,
            lr=options.lr,
            weight_decay=options.weight_decay,
            total_steps=steps,
            method=options.method,
            method_kwargs=method_kwargs(options, tensors),
            schedule=options.schedule or "uniform",  # None where it has no effect
            select_every=options.select_every or 1,
            bias_correction=options.bias_correction,
            max_grad_norm=options.max_grad_norm,
            **spends,
        )
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
