"""What a training run leaves on disk: metrics, the selected values, a picture."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
PEFT_PREFIX = "base_model.model."  # before the names of a model inside a PEFT model


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


class Output:
    """A folder that appears with all its files, or not at all.

    Used in a `with` statement: files that were written before an error are gone after it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exists = folder.exists()  # it may be a mount, which cannot be replaced
        self._staging: Path | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._staging is not None and kind is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    def write(self, name: str, write: Callable[[Path], None]) -> Path:
        """Writes a file or a folder under another folder's name; returns where it lies until `publish`."""
        if self._staging is None:
            where = self.folder if self._exists else self.folder.parent
            self._staging = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=where))
        path = self._staging / name
        write(path)
        for each in [path, *path.rglob("*")]:
            each.chmod(0o755 if each.is_dir() else 0o644)
        return path

    def publish(self) -> None:
        """Gives the folder its name, with all that was written."""
        assert self._staging is not None
        if self._exists:
            for path in list(self._staging.iterdir()):
                path.replace(self.folder / path.name)
            self._staging.rmdir()
        else:
            self._staging.chmod(0o755)
            self._staging.rename(self.folder)
        self._staging = None


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
