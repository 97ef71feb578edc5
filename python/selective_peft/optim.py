"""The selective optimizers: drop-in replacements of torch's AdamW, Adam and SGD."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from selective_kernels import AdamGroup, SgdGroup, Update, adam_, sgd_
from selective_peft.arguments import check_betas, check_non_negative, make_settings, refuse_unsupported
from selective_peft.dense import ADAM_STATE, SGD_STATE, dense_adam_, dense_sgd_
from selective_peft.optimizer import SelectiveOptimizer
from selective_peft.schedules import Schedule
from selective_peft.scores import AnyScore


def _refuse(foreach: bool | None, fused: bool | None, **options: bool) -> None:
    refuse_unsupported(options)
    if foreach is not None or fused is not None:
        warnings.warn("foreach and fused are ignored: all selected scalars are updated in one call", stacklevel=3)


class SelectiveAdam(SelectiveOptimizer):
    """Adam on the selected scalars; weight decay goes into their gradients. Arguments as in `SelectiveAdamW`."""

    _moments = ("exp_avg", "exp_avg_sq")
    _dense_state = ADAM_STATE
    _decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        budget: int | float | None = None,
        total_steps: int | str | None = None,
        method: str | None = None,
        method_kwargs: Mapping[str, Any] | None = None,
        score: AnyScore | None = None,
        strategy: str | None = None,
        scope: str = "global",
        schedule: Schedule = "uniform",
        select_every: int = 1,
        bias_correction: str = "global",
        max_grad_norm: float | None = None,
        nonfinite: str = "skip",
        backend: str = "auto",
        amsgrad: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        _refuse(
            foreach,
            fused,
            amsgrad=amsgrad,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
        )
        settings = make_settings(
            budget=budget,
            total_steps=total_steps,
            method=method,
            method_kwargs=method_kwargs,
            score=score,
            strategy=strategy,
            scope=scope,
            schedule=schedule,
            select_every=select_every,
            bias_correction=bias_correction,
            max_grad_norm=max_grad_norm,
            nonfinite=nonfinite,
            backend=backend,
        )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, settings)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_non_negative(name, group[name])
        check_betas(group["betas"])

    def _update(self, update: Update) -> None:
        groups = []
        for group in self._groups(selective=True):
            beta1, beta2 = map(float, group["betas"])
            decay = float(group["weight_decay"])
            decoupled, in_gradient = (decay, 0.0) if self._decoupled else (0.0, decay)
            groups.append(AdamGroup(float(group["lr"]), beta1, beta2, float(group["eps"]), decoupled, in_gradient))
        assert self._selection is not None
        arrays = self._selection.arrays
        adam_(update, arrays["exp_avg"], arrays["exp_avg_sq"], groups, backend=self._settings.backend)

    def _update_dense(self, params: list[Tensor], group: Mapping[str, Any], skip: Tensor | None = None) -> None:
        dense_adam_(params, group, self.state, skip, decoupled=self._decoupled)


class SelectiveAdamW(SelectiveAdam):
    """AdamW that trains only `budget` scalars, chosen step by step by their score (ID3, TACL 2025, Algorithm 1).

    Selected scalars are updated exactly as torch.optim.AdamW would with all other gradients masked to zero; all others
    keep every bit. State is 20 to 24 bytes per selected scalar; no dense mask or moment exists.

    Args:
        params: parameters, named parameters, or groups of them; float32, bfloat16 or float16, contiguous. A group may
            carry `selective=False`: it is trained whole, outside the budget (a new head). They may lie on several
            devices; what is kept of the selected scalars is on the first one's, and "auto" is a backend for each.
        lr, betas, eps, weight_decay: as in torch, read from the group at each step. Only selected scalars decay. Each
            step waits for a number that is on a GPU.
        budget: how many scalars to train: an integer, or a share in (0, 1) of the selective scalars; None for methods
            without one.
        total_steps: number of steps over which the budget is spent; training may go on afterwards. "later" if
            `set_total_steps` says it before the first step, or a checkpoint does.
        method: a name of `methods()`, which stands for a score and a strategy: `method="pafi"`.
        method_kwargs: the method's own arguments: `exp` and `eps` of the D3 methods, `seed` of "random", `scores` of
            "fish", `tuned` or `warmup_steps` of "diff".
        score: what ranks the scalars: `D3(exp, eps)`, the default, another one of `selective_peft.scores`, or a
            callable(name, param, grad) that returns a tensor's scores.
        strategy: "increment" (spend the budget along the schedule, the default), "static" (all in the first step), or
            "repeat" (a fresh set in each step: a baseline with dense state, in plain PyTorch on a GPU, where it waits).
        scope: "global" (the best scalars of all tensors), or "tensor" (of each, in proportion to its size).
        schedule: "uniform", "linear", "cosine", "front", or a callable(step, total_steps, budget) that gives the
            number of scalars selected after that step.
        select_every: select only in steps 0, K, 2K, ..., for the K steps ahead.
        bias_correction: "global" as in torch, or "per_entry": each scalar counts its own updates, so that late ones do
            not start with steps of up to 3.2 lr.
        max_grad_norm: clip by the norm over the selected scalars' gradients; None for no clipping.
        nonfinite: "skip" a step whose gradients hold inf or NaN (counted in `skipped_steps`), or "raise". On a GPU
            "skip" does not wait to know: the next step, or whoever asks, learns that a step was skipped, and warns.
            "raise" raises in the very step, so each step waits for its gradients.
        backend: "auto", or one of "cpu", "triton", "cuda" and "reference"; see `selective_kernels.explain()`.
        amsgrad, maximize, capturable, differentiable: must be False.
        foreach, fused: accepted for compatibility and ignored, with a warning.

    Raises:
        TypeError, ValueError: an argument is out of range, or a parameter cannot be selected from.
    """

    _decoupled = True


class SelectiveSGD(SelectiveOptimizer):
    """SGD on the selected scalars, with momentum, dampening, Nesterov and weight decay as in torch.optim.SGD.

    Keyword arguments as in `SelectiveAdamW`; with "per_entry" a scalar's momentum starts with its own first gradient.
    """

    _moments = ("momentum_buffer",)
    _dense_state = SGD_STATE

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        budget: int | float | None = None,
        total_steps: int | str | None = None,
        method: str | None = None,
        method_kwargs: Mapping[str, Any] | None = None,
        score: AnyScore | None = None,
        strategy: str | None = None,
        scope: str = "global",
        schedule: Schedule = "uniform",
        select_every: int = 1,
        bias_correction: str = "global",
        max_grad_norm: float | None = None,
        nonfinite: str = "skip",
        backend: str = "auto",
        maximize: bool = False,
        differentiable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        _refuse(foreach, fused, maximize=maximize, differentiable=differentiable)
        settings = make_settings(
            budget=budget,
            total_steps=total_steps,
            method=method,
            method_kwargs=method_kwargs,
            score=score,
            strategy=strategy,
            scope=scope,
            schedule=schedule,
            select_every=select_every,
            bias_correction=bias_correction,
            max_grad_norm=max_grad_norm,
            nonfinite=nonfinite,
            backend=backend,
        )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults, settings)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_non_negative(name, group[name])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov: expected momentum > 0 and dampening 0, got momentum {group['momentum']} and dampening "
                f"{group['dampening']}"
            )

    def _update(self, update: Update) -> None:
        assert self._selection is not None
        groups = [
            SgdGroup(
                float(group["lr"]),
                float(group["momentum"]),
                float(group["dampening"]),
                float(group["weight_decay"]),
                bool(group["nesterov"]),
            )
            for group in self._groups(selective=True)
        ]
        sgd_(update, self._selection.arrays["momentum_buffer"], groups, backend=self._settings.backend)

    def _update_dense(self, params: list[Tensor], group: Mapping[str, Any], skip: Tensor | None = None) -> None:
        dense_sgd_(params, group, self.state, skip)
