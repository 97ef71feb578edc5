"""The model of a checkpoint folder, in memory, for what files alone do not tell: which module a tensor belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from selective_peft.errors import InputError, first_line
from selective_peft.loading import ERRORS, quiet

# Of classes that get another one's configuration, or nonsense.
UNFIT = (AttributeError, ArithmeticError, AssertionError)


def load_base(
    folder: Path,
    *,
    model_class: str | None = None,
    config: Mapping[str, Any] | None = None,
    labels: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[transformers.PreTrainedModel, frozenset[str]]:
    """A model of transformers with a base's weights.

    Args:
        folder: the base's, as save_pretrained writes it, with safetensors.
        model_class: such as "BertForSequenceClassification"; without, what the configuration says.
        config: of the tuned model; without, the base's.
        labels: of its head; without, what the configuration says.
        dtype: without, that of the files.

    Returns:
        The model, and the names of parameters that the files lack: they were drawn.

    Raises:
        InputError: it does not load.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"--base {folder}: expected a folder with a config.json and safetensors weights, found none")
    quiet()
    try:
        known = AutoConfig.from_pretrained(folder) if config is None else AutoConfig.for_model(**config)
        if labels is not None:
            known.num_labels = labels
        kind = _class(model_class or next(iter(known.architectures or []), None))
        model, info = kind.from_pretrained(
            folder,
            config=known,
            dtype="auto" if dtype is None else dtype,
            attn_implementation="eager",  # a configuration could name kernels on the Hub
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (*ERRORS, *UNFIT) as error:
        raise InputError(f"--base {folder}: cannot be loaded ({first_line(error)})") from error
    return model.eval(), frozenset(info["missing_keys"]) & {name for name, _ in model.named_parameters()}


def _class(name: object) -> Any:
    """A class of models, by its name. Raises InputError if there is none in transformers."""
    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise InputError(f"--model-class: expected a class of models of transformers, got {name or 'none'}")
    return found
