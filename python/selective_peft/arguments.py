"""Checks of the optimizers' arguments. Each message names the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.checks import check_param
from selective_peft.schedules import Schedule, check_schedule, schedule_name
from selective_peft.scores import D3

STRATEGIES = ("increment", "static")
BIAS_CORRECTIONS = ("global", "per_entry")
NONFINITE = ("skip", "raise")


@dataclass(frozen=True)
class Settings:
    """The keyword arguments that all selective optimizers share; see `SelectiveAdamW` for their meaning."""

    budget: int | float
    total_steps: int
    score: D3
    strategy: str
    schedule: Schedule
    select_every: int
    bias_correction: str
    max_grad_norm: float | None
    nonfinite: str
    backend: str

    def __post_init__(self) -> None:
        _whole("total_steps", self.total_steps)
        _whole("select_every", self.select_every)
        check_budget(self.budget)
        if not isinstance(self.score, D3):
            raise TypeError(f"score: expected a score such as D3(exp=2.0, eps=1.0), got {self.score!r}")
        _one_of("strategy", self.strategy, STRATEGIES)
        check_schedule(self.schedule)
        _one_of("bias_correction", self.bias_correction, BIAS_CORRECTIONS)
        _one_of("nonfinite", self.nonfinite, NONFINITE)
        _one_of("backend", self.backend, ("auto", *dispatch.BACKENDS))
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected None or a number > 0, got {self.max_grad_norm}")

    def describe(self) -> dict[str, int | float | str]:
        """What a checkpoint must agree on to be continued."""
        return {
            "budget": self.budget,
            "total_steps": self.total_steps,
            "score": self.score.describe(),
            "strategy": self.strategy,
            "schedule_name": schedule_name(self.schedule),
            "select_every": self.select_every,
            "bias_correction": self.bias_correction,
        }


def _whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {sorted(allowed)}, got {value!r}")


def check_budget(budget: object) -> None:
    """Raises TypeError or ValueError unless the budget is an integer >= 1 or a float in (0, 1)."""
    wanted = "expected an integer >= 1 (scalars) or a float in (0, 1) (share of the selective scalars)"
    if budget is None:
        raise TypeError(f"budget: {wanted}, got None")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"budget: {wanted}, got {type(budget).__name__}")
    if isinstance(budget, int) and budget < 1:
        raise ValueError(f"budget: {wanted}, got {budget}")
    if isinstance(budget, float) and not 0.0 < budget < 1.0:
        raise ValueError(f"budget: {wanted}, got {budget}")


def resolve_budget(budget: int | float, selective_scalars: int) -> int:
    """The budget in scalars: a share is rounded down.

    Raises:
        ValueError: more than there are, or a share that is less than one scalar.
    """
    resolved = budget if isinstance(budget, int) else int(budget * selective_scalars)
    if not 1 <= resolved <= selective_scalars:
        raise ValueError(
            f"budget: expected 1 to {selective_scalars} scalars (those of the selective parameters that require a "
            f"gradient), got {budget}" + ("" if isinstance(budget, int) else f" (= {resolved} scalars)")
        )
    return resolved


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
