"""Groups with selective=False: torch's own dense update, on ordinary per-parameter state (C13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

FUSED_DEVICES = ("cpu", "cuda")
State = Mapping[Tensor, dict[str, Any]]


def _fused(params: Sequence[Tensor]) -> bool:
    return all(param.device.type in FUSED_DEVICES and param.is_floating_point() for param in params)


def _prepare(params: Sequence[Tensor], state: State, moments: Sequence[str]) -> None:
    for param in params:
        mine = state[param]
        if not mine:
            mine["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            mine["original"] = param.detach().clone()
            for name in moments:
                mine[name] = torch.zeros_like(param, memory_format=torch.preserve_format)


def dense_adam_(params: Sequence[Tensor], group: Mapping[str, Any], state: State, *, decoupled: bool) -> None:
    """torch's Adam (or AdamW, if `decoupled`) on parameters that have a gradient; keeps their first values."""
    _prepare(params, state, ("exp_avg", "exp_avg_sq"))
    beta1, beta2 = group["betas"]
    adam(
        list(params),
        [param.grad for param in params if param.grad is not None],
        [state[param]["exp_avg"] for param in params],
        [state[param]["exp_avg_sq"] for param in params],
        [],
        [state[param]["step"] for param in params],
        foreach=False,
        fused=_fused(params),
        decoupled_weight_decay=decoupled,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def dense_sgd_(params: Sequence[Tensor], group: Mapping[str, Any], state: State) -> None:
    """torch's SGD on parameters that have a gradient; keeps their first values."""
    _prepare(params, state, ())
    buffers = [state[param].get("momentum_buffer") for param in params]
    sgd(
        list(params),
        [param.grad for param in params if param.grad is not None],
        buffers,
        foreach=False,
        fused=_fused(params),
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=float(group["lr"]),
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=False,
    )
    for param, buffer in zip(params, buffers, strict=True):
        state[param]["step"] += 1
        if group["momentum"]:
            state[param]["momentum_buffer"] = buffer
