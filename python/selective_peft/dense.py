"""torch's own dense update of whole parameters, on ordinary per-parameter state (C13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from selective_kernels.hostcopy import moved

FUSED_DEVICES = ("cpu", "cuda")
ADAM_STATE = ("step", "original", "exp_avg", "exp_avg_sq")
SGD_STATE = ("step", "original")  # and momentum_buffer, if there is momentum
State = Mapping[Tensor, dict[str, Any]]


def _fused(params: Sequence[Tensor]) -> bool:
    return all(param.device.type in FUSED_DEVICES and param.is_floating_point() for param in params)


def _prepare(params: Sequence[Tensor], state: State, moments: Sequence[str]) -> None:
    for param in params:
        mine = state[param]
        if not mine:  # all of it is there, or nothing, if there is no memory
            made = {"step": torch.zeros((), dtype=torch.float32, device=param.device)}
            made["original"] = param.detach().clone()
            for name in moments:
                made[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
            mine.update(made)
        mine["step"] = moved(mine["step"], param.device)  # loading leaves it on the checkpoint's device


def _laid_out(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient with the parameter's strides: torch's fused update takes both in the order of memory."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)


@contextmanager
def _unless(skip: Tensor | None, written: Sequence[Tensor]) -> Iterator[None]:
    """What the block writes to these tensors is undone, bit for bit, if `skip` is set (see `dense_adam_`)."""
    before = [] if skip is None else [tensor.detach().clone() for tensor in written]
    yield
    for tensor, old in zip(written, before, strict=False):  # nothing if there is no `skip`
        assert skip is not None
        tensor.copy_(torch.where(moved(skip.reshape(()), tensor.device) != 0, old, tensor))


def dense_adam_(
    params: Sequence[Tensor], group: Mapping[str, Any], state: State, skip: Tensor | None = None, *, decoupled: bool
) -> None:
    """torch's Adam (or AdamW, if `decoupled`) on parameters that have a gradient; keeps their first values.

    `skip` (int32, shape (1,), on a device): unless zero, no tensor changes. torch's fused update looks at it.
    """
    _prepare(params, state, ("exp_avg", "exp_avg_sq"))
    grads = [_laid_out(param.grad, param) for param in params if param.grad is not None]
    steps, means, squares = ([state[param][name] for param in params] for name in ("step", "exp_avg", "exp_avg_sq"))
    beta1, beta2 = group["betas"]
    fused = _fused(params)
    with _unless(None if fused else skip, [*params, *steps, *means, *squares]):
        adam(
            list(params),
            grads,
            means,
            squares,
            [],
            steps,
            foreach=False,
            fused=fused,
            found_inf=skip.reshape(()).float() if fused and skip is not None else None,
            decoupled_weight_decay=decoupled,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def dense_sgd_(params: Sequence[Tensor], group: Mapping[str, Any], state: State, skip: Tensor | None = None) -> None:
    """torch's SGD on parameters that have a gradient; keeps their first values.

    Not fused: torch 2.13's fused CPU kernel gives wrong results for 16-bit parameters, and for parameters of which some
    have no momentum buffer yet. So `skip`, as in `dense_adam_`, needs a copy of what the update writes: of one
    parameter at a time.
    """
    _prepare(params, state, ())
    for some in [params] if skip is None else [[param] for param in params]:
        buffers = [state[param].get("momentum_buffer") for param in some]
        steps = [state[param]["step"] for param in some]
        with _unless(skip, [*some, *steps, *(buffer for buffer in buffers if buffer is not None)]):
            sgd(
                list(some),
                [param.grad for param in some if param.grad is not None],
                buffers,
                foreach=False,
                fused=False,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=float(group["lr"]),
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=False,
            )
            for step in steps:
                step += 1
        if group["momentum"]:
            for param, buffer in zip(some, buffers, strict=True):
                state[param]["momentum_buffer"] = buffer


def check_dense_state(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], required: Sequence[str], *, everywhere: bool
) -> None:
    """Raises ValueError, naming the item, if a packed per-parameter state does not fit the groups that it is for.

    Args:
        state_dict: what passed `checkpoint.check_halves` and `check_groups`.
        groups: this optimizer's groups.
        required: what each parameter with state must have.
        everywhere: selective groups have such state, too.
    """
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        if group["selective"] and not everywhere:
            continue
        for key, param in zip(saved["params"], group["params"], strict=True):
            given = state_dict["state"].get(key)
            if not given:
                continue  # it never had a gradient
            missing = [name for name in required if not isinstance(given.get(name), Tensor)]
            if missing:
                raise ValueError(f"state_dict: state[{key}]: expected the tensors {missing}, which are missing")
            for name, value in given.items():
                shared = name not in required and isinstance(value, Tensor) and value.dim() == 0
                if isinstance(value, Tensor) and name != "step" and not shared and value.shape != param.shape:
                    raise ValueError(
                        f"state_dict: state[{key}][{name!r}]: expected shape {tuple(param.shape)}, got "
                        f"{tuple(value.shape)}"
                    )


def restore_shared_(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], state: State) -> None:
    """Gives 0-dimensional state its packed dtype back, which `Optimizer.load_state_dict` casts to the parameter's.

    Args:
        state_dict: what was loaded.
        groups, state: this optimizer's.
    """
    for saved, group in zip(state_dict["param_groups"], groups, strict=True):
        for key, param in zip(saved["params"], group["params"], strict=True):
            for name, value in (state_dict["state"].get(key) or {}).items():
                if isinstance(value, Tensor) and value.dim() == 0:
                    mine = state[param][name]
                    state[param][name] = value.clone().to(mine.device)
