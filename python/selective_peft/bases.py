"""What the budget is spent on: the model's own weights, or small new ones beside frozen ones."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save

from selective_peft.about import public_name
from selective_peft.adapters import add_adapters
from selective_peft.atomic import replacing
from selective_peft.errors import InputError, first_line
from selective_peft.loading import Loaded
from selective_peft.options import BASE_OPTIONS, settle

Write = Callable[[Path], None]
FORMAT, VERSION = "selective-peft adapter", "1"
WRAPPED = ".modules_to_save."  # in the names that PEFT gives to what it trains whole
PEFT_HEADS = {"classifier", "score"}  # which PEFT trains whole by itself


@dataclass(frozen=True)
class Base:
    """A kind of base.

    Attributes:
        apply: model, options, PEFT's name of the task -> the model to train, in which only what may be trained requires
            a gradient. Raises InputError for options that do not suit the model.
        files: the trained model, options -> file or folder name and what writes it; beside those of every run.
    """

    apply: Callable[[Loaded, argparse.Namespace, str], Loaded]
    files: Callable[[Loaded, argparse.Namespace], dict[str, Write]]


def settle_base(options: argparse.Namespace) -> None:
    """Sets the defaults of what only some bases have.

    Raises:
        InputError: an option of another base.
    """
    settle(options, "base", BASE_OPTIONS)
    if options.base == "lora" and options.lora_alpha is None:
        options.lora_alpha = 2 * options.rank


def _full(loaded: Loaded, _: argparse.Namespace, __: str) -> Loaded:
    return loaded


def _no_files(_: Loaded, __: argparse.Namespace) -> dict[str, Write]:
    return {}


def _lora(loaded: Loaded, options: argparse.Namespace, task: str) -> Loaded:
    """LoRA as PEFT makes it; a head is trained whole, in PEFT's copy of it."""
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    model = loaded.model
    targets = options.target_modules
    if targets is None and model.config.model_type not in USUAL:
        targets = ["all-linear"]
    body = f"{model.base_model_prefix}."
    heads = {name.rpartition(".")[0] if name.startswith(body) else name.split(".")[0] for name in loaded.head}
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.lora_alpha,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        modules_to_save=sorted(heads - PEFT_HEADS) or None,
        task_type=task,
    )
    torch.manual_seed(options.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Conv1D of GPT-2, which it handles by itself
            wrapped = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        linear = {name.rpartition(".")[2] for name, it in model.named_modules() if isinstance(it, torch.nn.Linear)}
        raise InputError(
            f"--target-modules: expected names of linear maps of the model such as {', '.join(sorted(linear))}, got "
            f"{' '.join(targets) if targets else 'none'} ({first_line(error)})"
        ) from error
    trained = {name for name, param in wrapped.named_parameters() if param.requires_grad}
    whole = frozenset(name for name in trained if WRAPPED in name)
    return replace(loaded, model=wrapped, head=whole, new=whole, added=frozenset(trained) - whole)


def _lora_files(loaded: Loaded, _: argparse.Namespace) -> dict[str, Write]:
    return {"adapter": lambda path: loaded.model.save_pretrained(str(path), save_embedding_layers=False)}


def _bottleneck(loaded: Loaded, options: argparse.Namespace, _: str) -> Loaded:
    try:
        added = frozenset(add_adapters(loaded.model, options.base, options.adapter_size, seed=options.seed))
    except ValueError as error:
        raise InputError(f"--base {options.base}: {first_line(error)}") from error
    for name, param in loaded.model.named_parameters():
        param.requires_grad_(name in added or name in loaded.head)
    return replace(loaded, new=loaded.head, added=added)


def _bottleneck_files(loaded: Loaded, options: argparse.Namespace) -> dict[str, Write]:
    params = dict(loaded.model.named_parameters())
    values = {name: params[name].detach().cpu() for name in sorted(loaded.added | loaded.head)}
    about = {"base_model": public_name(options.model), "placement": options.base, "size": str(options.adapter_size)}
    about |= {"format": FORMAT, "version": VERSION}

    def write(path: Path) -> None:
        with replacing(path) as file:
            file.write(save(values, about))

    return {"adapter.safetensors": write}


BASES = {
    "full": Base(_full, _no_files),
    "lora": Base(_lora, _lora_files),
    "pfeiffer": Base(_bottleneck, _bottleneck_files),
    "houlsby": Base(_bottleneck, _bottleneck_files),
}
