"""Loading a Hugging Face model and tokenizer for a task, and refusing files that do not fit together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from selective_peft.errors import InputError, first_line


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        new: names of the parameters that do not come from the checkpoint: the new head.
    """

    model: Any
    tokenizer: Any
    new: frozenset[str]

    @property
    def positions(self) -> int:
        """How many tokens a text may have."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limit = int(self.tokenizer.model_max_length)
        if positions is None:
            return limit
        table = getattr(getattr(self.model.base_model, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)  # models like RoBERTa count positions from behind it
        return min(limit, int(positions) - (0 if padding is None else int(padding) + 1))


def quiet() -> None:
    """Keeps transformers from writing to the screen; errors come as exceptions."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def known_classes(name: str) -> list[str]:
    """Names of the classes that a checkpoint's head knows, in its order; invented ones ("LABEL_0") without a head.

    Raises:
        InputError: its configuration does not load.
    """
    try:
        found: dict[int, str] = AutoConfig.from_pretrained(name).id2label
        return [str(found[number]) for number in sorted(found)]
    except ERRORS as error:
        raise InputError(f"--model {name}: cannot be loaded ({first_line(error)})") from error


def load(name: str, seed: int, classes: list[str] | None) -> Loaded:
    """A model with a head for the task, the new parts of which are drawn from `seed`.

    A head that the checkpoint has is kept if it is for just these classes in this order, or for one number; else it is
    drawn anew.

    Args:
        name: a folder, or a model of the Hub; weights as safetensors (others could run code).
        seed: for the parts that are drawn.
        classes: names of the classes; None for regression.

    Raises:
        InputError: it does not load, or its files do not fit together.
    """
    known = known_classes(name)
    task: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if classes is not None:
        names = dict(enumerate(classes))
        task = {"num_labels": len(classes), "problem_type": "single_label_classification", "id2label": names}
        task["label2id"] = {label: number for number, label in names.items()}
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the head of another task is replaced
            output_loading_info=True,
            **task,
        )
    except ERRORS as error:
        raise InputError(f"--model {name}: cannot be loaded ({first_line(error)})") from error
    missing = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    missing &= {key for key, _ in model.named_parameters()}
    body = f"{model.base_model_prefix}."
    unfit = sorted(key for key in missing if key.startswith(body) and ".pooler." not in key)
    if unfit:
        raise InputError(
            f"--model {name}: expected weights that fit its config.json, found {len(unfit)} tensors that do not, "
            f"such as {unfit[0]}"
        )
    kept = len(known) == 1 if classes is None else known in (classes, [f"LABEL_{label}" for label in classes])
    head = {key for key, _ in model.named_parameters() if not key.startswith(body)}
    if not kept and not head <= missing:
        _draw_head(model, body)
        missing |= head
    _check_tokenizer(name, tokenizer, model)
    return Loaded(model, tokenizer, frozenset(missing))


def _draw_head(model: Any, body: str) -> None:
    for name, module in model.named_modules():
        if name and not f"{name}.".startswith(body) and hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _check_tokenizer(name: str, tokenizer: Any, model: Any) -> None:
    """Sees to a padding token; raises InputError unless the tokenizer is this model's."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(f"--model {name}: expected a tokenizer of at most {rows} tokens, found {len(tokenizer)}")
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise InputError(f"--model {name}: expected the files of a tokenizer, found none with words in them")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"--model {name}: expected a tokenizer with a padding or an end token, found neither")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
