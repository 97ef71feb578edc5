"""Loading a Hugging Face model and tokenizer for a task, and refusing files that do not fit together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from selective_peft.errors import InputError, first_line


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        positions: how many tokens a text may have.
        head: names of the parameters that make up the head, whether it is new or not; empty if words are the output.
        new: names of the parameters to train whole: those of the head that do not come from the checkpoint.
        added: names of parameters that no checkpoint of such a model has: those of adapters.
    """

    model: Any
    tokenizer: Any
    positions: int
    head: frozenset[str]
    new: frozenset[str]
    added: frozenset[str] = frozenset()


def _classes(classes: list[str] | None) -> dict[str, Any]:
    if classes is None:
        return {"num_labels": 1, "problem_type": "regression"}
    return {**_tags(classes), "problem_type": "single_label_classification"}


def _tags(classes: list[str] | None) -> dict[str, Any]:
    names = dict(enumerate(classes or []))
    return {
        "num_labels": len(names),
        "id2label": names,
        "label2id": {label: number for number, label in names.items()},
    }


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        auto: the class of transformers that loads it.
        settings: classes (None for numbers) -> what its configuration is to say.
        head: it ends in a head that may be new; else words are the output, and all weights must be there.
        fast: the tokenizer must know which characters a token comes from.
        ends: the tokenizer must have an end token, and the model must not look ahead.
    """

    auto: Any
    settings: Callable[[list[str] | None], dict[str, Any]] = lambda _: {}
    head: bool = False
    fast: bool = False
    ends: bool = False


SEQUENCE = Kind(AutoModelForSequenceClassification, _classes, head=True)
TOKEN = Kind(AutoModelForTokenClassification, _tags, head=True, fast=True)
SEQ2SEQ = Kind(AutoModelForSeq2SeqLM)
CAUSAL = Kind(AutoModelForCausalLM, fast=True, ends=True)


def _positions(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = int(tokenizer.model_max_length)
    if positions is None:
        return limit
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
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


def load(name: str, seed: int, classes: list[str] | None = None, kind: Kind = SEQUENCE) -> Loaded:
    """A model for the task, the new parts of whose head are drawn from `seed`.

    A head that the checkpoint has is kept if it is for just these classes in this order, or for one number; else it is
    drawn anew.

    Args:
        name: a folder, or a model of the Hub; weights as safetensors (others could run code).
        seed: for the parts that are drawn.
        classes: names of the classes; None for regression and where words are the output.
        kind: of model.

    Raises:
        InputError: it does not load, or its files do not fit together.
    """
    known = known_classes(name)
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, info = kind.auto.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the head of another task is replaced
            output_loading_info=True,
            **kind.settings(classes),
        )
    except ERRORS as error:
        raise InputError(f"--model {name}: cannot be loaded ({first_line(error)})") from error
    names = {key for key, _ in model.named_parameters()}
    missing = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    missing &= names
    body = f"{model.base_model_prefix}." if kind.head else ""
    unfit = sorted(key for key in missing if key.startswith(body) and not (kind.head and ".pooler." in key))
    if unfit:
        raise InputError(
            f"--model {name}: expected weights that fit its config.json, found {len(unfit)} tensors that do not, "
            f"such as {unfit[0]}"
        )
    head = {key for key in names if not key.startswith(body)}
    kept = len(known) == 1 if classes is None else known in (classes, [f"LABEL_{label}" for label in classes])
    if not kept and not head <= missing:
        _draw_head(model, body)
        missing |= head
    _check_tokenizer(name, tokenizer, model)
    _check_kind(name, tokenizer, model, kind)
    return Loaded(model, tokenizer, _positions(model, tokenizer), frozenset(head | missing), frozenset(missing))


def _check_kind(name: str, tokenizer: Any, model: Any, kind: Kind) -> None:
    if kind.fast and not tokenizer.is_fast:
        raise InputError(f"--model {name}: expected a tokenizer of the tokenizers library, found one that is slower")
    if not kind.ends:
        return
    if tokenizer.eos_token is None:
        raise InputError(f"--model {name}: expected a tokenizer with an end token, found none")
    tokenizer.padding_side = "right"  # the first token then is at the first position
    tokens = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]]) % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        first, second = model.eval()(input_ids=tokens).logits
    differences = (first - second).abs().amax(-1)  # of the tokens' logits; only the last token is another one
    if differences[0] > 1e-4 * differences[-1]:
        raise InputError(f"--model {name}: expected one that reads from left to right, found one that looks ahead")


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
