"""The tasks of `selective-peft train`, each a line of one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, DataCollatorWithPadding

from selective_peft import data, encoding, loading, metrics
from selective_peft.files import Columns

Read = Callable[[Path, Columns, Sequence[str] | None, Sequence[str]], tuple[data.Examples, list[str] | None]]


@dataclass(frozen=True)
class Task:
    """What one task does differently from others.

    Attributes:
        kind: of model.
        peft: the name that PEFT has for the task.
        read: file, columns, classes that there may be, classes whose order counts -> examples and classes.
        encode: examples, model and most tokens -> rows of tokens with labels.
        collator: makes a batch of such rows.
        measure: classes -> what it is measured by.
        classes: labels are classes.
        stratified: each row has a class, whose share stays when rows are split off.
        words: texts and labels are lists of words.
        pairs: a second text is possible.
        prompt: the default of --text-column.
        unanswered: examples, model and most tokens -> rows for a model that is to write the answers.
    """

    kind: loading.Kind
    peft: str
    read: Read
    encode: Callable[[data.Examples, loading.Loaded, int], encoding.Rows]
    collator: Callable[[loading.Loaded], Any]
    measure: Callable[[Sequence[str] | None], metrics.Measure]
    classes: bool = False
    stratified: bool = False
    words: bool = False
    pairs: bool = False
    prompt: str | None = "text"
    unanswered: Callable[[data.Examples, loading.Loaded, int], encoding.Rows] | None = None


def _read_numbers(path: Path, columns: Columns, _: Any, __: Any) -> tuple[data.Examples, None]:
    return data.read_regression(path, columns), None


def _read_targets(path: Path, columns: Columns, _: Any, __: Any) -> tuple[data.Examples, None]:
    return data.read_targets(path, columns), None


def _padded(loaded: loading.Loaded) -> Any:
    return DataCollatorWithPadding(loaded.tokenizer)


def _labelled_tokens(loaded: loading.Loaded) -> Any:
    return DataCollatorForTokenClassification(loaded.tokenizer)


def _sequences(loaded: loading.Loaded) -> Any:
    return DataCollatorForSeq2Seq(loaded.tokenizer, loaded.model)


TASKS = {
    "classification": Task(
        loading.SEQUENCE,
        "SEQ_CLS",
        data.read_examples,
        encoding.texts,
        _padded,
        metrics.for_classification,
        classes=True,
        stratified=True,
        pairs=True,
    ),
    "regression": Task(
        loading.SEQUENCE, "SEQ_CLS", _read_numbers, encoding.texts, _padded, metrics.for_regression, pairs=True
    ),
    "token": Task(
        loading.TOKEN,
        "TOKEN_CLS",
        data.read_examples,
        encoding.tagged,
        _labelled_tokens,
        metrics.for_tagging,
        classes=True,
        words=True,
    ),
    "seq2seq": Task(
        loading.SEQ2SEQ,
        "SEQ_2_SEQ_LM",
        _read_targets,
        encoding.targets,
        _sequences,
        partial(metrics.for_text, ahead=0),
        unanswered=encoding.sources,
    ),
    "causal": Task(
        loading.CAUSAL,
        "CAUSAL_LM",
        _read_targets,
        encoding.continuations,
        _labelled_tokens,
        partial(metrics.for_text, ahead=1),
        prompt=None,
        unanswered=encoding.prompts,
    ),
}
# The metrics of recipes that are no task's own.
MEASURES = {"matthews": metrics.for_matthews, "f1": metrics.for_binary}
