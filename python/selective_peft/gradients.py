"""What a step does about inf and NaN in gradients (C9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from selective_kernels.checks import check_grad_form


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


def dense_grads(groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """The gradients of the groups with selective=False.

    Raises:
        TypeError, ValueError: a gradient of another dtype, layout, shape or device than its parameter.
    """
    found = [
        (name, param, param.grad)
        for number, group in enumerate(groups)
        if not group["selective"]
        for name, param in zip(param_names(group, number), group["params"], strict=True)
        if param.grad is not None
    ]
    for name, param, grad in found:
        check_grad_form(grad, param, name)
    return [grad for _, _, grad in found]
