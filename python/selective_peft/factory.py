"""Selective optimizers for the Trainer of transformers, which makes its optimizer itself: from a factory and kwargs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from selective_peft.groups import selective_param_groups
from selective_peft.horizon import LATER
from selective_peft.methods import METHODS
from selective_peft.naming import unwrapped
from selective_peft.optim import SelectiveAdamW
from selective_peft.optimizer import SelectiveOptimizer
from selective_peft.wrapped import selective


@dataclass(frozen=True, repr=False)
class FromArguments:
    """What an optimizer takes from TrainingArguments, read when it is made: a search may have changed them by then."""

    arguments: TrainingArguments

    def options(self, optimizer: type[Optimizer]) -> dict[str, Any]:
        """Learning rate, and betas and eps of those that are like Adam."""
        found: dict[str, Any] = {"lr": self.arguments.learning_rate}
        if "betas" in _parameters(optimizer):
            found["betas"] = (self.arguments.adam_beta1, self.arguments.adam_beta2)
            found["eps"] = self.arguments.adam_epsilon
        return found

    def __repr__(self) -> str:
        mine = self.arguments
        return (
            f"FromArguments(lr={mine.learning_rate}, betas={(mine.adam_beta1, mine.adam_beta2)}, "
            f"eps={mine.adam_epsilon}, weight_decay={mine.weight_decay}, max_steps={mine.max_steps})"
        )


def _parameters(made_by: Any) -> set[str]:
    """Names of what it takes by name."""
    given = inspect.signature(made_by).parameters.values()
    return {each.name for each in given if each.kind is not each.VAR_KEYWORD}


class SelectiveFactory:
    """What the Trainer calls with a model, and with the keyword arguments that `selective_optimizer` gave."""

    def __call__(
        self,
        model: nn.Module,
        *,
        arguments: FromArguments,
        optimizer: type[Optimizer],
        train_fully: Sequence[str],
        exclude: Sequence[str],
        total_steps: int | None,
        **options: Any,
    ) -> SelectiveOptimizer:
        """The optimizer of a model; see `selective_optimizer`.

        Raises:
            TypeError, ValueError: as the optimizer and `selective_param_groups` do.
        """
        chosen = arguments.options(optimizer) | options
        decay = float(chosen.pop("weight_decay", arguments.arguments.weight_decay))
        if decay and "weight_decay" not in _parameters(optimizer):
            raise ValueError(f"weight_decay: expected 0 for {optimizer.__name__}, which has none, got {decay}")
        groups = decaying(model, selective_param_groups(model, train_fully, exclude), decay)
        method = METHODS.get(chosen.get("method") or "")
        for group in groups:
            group["selective"] = group["selective"] and not (method is not None and method.whole)
        steps = LATER if total_steps is None else total_steps
        if issubclass(optimizer, SelectiveOptimizer):
            made = cast(SelectiveOptimizer, cast(Any, optimizer)(groups, total_steps=steps, **chosen))
        else:
            made = selective(optimizer, groups, total_steps=steps, **chosen)
        if total_steps is None and arguments.arguments.max_steps > 0:
            made.set_total_steps(arguments.arguments.max_steps)
        return made


def decaying(model: nn.Module, groups: Iterable[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of named parameters, divided into what decays and what the Trainer spares: biases and norms."""
    bare = unwrapped(model)
    names = set(Trainer.get_decay_parameter_names(cast(Trainer, None), bare))  # it looks at the model only
    decays = {id(param) for name, param in bare.named_parameters() if name in names}
    divided = []
    for group in groups:
        for value, fits in ((weight_decay, True), (0.0, False)):
            params = [(name, param) for name, param in group["params"] if (id(param) in decays) == fits]
            if params:
                divided.append({**group, "params": params, "weight_decay": value})
    return divided


def selective_optimizer(
    args: TrainingArguments,
    *,
    optimizer: type[Optimizer] = SelectiveAdamW,
    budget: int | float | None = None,
    method: str | None = None,
    train_fully: Iterable[str] = (),
    exclude: Iterable[str] = (),
    total_steps: int | None = None,
    **options: Any,
) -> tuple[type[SelectiveFactory], dict[str, Any]]:
    """A selective optimizer for `Trainer(optimizer_cls_and_kwargs=...)`.

    Learning rate, betas, eps and weight decay come from the Trainer's arguments, as they are when training begins;
    names and groups from the model: biases and norms do not decay, as the Trainer itself has it.

    Args:
        args: the Trainer's.
        optimizer: SelectiveAdamW, SelectiveAdam or SelectiveSGD, or any element-wise class of torch.optim, which
            `selective` then wraps.
        budget, method: see `SelectiveAdamW`.
        train_fully, exclude: patterns of parameters that are trained whole or not at all; see `selective_param_groups`.
        total_steps: steps over which the budget is spent. Without, those of the run: `args.max_steps`, or what
            `SelectiveCallback` says, which knows how many steps the epochs make.
        options: further arguments of the optimizer, such as `select_every`; also `lr`, `betas`, `eps` and
            `weight_decay`, which then are not those of `args`.

    Returns:
        A factory and its keyword arguments.

    Raises:
        TypeError: something else than an optimizer's class, patterns that are one string, or an argument that the
            optimizer does not take.
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise TypeError(f"optimizer: expected a class of optimizers, got {optimizer!r}")
    known = _parameters(optimizer) | (set() if issubclass(optimizer, SelectiveOptimizer) else _parameters(selective))
    if unknown := sorted(set(options) - known | ({"params"} & set(options))):
        raise TypeError(f"{unknown[0]}: expected an argument of {optimizer.__name__}, got another one")
    for name, patterns in (("train_fully", train_fully), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise TypeError(f"{name}: expected a list of patterns, got the string {patterns!r}")
    kwargs = {
        "arguments": FromArguments(args),
        "optimizer": optimizer,
        "budget": budget,
        "method": method,
        "train_fully": list(train_fully),
        "exclude": list(exclude),
        "total_steps": total_steps,
        **options,
    }
    return SelectiveFactory, kwargs
