"""From texts to tokens: what a model is given of each row, and what it is to answer."""

from __future__ import annotations

from typing import Any

from selective_peft.data import Examples
from selective_peft.errors import InputError
from selective_peft.loading import Loaded
from selective_peft.metrics import IGNORED

Rows = list[dict[str, Any]]


def longest(loaded: Loaded, max_length: int, special: int) -> int:
    """Tokens that a row may have, `special` ones among them.

    Raises:
        InputError: no room is left beside these.
    """
    limit = min(max_length, loaded.positions)
    if limit <= special:
        raise InputError(f"--max-length {max_length}: expected more than the {special} special tokens of a text")
    return limit


def texts(examples: Examples, loaded: Loaded, max_length: int) -> Rows:
    """Texts, or pairs of them, with a class or a number each."""
    special = loaded.tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None)
    encoded = loaded.tokenizer(
        examples.texts, examples.pairs, truncation=True, max_length=longest(loaded, max_length, special)
    )
    return _rows(encoded, examples.labels)


def tagged(examples: Examples, loaded: Loaded, max_length: int) -> Rows:
    """Words with a tag each: a word's first token has it, its other tokens have no label.

    The words are tokenised as one text with spaces between them, so that tokens are those of running text.

    Raises:
        InputError: no word of a row is left as a token.
    """
    limit = longest(loaded, max_length, loaded.tokenizer.num_special_tokens_to_add())
    joined = [" ".join(words) for words in examples.texts or []]
    encoded = loaded.tokenizer(joined, truncation=True, max_length=limit, return_offsets_mapping=True)
    labels = []
    for text, words, tags, offsets in zip(
        joined, examples.texts or [], examples.labels, encoded.pop("offset_mapping"), strict=True
    ):
        owners = [number for number, word in enumerate(words) for _ in f"{word} "]  # of characters
        last, row = -1, []
        for start, end in offsets:
            word = owners[end - 1] if start < end and not text[start:end].isspace() else -1
            row.append(tags[word] if word > last else IGNORED)
            last = max(last, word)
        if last < 0:
            raise InputError(f"words: expected some that the tokenizer knows, found none in {text!r}")
        labels.append(row)
    return _rows(encoded, labels)


def targets(examples: Examples, loaded: Loaded, max_length: int) -> Rows:
    """Texts for the encoder, and texts for the decoder to write, each of at most `max_length` tokens."""
    encoded, limit = _for_encoder(examples, loaded, max_length)
    tokenizer = loaded.tokenizer
    written = tokenizer(text_target=examples.labels, truncation=True, max_length=limit)["input_ids"]
    end = tokenizer.eos_token_id
    return _rows(encoded, [tokens if end in (None, tokens[-1]) else [*tokens[: limit - 1], end] for tokens in written])


def sources(examples: Examples, loaded: Loaded, max_length: int) -> Rows:
    """Texts for the encoder alone, as `targets` has them."""
    return _unlabelled(_for_encoder(examples, loaded, max_length)[0]["input_ids"])


def prompts(examples: Examples, loaded: Loaded, max_length: int) -> Rows:
    """Prompts without what follows them, as `continuations` has them; of a long one the end is kept."""
    tokenizer = loaded.tokenizer
    limit = longest(loaded, max_length, tokenizer.num_special_tokens_to_add())
    encoded = tokenizer(examples.texts, return_offsets_mapping=True)
    kept = []
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        tokens = list(ids)
        if len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
            tokens.pop()  # some tokenizers end each text, and this one goes on
        start = tokens[:1] if offsets[0][1] == 0 else []
        kept.append([*start, *tokens[max(len(start), len(tokens) - (limit - len(start))) :]])
    return _unlabelled(kept)


def continuations(examples: Examples, loaded: Loaded, max_length: int) -> Rows:
    """Prompts and what follows them, after a space, with an end token; only what follows has labels.

    The two are tokenised as one text. Of a row that is too long the prompt loses its beginning first, without the
    special token there.
    """
    tokenizer = loaded.tokenizer
    limit = longest(loaded, max_length, tokenizer.num_special_tokens_to_add() + 1)
    prompts = examples.texts or [""] * len(examples)
    joined = [f"{prompt} {label}".strip() for prompt, label in zip(prompts, examples.labels, strict=True)]
    encoded = tokenizer(joined, return_offsets_mapping=True)
    rows = []
    for prompt, ids, offsets in zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        tokens = list(ids)
        if tokens[-1] != tokenizer.eos_token_id:
            tokens.append(tokenizer.eos_token_id)
        begin = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), len(tokens) - 1)
        start = tokens[:1] if begin and offsets[0][1] == 0 else []
        answer = tokens[begin : begin + limit - (begin > 0)]  # the first token of all is never predicted
        room = limit - len(answer) - len(start)
        question = tokens[max(len(start), begin - room) : begin] if room > 0 else []
        known = [*start, *question]
        if len(known) + len(answer) < 2:
            raise InputError(f"{prompt!r}: expected words that the tokenizer knows after it, found none")
        rows.append({"input_ids": known + answer, "attention_mask": [1] * (len(known) + len(answer))})
        rows[-1]["labels"] = [IGNORED] * len(known) + answer
    return rows


def _for_encoder(examples: Examples, loaded: Loaded, max_length: int) -> tuple[Any, int]:
    """Texts as tokens, and how many they may be."""
    limit = longest(loaded, max_length, loaded.tokenizer.num_special_tokens_to_add())
    return loaded.tokenizer(examples.texts, truncation=True, max_length=limit), limit


def _unlabelled(tokens: list[list[int]]) -> Rows:
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens]


def _rows(encoded: Any, labels: list[Any]) -> Rows:
    return [
        {**{key: values[row] for key, values in encoded.items()}, "labels": labels[row]} for row in range(len(labels))
    ]
