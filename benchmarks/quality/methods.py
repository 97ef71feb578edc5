"""The ways to fine-tune that are compared, by name: which adapter, which optimizer, and where learning rates begin."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from selective_peft import SelectiveAdamW
from selective_peft.adapters import add_adapters
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.peft_methods import wrap
from benchmarks.quality.jobs import Job

SELECTIVE_LR, FULL_LR = 1e-3, 1e-4  # middle of the first three learning rates
BOTTLENECK = 48
D3_METHODS = ("id3", "d3-static", "d3-repeat")
HEAD = "classifier"


@dataclass(frozen=True)
class Way:
    """A way to fine-tune.

    Attributes:
        adapter: "", "lora-8", "lora-2" or "pfeiffer": what is put into the model; the base is frozen then.
        method: a name of `selective_peft.methods()` for what selects; "" to train all that is trainable.
        budget: whether it takes one.
        lr: middle of the first three learning rates.
        won: the learning rate that won on film reviews at the usual budget, for comparisons that try no other.
        options: further arguments of the optimizer.
    """

    adapter: str = ""
    method: str = ""
    budget: bool = True
    lr: float = SELECTIVE_LR
    won: float = SELECTIVE_LR
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether its score has exp and eps."""
        return self.method in D3_METHODS


METHODS: dict[str, Way] = {
    "full": Way(budget=False, lr=FULL_LR, won=3e-4),
    "R-Mask": Way(method="random", won=1e-2),
    "BitFit": Way(method="bitfit", budget=False, won=3e-3),
    "PaFi": Way(method="pafi", won=1e-2),
    "Fish": Way(method="fish"),
    "SNIP": Way(method="snip"),
    "D3, static": Way(method="d3-static"),
    "D3, repeat": Way(method="d3-repeat"),
    "PaFi, increment": Way(method="pafi-increment", won=1e-2),
    "ID3": Way(method="id3"),
    "ID3, every 15": Way(method="id3", options={"select_every": 15}),
    "ID3, per entry": Way(method="id3", options={"bias_correction": "per_entry"}),
    "ID3, front": Way(method="id3", options={"schedule": "front"}),
    "LoRA r=8": Way(adapter="lora-8", budget=False),
    "LoRA r=2": Way(adapter="lora-2", budget=False, won=3e-3),
    "LoRA r=8 + PaFi": Way(adapter="lora-8", method="pafi", won=1e-2),
    "LoRA r=8 + ID3": Way(adapter="lora-8", method="id3", won=3e-3),
    "Pfeiffer": Way(adapter="pfeiffer", budget=False, won=3e-3),
    "Pfeiffer + ID3": Way(adapter="pfeiffer", method="id3", won=3e-3),
}


def adapt(model: nn.Module, adapter: str, seed: int) -> nn.Module:
    """The model with an adapter of some kind, its base frozen but for the head; LoRA is in all linear layers."""
    head = hasattr(model, HEAD)
    torch.manual_seed(seed)
    if adapter.startswith("lora-"):
        import peft

        rank = int(adapter.removeprefix("lora-"))
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            exclude_modules=[HEAD] if head else None,
            modules_to_save=[HEAD] if head else None,
        )
        return wrap(model, config)
    if adapter == "pfeiffer":
        kept = [HEAD] if head else []
        add_adapters(model, "pfeiffer", BOTTLENECK, seed=seed, freeze_base=True, train_fully=kept)
    return model


def trainable(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Named parameters that require gradients: of the "body", which is selected from, and of the new "head"."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {"body": [], "head": []}
    for name, param in model.named_parameters():
        if param.requires_grad:
            found["head" if HEAD in name.split(".") else "body"].append((name, param))
    return found


def optimizer_for(
    model: nn.Module, job: Job, budget: int, steps: int, fisher: Mapping[str, Tensor] | None = None
) -> Optimizer:
    """The optimizer of a run; no weight decay anywhere, and the head is trained whole.

    Args:
        model: with its adapter.
        job: the run.
        budget: scalars besides the head.
        steps: over which the budget is spent.
        fisher: scores of "fish" by name.
    """
    way, parts = METHODS[job.method], trainable(model)
    if not way.method:
        params = [param for part in parts.values() for _, param in part]
        return torch.optim.AdamW(params, lr=job.lr, weight_decay=0.0, fused=True)
    kwargs: dict[str, Any] = {}
    if way.scored:
        kwargs = {"exp": job.exp, "eps": job.eps}
    elif way.method == "random":
        kwargs = {"seed": job.seed}
    elif way.method == "fish":
        kwargs = {"scores": fisher}
    groups: list[dict[str, Any]] = [{"params": parts["body"]}]
    if parts["head"]:
        groups.append({"params": parts["head"], "selective": False})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="strategy 'repeat' is a baseline")
        return SelectiveAdamW(
            groups,
            lr=job.lr,
            budget=budget if way.budget else None,
            total_steps=steps,
            method=way.method,
            method_kwargs=kwargs,
            **way.options,
        )
