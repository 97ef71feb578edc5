"""Parameter groups by name: what is selected from, what is trained whole, what stays frozen, what decays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from selective_peft.listing import what_is_there
from selective_peft.naming import named_params, unwrapped

Named = Sequence[tuple[str, nn.Parameter]]
WILDCARDS = "*?["


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name fits a pattern.

    Args:
        name: as in `named_parameters()`.
        pattern: a shell pattern for the whole name, case-sensitive, "*" also matching dots. Without any of `*?[` it
            also fits every name that contains it as a run of whole dotted parts: "classifier" fits
            "model.classifier.weight", "LayerNorm.weight" and "bias" fit at any depth, "class" does not fit the first.
    """
    if fnmatchcase(name, pattern):
        return True
    return not any(sign in pattern for sign in WILDCARDS) and f".{pattern}." in f".{name}."


def selective_param_groups(
    model: nn.Module,
    train_fully: Iterable[str] = (),
    exclude: Iterable[str] = (),
    weight_decay: float = 0.0,
    no_decay: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Named parameter groups for a selective optimizer: at most two to select from, then at most two trained whole.

    Only parameters with `requires_grad` take part, a tied tensor once, under its first name. What is neither trained
    whole nor excluded is selected from; a budget given as a share is a share of that. Patterns: see `matches`.

    Args:
        model: the model; possibly wrapped or compiled, which leaves no trace in the names.
        train_fully: patterns of what is trained whole, outside the budget (a new head): groups with `selective=False`.
        exclude: patterns of what is in no group and so stays as it is. Backward still computes its gradients, and the
            optimizer's `zero_grad()` does not reach them: `requires_grad_(False)` on it saves time and memory as well.
        weight_decay: of all groups but those of `no_decay`.
        no_decay: patterns of what does not decay ("bias", "LayerNorm.weight").

    Returns:
        Groups with the items "params" (pairs of name and parameter in the model's order), "selective" and
        "weight_decay": first the selective ones, on each side first those that decay. Empty ones are left out.

    Raises:
        TypeError: patterns that are one string, or not strings.
        ValueError: a pattern fits nothing, a parameter is both trained whole and excluded, or nothing is left to
            select; the message lists what is there.
    """
    named = [(name, param) for name, param in named_params(model).items() if param.requires_grad]
    whole = _fitting(model, named, "train_fully", train_fully)
    left_out = _fitting(model, named, "exclude", exclude)
    flat = _fitting(model, named, "no_decay", no_decay)
    if both := sorted(whole & left_out):
        raise ValueError(
            f"exclude: expected no parameter that train_fully names as well, got {both[0]}"
            + (f" and {len(both) - 1:,} more" if len(both) > 1 else "")
        )
    if not any(param.numel() for name, param in named if name not in whole | left_out):
        raise ValueError(
            "model: expected parameters to select from, got none beyond train_fully "
            f"({len(whole):,} parameters) and exclude ({len(left_out):,}); there are: {what_is_there(named)}"
        )
    groups = []
    for selective in (True, False):
        side = [(name, param) for name, param in named if name not in left_out and (name in whole) != selective]
        for decay, fits in ((weight_decay, False), (0.0, True)):
            params = [(name, param) for name, param in side if (name in flat) == fits]
            if params:
                groups.append({"params": params, "selective": selective, "weight_decay": decay})
    return groups


def _fitting(model: nn.Module, named: Named, argument: str, patterns: Iterable[str]) -> set[str]:
    """Names that fit one of the patterns.

    Raises:
        TypeError, ValueError: not patterns, or one that fits nothing.
    """
    if isinstance(patterns, str):
        raise TypeError(f"{argument}: expected a list of patterns, got the string {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument}: expected patterns that are strings, got {pattern!r}")
        fitting = {name for name, _ in named if matches(name, pattern)}
        if not fitting:
            raise ValueError(
                f"{argument}: expected patterns that fit a parameter, got {pattern!r}, which fits none"
                f"{_near_miss(model, named, pattern)}; there are: {what_is_there(named)}"
            )
        found |= fitting
    return found


def _near_miss(model: nn.Module, named: Named, pattern: str) -> str:
    """Why a pattern fits none of the parameters that take part although it fits a name of the model."""
    first = {id(param): name for name, param in named}
    for name, param in unwrapped(model).named_parameters(remove_duplicate=False):
        if matches(name, pattern):
            if not param.requires_grad:
                return f" that requires a gradient ({name} does not)"
            return f" ({name} is tied to {first[id(param)]}, which is its name here)"
    return ""
