"""What a step does about inf and NaN in gradients (C9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def check_dense_grads(params: Sequence[Tensor]) -> bool:
    """Whether the gradients of whole-trained parameters are finite.

    Raises:
        ValueError: a gradient is sparse.
    """
    for param in params:
        if param.grad is not None and param.grad.layout is not torch.strided:
            raise ValueError(f"gradient: expected a dense (strided) gradient, got layout {param.grad.layout}")
    return all(bool(torch.isfinite(param.grad).all()) for param in params if param.grad is not None)


def param_names(group: Mapping[str, Any], number: int) -> list[str]:
    """Names of a group's parameters: the given ones, or their place in the optimizer."""
    unnamed = [f"param_groups[{number}]['params'][{i}]" for i in range(len(group["params"]))]
    return list(group.get("param_names", unnamed))


def nonfinite_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the parameters whose gradient holds inf or NaN."""
    return [
        name
        for number, group in enumerate(groups)
        for name, param in zip(param_names(group, number), group["params"], strict=True)
        if param.grad is not None and not bool(torch.isfinite(param.grad).all())
    ]
