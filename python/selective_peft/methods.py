"""The selective methods of the paper by name: a score and a strategy each (paper, Fig. 2 and Sec. 4)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from selective_peft.scores import D3, AnyScore, Biases, Random, SmallestMagnitude, Snip
from selective_peft.tensor_scores import Difference, PerTensor


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        line: what it does.
        score: makes the score from the method's own arguments.
        strategy: "increment", "static" or "repeat"; see `SelectiveAdamW`.
        budget: whether it takes a budget.
        whole: trains everything: no score is used.
    """

    line: str
    score: Callable[..., AnyScore]
    strategy: str
    budget: bool = True
    whole: bool = False

    def arguments(self) -> list[str]:
        """Names of what `method_kwargs` may hold."""
        return list(inspect.signature(self.score).parameters)


def _gradient() -> AnyScore:
    return D3(exp=0.0)


def _everything() -> AnyScore:
    return D3()  # not used


def _fish(scores: Mapping[str, Tensor]) -> AnyScore:
    return PerTensor(scores)


METHODS: dict[str, Method] = {
    "id3": Method("D3 score, unmasked step by step (the paper's method)", D3, "increment"),
    "d3-static": Method("D3 score, all of the budget in the first step", D3, "static"),
    "d3-repeat": Method("D3 score, a fresh set in each step; a baseline with dense state, slow", D3, "repeat"),
    "gradient": Method("largest |gradient|, unmasked step by step", _gradient, "increment"),
    "snip": Method("largest |gradient theta| in the first step (SNIP, SparseAdapter)", Snip, "static"),
    "pafi": Method("smallest |theta|, all of the budget in the first step (PaFi)", SmallestMagnitude, "static"),
    "pafi-increment": Method("smallest |theta|, unmasked step by step", SmallestMagnitude, "increment"),
    "fish": Method("largest Fisher information, computed before training (FISH mask)", _fish, "static"),
    "diff": Method("largest change in a tuned model, or in a dense warm-up (Diff Pruning)", Difference, "static"),
    "random": Method("random scalars by a seed (R-Mask)", Random, "static"),
    "bitfit": Method("all biases; no budget (BitFit)", Biases, "static", budget=False),
    "full": Method("everything, with dense state; no budget", _everything, "static", budget=False, whole=True),
}


def methods() -> dict[str, str]:
    """The names that `method=` takes, each with one line about it."""
    return {name: method.line for name, method in METHODS.items()}


@dataclass(frozen=True)
class Choice:
    """A score and a strategy; with `budget` False there is no budget, with `whole` everything is trained."""

    score: AnyScore
    strategy: str
    budget: bool = True
    whole: bool = False


def choose(
    method: str | None, method_kwargs: Mapping[str, Any] | None, score: AnyScore | None, strategy: str | None
) -> Choice:
    """What an optimizer's four arguments ask for; D3 and "increment" without any of them.

    Raises:
        ValueError: an unknown method, a score or strategy beside a method, or arguments that the method does not take.
    """
    if method is None:
        if method_kwargs is not None:
            raise ValueError(f"method_kwargs: expected None without a method, got {dict(method_kwargs)!r}")
        return Choice(D3() if score is None else score, "increment" if strategy is None else strategy)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method: expected one of {list(METHODS)}, got {method!r}")
    for name, value in (("score", score), ("strategy", strategy)):
        if value is not None:
            raise ValueError(f"{name}: expected None with method={method!r}, which stands for it, got {value!r}")
    chosen = METHODS[method]
    return Choice(_make_score(method, dict(method_kwargs or {})), chosen.strategy, chosen.budget, chosen.whole)


def _make_score(name: str, given: Mapping[str, Any]) -> AnyScore:
    known = METHODS[name].arguments()
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"method_kwargs: expected arguments among {known} for method={name!r}, got {unknown}")
    make = METHODS[name].score
    required = [each for each, it in inspect.signature(make).parameters.items() if it.default is it.empty]
    missing = [each for each in required if each not in given]
    if missing:
        raise ValueError(f"method_kwargs: expected the arguments {missing} for method={name!r}, which are missing")
    return make(**given)
