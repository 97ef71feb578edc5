"""What a training run leaves on disk: metrics, the selected values, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selective_peft import SelectiveAdamW
from selective_peft.naming import count_by_place, places

FORMAT = "selective-peft values"
VERSION = "1"
PEFT_PREFIX = "base_model.model."  # before the names of a model inside a PEFT model


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON; numbers that JSON does not have become null."""
    path.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def selective(model: nn.Module, optimizer: SelectiveAdamW) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Each parameter that is selected from: its name, itself, its selected offsets (int64, ascending)."""
    known = {id(param) for group in optimizer.param_groups if group["selective"] for param in group["params"]}
    for name, param in model.named_parameters():
        if id(param) in known:
            yield name, param, optimizer.selected_indices(param)


def selected_values(
    model: nn.Module, optimizer: SelectiveAdamW, whole: frozenset[str], first: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """What training changed, as tensors to save.

    Args:
        model: the trained model.
        optimizer: which trained it.
        whole: names of the parameters outside the budget.
        first: values before training, float32, by name, for a method that also changed scalars which are not selected
            any more.

    Returns:
        For each selective parameter with selected scalars `<name>.indices` (int32, flat row-major, ascending) and
        `<name>.values` (the new values, in the parameter's dtype); each of `whole` under its own name.
    """
    params = dict(model.named_parameters())
    tensors = {name: params[name].detach().cpu().clone() for name in sorted(whole)}
    for name, param, indices in selective(model, optimizer):
        flat = param.detach().reshape(-1)
        if first is not None:  # bits, for which 0 and -0 are not the same
            before = first[name].to(flat.device).reshape(-1)
            indices = (flat.view(torch.int32) != before.view(torch.int32)).nonzero().reshape(-1).cpu()
        if len(indices):
            tensors[f"{name}.indices"] = indices.to(torch.int32)
            tensors[f"{name}.values"] = flat[indices.to(flat.device)].cpu()
    return tensors


def write_values(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes a safetensors file with `about` as its metadata."""
    save_file(dict(tensors), str(path), metadata={"format": FORMAT, "version": VERSION, **about})


def where(model: nn.Module, optimizer: SelectiveAdamW) -> dict[str, dict[str, int]]:
    """Where the budget went: module -> layer -> selected scalars; all that is trained if nothing is selected from.

    See `naming.places` for what module and layer are.
    """
    counts = {name: len(indices) for name, _, indices in selective(model, optimizer)}
    if not counts:
        known = {id(param) for group in optimizer.param_groups for param in group["params"]}
        counts = {name: param.numel() for name, param in model.named_parameters() if id(param) in known}
    wrapped = PEFT_PREFIX if all(name.startswith(PEFT_PREFIX) for name in counts) else ""
    prefix = f"{wrapped}{getattr(model, 'base_model_prefix', '')}."  # of transformers: what all names begin with
    return count_by_place(places(counts, prefix), list(counts.values()))
