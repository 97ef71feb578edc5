"""Scores: what makes a scalar worth training."""

from __future__ import annotations

from dataclasses import dataclass

from selective_kernels import Score
from selective_kernels.checks import check_score


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
        """The score in the form that the kernels take."""
        return Score(float(self.exp), float(self.eps))

    def describe(self) -> str:
        """A line that tells two scores apart, stored in checkpoints."""
        return f"d3(exp={float(self.exp)!r}, eps={float(self.eps)!r})"
