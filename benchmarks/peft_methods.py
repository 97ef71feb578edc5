"""Adapters of the PEFT library, as its users set them up, and how many scalars each must train."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from benchmarks.workloads import Workload

RANK, SPARSITY = 8, 0.99
Adapt = Callable[[nn.Module, Workload], tuple[nn.Module, int]]


class Unavailable(Exception):
    """A method cannot be run here; the message says why."""


def _config(kind: str) -> Callable[..., Any]:
    """A class of configurations.

    Raises:
        Unavailable: PEFT is not installed, or does not have it yet.
    """
    try:
        import peft
    except ImportError as error:
        raise Unavailable(f"peft cannot be imported ({error})") from error
    if not hasattr(peft, kind):
        raise Unavailable(f"peft {peft.__version__} has no {kind}")
    found: Callable[..., Any] = getattr(peft, kind)
    return found


def wrap(model: nn.Module, config: Any) -> nn.Module:
    """A model with the adapters of a configuration of PEFT."""
    import peft

    checks: Any = torch.sparse.check_sparse_tensor_invariants
    checks.disable()  # as by default; said aloud, torch does not warn of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights, which stay as they are
        made: nn.Module = peft.get_peft_model(model, config)
    return made


def targets(model: nn.Module, work: Workload, last: Sequence[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers by name, without the head; only those whose name ends in one of `last`."""
    output = cast(Any, model).get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not output
        and not (work.head and f"{name}.".startswith(work.head))
        and (last is None or name.rpartition(".")[2] in last)
    }


def _adapter(kind: str, all_linear: bool, count: Callable[[nn.Linear], int], **options: Any) -> Adapt:
    def adapt(model: nn.Module, work: Workload) -> tuple[nn.Module, int]:
        """The model with adapters, and how many scalars they have; the head is trained whole beside them."""
        config = _config(kind)
        found = targets(model, work, None if all_linear else work.query_value)
        head = [work.head.rstrip(".")] if work.head else None
        wrapped = wrap(model, config(target_modules=list(found), modules_to_save=head, **options))
        return wrapped, sum(map(count, found.values()))

    return adapt


def _low_rank(layer: nn.Linear) -> int:
    return RANK * (layer.in_features + layer.out_features)


def _sparse(layer: nn.Linear) -> int:
    return int(layer.weight.numel() * (1 - SPARSITY))


METHODS: dict[str, Adapt] = {
    f"LoRA r={RANK} (q, v)": _adapter("LoraConfig", False, _low_rank, r=RANK, lora_alpha=2 * RANK),
    f"LoRA r={RANK} (all linear)": _adapter("LoraConfig", True, _low_rank, r=RANK, lora_alpha=2 * RANK),
    f"SHiRA r={RANK} (all linear)": _adapter("ShiraConfig", True, _low_rank, r=RANK, random_seed=0),
    "Super-Tuning 1 % (all linear)": _adapter("SupertuningConfig", True, _sparse, sparsity=SPARSITY),
}
