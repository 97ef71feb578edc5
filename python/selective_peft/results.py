"""What a training run leaves on disk: metrics, the selected values, a picture."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selective_peft import SelectiveAdamW
from selective_peft.errors import InputError
from selective_peft.naming import count_by_place, places

FORMAT = "selective-peft values"
VERSION = "1"


def check_output(folder: Path) -> None:
    """Raises InputError unless results can be written to this folder: a new or an empty one."""
    if folder.exists():
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"--output {folder}: expected a new or an empty folder, found something there")
        writable = folder
    else:
        writable = folder.parent
    if not writable.is_dir() or not os.access(writable, os.W_OK):
        raise InputError(f"--output {folder}: expected a folder that can be written to, {writable} is none")


def write_folder(folder: Path, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Writes all files under another name first: there is never half a file, and no file if one cannot be written.

    Args:
        folder: must not exist (then it appears at once) or be empty.
        files: file name -> function that writes to the path it is given.
    """
    exists = folder.exists()  # it may be a mount, which cannot be replaced
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder if exists else folder.parent))
    try:
        for name, write in files.items():
            write(staging / name)
            (staging / name).chmod(0o644)
        if exists:
            for name in files:
                (staging / name).replace(folder / name)
            staging.rmdir()
        else:
            staging.chmod(0o755)
            staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON; numbers that JSON does not have become null."""
    path.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def selected_values(model: nn.Module, optimizer: SelectiveAdamW, whole: frozenset[str]) -> dict[str, Tensor]:
    """What training changed, as tensors to save.

    Args:
        model: the trained model.
        optimizer: which trained it.
        whole: names of the parameters outside the budget.

    Returns:
        For each selective parameter with selected scalars `<name>.indices` (int32, flat row-major, ascending) and
        `<name>.values` (the new values, in the parameter's dtype); each of `whole` under its own name.
    """
    tensors: dict[str, Tensor] = {}
    for name, param in model.named_parameters():
        if name in whole:
            tensors[name] = param.detach().cpu().clone()
            continue
        indices = optimizer.selected_indices(param)
        if len(indices):
            tensors[f"{name}.indices"] = indices.to(torch.int32)
            tensors[f"{name}.values"] = param.detach().reshape(-1)[indices.to(param.device)].cpu()
    return tensors


def write_values(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes a safetensors file with `about` as its metadata."""
    save_file(dict(tensors), str(path), metadata={"format": FORMAT, "version": VERSION, **about})


def where(model: nn.Module, optimizer: SelectiveAdamW, whole: frozenset[str]) -> dict[str, dict[str, int]]:
    """Where the budget went: module -> layer -> selected scalars; see `naming.places` for what these are."""
    params = {name: param for name, param in model.named_parameters() if name not in whole}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."  # of transformers: what all names begin with
    counts = [len(optimizer.selected_indices(param)) for param in params.values()]
    return count_by_place(places(params, prefix), counts)
