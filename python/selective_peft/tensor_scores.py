"""Scores that are there before training: per tensor, or the difference to a tuned model; see `scores.TensorScore`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from selective_peft.scores import Named


@dataclass(frozen=True)
class PerTensor:
    """Scores that are there already, such as `fisher_scores(...)`. Needs names of parameters, but no gradients.

    Attributes:
        scores: parameter name -> scores of the parameter's shape.
    """

    scores: Mapping[str, Tensor]
    needs_grad = False

    def __call__(self, name: str, param: Tensor, grad: Tensor | None) -> Tensor:
        """See `TensorScore`."""
        return self.scores[name].to(param.device)

    def describe(self) -> str:
        """See `KernelScore`."""
        return "per tensor"

    def check_params(self, named: Named) -> None:
        """Raises ValueError for a parameter without scores of its shape."""
        check_covered("scores", self.scores, named)


@dataclass(frozen=True)
class Difference:
    """|theta_tuned - theta|, the criterion of Diff Pruning (Guo et al. 2021). Needs no gradients.

    Attributes:
        tuned: parameter name -> tuned values, say a state dict; needs names of parameters.
        warmup_steps: or a number of dense steps that the optimizer takes first; then all selective parameters get their
            first values back. On a GPU each of these steps waits to know that its gradients are finite.

    Raises:
        ValueError: both or none of the two; warmup_steps < 1.
    """

    tuned: Mapping[str, Tensor] | None = None
    warmup_steps: int | None = None
    needs_grad = False

    def __post_init__(self) -> None:
        if (self.tuned is None) == (self.warmup_steps is None):
            given = "none" if self.tuned is None else "both"
            raise ValueError(f"method_kwargs: expected either tuned or warmup_steps for 'diff', got {given}")
        whole = isinstance(self.warmup_steps, int) and not isinstance(self.warmup_steps, bool)
        if self.warmup_steps is not None and (not whole or self.warmup_steps < 1):
            raise ValueError(f"warmup_steps: expected an integer >= 1, got {self.warmup_steps!r}")

    def __call__(self, name: str, param: Tensor, grad: Tensor | None) -> Tensor:
        """See `TensorScore`; only with `tuned`."""
        assert self.tuned is not None
        return difference(param, self.tuned[name].to(param.device))

    def describe(self) -> str:
        """See `KernelScore`."""
        return "difference to a tuned model" if self.tuned is not None else f"difference(warmup={self.warmup_steps})"

    def check_params(self, named: Named) -> None:
        """Raises ValueError for a parameter without tuned values of its shape."""
        if self.tuned is not None:
            check_covered("tuned", self.tuned, named)


@dataclass(frozen=True)
class Spent:
    """What is left of a score that has served: its line for checkpoints."""

    line: str

    def __call__(self, name: str, param: Tensor, grad: Tensor | None) -> Tensor:
        """Never needed: the whole budget is selected."""
        raise AssertionError("the whole budget is selected")

    def describe(self) -> str:
        """See `KernelScore`."""
        return self.line


def difference(before: Tensor, after: Tensor) -> Tensor:
    """|after - before| of each scalar, in float32."""
    return (after.float() - before.float()).abs()


def check_covered(argument: str, tensors: Mapping[str, Tensor], named: Named) -> None:
    """Raises ValueError unless there is a tensor of the right shape for each parameter that requires a gradient."""
    for name, param in named:
        if not param.requires_grad:
            continue
        if name not in tensors:
            some = ", ".join(map(repr, list(tensors)[:5])) + (", ..." if len(tensors) > 5 else "")
            raise ValueError(
                f"{argument}: expected a tensor for each selective parameter by name, got none for {name!r} (there "
                f"are {len(tensors)}: {some})"
            )
        if tensors[name].shape != param.shape:
            raise ValueError(
                f"{argument}: expected shape {tuple(param.shape)} for {name!r}, got {tuple(tensors[name].shape)}"
            )
