"""Checks of the optimizers' arguments. Each message names the argument, what was expected and what was given."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.checks import check_param
from selective_peft.budgets import check_budget
from selective_peft.horizon import LATER, whole_number
from selective_peft.methods import choose
from selective_peft.schedules import Schedule, check_schedule, schedule_name
from selective_peft.scores import AnyScore, check_any_score, describe_score

STRATEGIES = ("increment", "static", "repeat")
SCOPES = ("global", "tensor")
BIAS_CORRECTIONS = ("global", "per_entry")
NONFINITE = ("skip", "raise")


@dataclass(frozen=True)
class Settings:
    """What all selective optimizers share; see `SelectiveAdamW` for the meaning.

    Attributes:
        budget: None if the method has none.
        total_steps: None if it is said later.
        score, strategy: as given, or the method's.
        whole: everything is trained, nothing is selected.
        method: its name; "custom" for another score or strategy than the default ones.
    """

    budget: int | float | None
    total_steps: int | None
    score: AnyScore
    strategy: str
    scope: str
    schedule: Schedule
    select_every: int
    bias_correction: str
    max_grad_norm: float | None
    nonfinite: str
    backend: str
    whole: bool
    method: str = "custom"

    def describe(self) -> dict[str, int | float | str | None]:
        """What a checkpoint must agree on to be continued, but for the number of steps."""
        return {
            "budget": self.budget,
            "score": "none" if self.whole else describe_score(self.score),
            "strategy": self.strategy,
            "scope": self.scope,
            "schedule_name": schedule_name(self.schedule),
            "select_every": self.select_every,
            "bias_correction": self.bias_correction,
        }

    @property
    def warmup_steps(self) -> int:
        """Dense steps before the first selection."""
        return getattr(self.score, "warmup_steps", None) or 0

    @property
    def repeats(self) -> bool:
        """Whether each step has a set of its own."""
        return self.strategy == "repeat"


def make_settings(
    *,
    budget: int | float | None,
    total_steps: int | str | None,
    method: str | None,
    method_kwargs: Mapping[str, Any] | None,
    score: AnyScore | None,
    strategy: str | None,
    scope: str,
    schedule: Schedule,
    select_every: int,
    bias_correction: str,
    max_grad_norm: float | None,
    nonfinite: str,
    backend: str,
) -> Settings:
    """Checked settings of an optimizer's arguments.

    Raises:
        TypeError, ValueError: an argument is out of range, or contradicts another one.
    """
    choice = choose(method, method_kwargs, score, strategy)
    check_any_score(choice.score)
    if choice.budget:
        check_budget(budget)
    elif budget is not None:
        raise ValueError(f"budget: expected None with method={method!r}, which takes no budget, got {budget}")
    if total_steps in (None, LATER) and not choice.budget:
        total_steps = 1
    steps = None if total_steps == LATER else whole_number("total_steps", total_steps)
    whole_number("select_every", select_every)
    _one_of("strategy", choice.strategy, STRATEGIES)
    _one_of("scope", scope, SCOPES)
    check_schedule(schedule)
    _one_of("bias_correction", bias_correction, BIAS_CORRECTIONS)
    _one_of("nonfinite", nonfinite, NONFINITE)
    _one_of("backend", backend, ("auto", *dispatch.BACKENDS))
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm: expected None or a number > 0, got {max_grad_norm}")
    if max_grad_norm is not None and choice.whole:
        raise ValueError(
            f"max_grad_norm: expected None with method={method!r}, which selects nothing to take the norm over "
            f"(torch.nn.utils.clip_grad_norm_ does it), got {max_grad_norm}"
        )
    settings = Settings(
        budget,
        steps,
        choice.score,
        choice.strategy,
        scope,
        schedule,
        select_every,
        bias_correction,
        max_grad_norm,
        nonfinite,
        backend,
        choice.whole,
        method or ("id3" if score is None and strategy is None else "custom"),
    )
    _check_repeat(settings)
    return settings


def _check_repeat(settings: Settings) -> None:
    if settings.warmup_steps and settings.strategy != "static":
        raise ValueError(f"strategy: expected 'static' for a score with warmup_steps, got {settings.strategy!r}")
    if not settings.repeats:
        return
    if settings.backend not in ("auto", "reference"):
        raise ValueError(
            f"backend: expected 'auto' or 'reference' for strategy 'repeat', which is a baseline with dense state, got "
            f"{settings.backend!r}"
        )
    if settings.bias_correction != "global" or settings.scope != "global":
        raise ValueError(
            f"scope, bias_correction: expected 'global' for both with a fresh set in each step ('d3-repeat'), got "
            f"{settings.scope!r} and {settings.bias_correction!r}"
        )
    warnings.warn("strategy 'repeat' is a baseline: it keeps dense optimizer state, in plain PyTorch", stacklevel=5)


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {sorted(allowed)}, got {value!r}")


def refuse_unsupported(options: Mapping[str, Any]) -> None:
    """Raises for torch options that change the update and are not supported here (C12)."""
    for name, value in options.items():
        if value:
            raise ValueError(f"{name}: expected False (selective optimizers do not support it), got {value!r}")


def check_non_negative(name: str, value: float | Tensor) -> None:
    """Raises ValueError for a negative number or NaN."""
    if not float(value) >= 0.0:
        raise ValueError(f"{name}: expected a number >= 0, got {value}")


def check_betas(betas: tuple[float, float]) -> None:
    """Raises ValueError unless both are in [0, 1)."""
    if len(betas) != 2 or not all(0.0 <= float(beta) < 1.0 for beta in betas):
        raise ValueError(f"betas: expected two numbers in [0, 1), got {betas}")


def listed(param_group: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a parameter group in which "params" is a list, whatever iterable it was.

    Raises:
        TypeError: not a dict, or "params" is not an ordered iterable.
        ValueError: there is no "params".
    """
    if not isinstance(param_group, dict):
        raise TypeError(f"param_group: expected a dict, got {type(param_group).__name__}")
    if "params" not in param_group:
        raise ValueError(f"param_group: expected the item 'params', got {sorted(param_group)}")
    params = param_group["params"]
    if isinstance(params, (set, frozenset)) or not isinstance(params, Iterable):
        raise TypeError(f"params: expected an ordered iterable of parameters, got {type(params).__name__}")
    return {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}


def check_group_params(group: Mapping[str, Any], seen: Collection[int], label: str) -> None:
    """Checks a new parameter group: no parameter twice, and tensors that the kernels can address.

    Args:
        group: with "params" as a list of parameters or of pairs (name, parameter).
        seen: ids of the parameters of earlier groups.
        label: how to name an unnamed parameter.
    """
    if not isinstance(group["selective"], bool):
        raise TypeError(f"selective: expected True or False, got {group['selective']!r}")
    mine: set[int] = set()
    for i, item in enumerate(group["params"]):
        name, param = item if isinstance(item, tuple) and len(item) == 2 else (f"{label}[{i}]", item)
        if id(param) in mine or id(param) in seen:
            raise ValueError(f"params: expected each parameter once, got {name} twice")
        mine.add(id(param))
        if group["selective"]:
            check_param(param, str(name))
