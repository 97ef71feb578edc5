"""The D3 score of one scalar, |g| / (|theta| + eps)^exp, and its plain PyTorch form (paper Eq. 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Score(NamedTuple):
    """Exponent and eps of the D3 score; eps is rounded to float32 before use."""

    exponent: float
    eps: float


def score_ref(grad: Tensor, param: Tensor, score: Score) -> Tensor:
    """Scores of all entries of a tensor in float32, each operation correctly rounded.

    Args:
        grad: any shape, float32, bfloat16 or float16.
        param: same shape and dtype.
        score: exponent and eps.

    Returns:
        float32, same shape. NaN and inf come out where inputs have them; they are not selectable.
    """
    magnitude = grad.detach().float().abs()
    eps = torch.tensor(score.eps, dtype=torch.float32, device=param.device)
    denominator = param.detach().float().abs() + eps
    if score.exponent == 0.0:
        return magnitude
    if score.exponent == 0.5:
        return magnitude / denominator.double().sqrt().float()  # torch's float32 sqrt is off by a bit at times
    if score.exponent == 1.0:
        return magnitude / denominator
    if score.exponent == 2.0:
        return magnitude / (denominator * denominator)
    return magnitude / denominator.double().pow(score.exponent).float()
