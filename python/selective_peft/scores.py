"""Scores: what makes a scalar worth training.

A score of the compiled kernels has `kernel_score()`. Anything else that can be called with (name, param, grad) and
returns one float32 score per scalar is a score, too: exact top-k all the same, but each tensor's scores are written to
memory and read again (see `TensorScore`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from selective_kernels import Score
from selective_kernels.checks import check_score
from selective_peft.listing import what_is_there

Named = Sequence[tuple[str, Tensor]]


class KernelScore(Protocol):
    """A score that the kernels compute while they read parameters and gradients."""

    def kernel_score(self) -> Score:
        """The score in the form that the kernels take."""

    def describe(self) -> str:
        """A line that tells two scores apart, stored in checkpoints."""


class TensorScore(Protocol):
    """A score of one's own: any callable of this form, tensor by tensor, without gradient tracking.

    It may have `needs_grad = False` (then tensors without a gradient are scored, too, with grad None), `describe()` (a
    line for checkpoints) and `check_params(named)`, which raises for parameters that it cannot score.
    """

    def __call__(self, name: str, param: Tensor, grad: Tensor | None) -> Tensor:
        """One score per scalar, of the parameter's shape; the highest are selected, of those that are finite and > 0 as
        float32, to which other types are rounded.

        Args:
            name: the parameter's name, or its place in the optimizer.
            param: float32, bfloat16 or float16; not to be changed.
            grad: its gradient.
        """


AnyScore = KernelScore | TensorScore


@dataclass(frozen=True)
class D3:
    """|gradient| / (|theta| + eps)^exp, the score of ID3 (paper Eq. 1).

    Attributes:
        exp: any finite number. 0 ranks by the gradient alone, large values by smallest magnitude.
        eps: > 0. Together with `exp` it says how much a small weight counts.

    Raises:
        ValueError: exp is not finite, eps is not > 0, or eps^exp is not a normal float32.
    """

    exp: float = 2.0
    eps: float = 1.0

    def __post_init__(self) -> None:
        check_score(self.kernel_score())

    def kernel_score(self) -> Score:
        """See `KernelScore`."""
        return Score(float(self.exp), float(self.eps))

    def describe(self) -> str:
        """See `KernelScore`."""
        return f"d3(exp={float(self.exp)!r}, eps={float(self.eps)!r})"


@dataclass(frozen=True)
class Snip:
    """|gradient theta|, the score of SNIP (Lee et al. 2019) and of SparseAdapter (He et al. 2022)."""

    def kernel_score(self) -> Score:
        """See `KernelScore`."""
        return Score(family="product")

    def describe(self) -> str:
        """See `KernelScore`."""
        return "snip"


@dataclass(frozen=True)
class SmallestMagnitude:
    """Smallest |theta| first, the score of PaFi (Liao et al. 2023). Needs no gradients."""

    def kernel_score(self) -> Score:
        """See `KernelScore`."""
        return Score(family="magnitude")

    def describe(self) -> str:
        """See `KernelScore`."""
        return "smallest magnitude"


@dataclass(frozen=True)
class Random:
    """A hash of seed, tensor and offset (R-Mask): the same scalars on every machine. Needs no gradients.

    Attributes:
        seed: an integer in [0, 2^64).

    Raises:
        TypeError: the seed is no integer.
        ValueError: it is out of range.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not hasattr(self.seed, "__index__"):
            raise TypeError(f"seed: expected an integer, got {self.seed!r}")
        object.__setattr__(self, "seed", operator.index(self.seed))  # numpy's integers, too
        check_score(self.kernel_score())

    def kernel_score(self) -> Score:
        """See `KernelScore`."""
        return Score(family="random", seed=self.seed)

    def describe(self) -> str:
        """See `KernelScore`."""
        return f"random(seed={self.seed})"


@dataclass(frozen=True)
class Biases:
    """All biases and nothing else, without a budget (BitFit, Ben Zaken et al. 2022). Needs names of parameters."""

    def kernel_score(self) -> Score:
        """See `KernelScore`: all biases are taken, so a score that is above zero everywhere and needs no gradients."""
        return Score(family="random")

    def describe(self) -> str:
        """See `KernelScore`."""
        return "biases"

    def only(self, name: str) -> bool:
        """Whether a parameter is a bias: "bias", "q_bias", "in_proj_bias", "bias_ih_l0"."""
        last = name.rpartition(".")[2]
        return last == "bias" or last.endswith("_bias") or last.startswith("bias_")

    def check_params(self, named: Named) -> None:
        """Raises ValueError, listing what is there, if no parameter is a bias."""
        if not any(self.only(name) and param.requires_grad for name, param in named):
            raise ValueError(
                f"method: expected named parameters with trainable biases for 'bitfit', got {what_is_there(named)}"
            )


def check_any_score(score: Any) -> None:
    """Raises TypeError for what is neither a score of the kernels nor a callable."""
    if isinstance(score, type) or not (hasattr(score, "kernel_score") or callable(score)):
        raise TypeError(
            f"score: expected a score such as D3(exp=2.0, eps=1.0), or a callable(name, param, grad) that returns "
            f"scores, got {score!r}"
        )


def describe_score(score: AnyScore) -> str:
    """The score's own line, else its name: what a checkpoint must agree on."""
    if hasattr(score, "describe"):
        return str(score.describe())
    return f"own: {getattr(score, '__qualname__', type(score).__qualname__)}"


def kernel_form(score: AnyScore) -> Score | None:
    """The score as the kernels take it; None for a score of one's own."""
    return score.kernel_score() if hasattr(score, "kernel_score") else None


def needs_grad(score: AnyScore) -> bool:
    """Whether a tensor without a gradient cannot be scored."""
    kernel_score = kernel_form(score)
    return bool(getattr(score, "needs_grad", True)) if kernel_score is None else kernel_score.needs_grad


def evaluate(score: TensorScore, name: str, param: Tensor, grad: Tensor | None) -> Tensor:
    """A tensor's scores by somebody's own score, float32.

    Raises:
        TypeError: no tensor comes back.
        ValueError: one of another shape or device.
    """
    keys = score(name, param.detach(), grad)
    if not isinstance(keys, Tensor):
        raise TypeError(f"score: expected a tensor of scores for {name!r}, got {type(keys).__name__}")
    if keys.shape != param.shape or keys.device != param.device:
        raise ValueError(
            f"score: expected scores of shape {tuple(param.shape)} on {param.device} for {name!r}, got "
            f"{tuple(keys.shape)} on {keys.device}"
        )
    return keys.detach().to(torch.float32)
