"""How good predictions are: what each task is measured by."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from seqeval.metrics import f1_score as entity_f1
from seqeval.metrics import precision_score, recall_score
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

CLASSIFICATION = ("accuracy", "macro_f1")
MATTHEWS = ("matthews", "accuracy")
BINARY = ("f1", "accuracy")
REGRESSION = ("pearson", "spearman", "mean_squared_error")
ENTITIES = ("entity_f1", "precision", "recall", "accuracy")
TEXT = ("perplexity", "token_accuracy", "exact_match")
IGNORED = -100  # label of a token that does not count, as in transformers
IOB = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class Measure:
    """What a task is measured by.

    Attributes:
        names: of the metrics, the one to draw first.
        reduce: a model's outputs and labels of a batch -> what is kept of them until all batches are done.
        compute: what was kept, and labels -> metrics.
        constant: labels of training and of evaluation rows -> metrics of the best constant answer; None where there
            is no such answer.
    """

    names: tuple[str, ...]
    reduce: Callable[[Any, Tensor], Tensor]
    compute: Callable[[Any, Any], dict[str, float]]
    constant: Callable[[list[Any], list[Any]], dict[str, float]] | None = None


def classification(logits: Any, labels: Any) -> dict[str, float]:
    """Accuracy and the unweighted mean of the classes' F1.

    Args:
        logits: float array, shape (rows, classes).
        labels: integer array, shape (rows,).
    """
    answers = np.argmax(logits, axis=-1)
    return {
        "accuracy": float(accuracy_score(labels, answers)),
        "macro_f1": float(f1_score(labels, answers, average="macro", zero_division=0)),
    }


def matthews(logits: Any, labels: Any) -> dict[str, float]:
    """Matthews' correlation (0 where it does not exist) and accuracy; arguments as of `classification`."""
    answers = np.argmax(logits, axis=-1)
    return {
        "matthews": float(matthews_corrcoef(labels, answers)),
        "accuracy": float(accuracy_score(labels, answers)),
    }


def binary(logits: Any, labels: Any) -> dict[str, float]:
    """F1 of the second of two classes, and accuracy; arguments as of `classification`."""
    answers = np.argmax(logits, axis=-1)
    return {
        "f1": float(f1_score(labels, answers, zero_division=0)),
        "accuracy": float(accuracy_score(labels, answers)),
    }


def regression(predictions: Any, labels: Any) -> dict[str, float]:
    """Pearson's and Spearman's correlation (0 for constant predictions, where they do not exist) and the mean square.

    All are NaN if a prediction is not finite.

    Args:
        predictions, labels: float arrays with one item per row.
    """
    x, y = np.asarray(predictions, dtype=np.float64).reshape(-1), np.asarray(labels, dtype=np.float64).reshape(-1)
    if not np.isfinite(x).all():
        return dict.fromkeys(REGRESSION, float("nan"))
    constant = np.ptp(x) == 0.0 or np.ptp(y) == 0.0
    return {
        "pearson": 0.0 if constant else float(stats.pearsonr(x, y).statistic),
        "spearman": 0.0 if constant else float(stats.spearmanr(x, y).statistic),
        "mean_squared_error": float(np.mean((x - y) ** 2)),
    }


def tagging(answers: Any, labels: Any, classes: Sequence[str]) -> dict[str, float]:
    """Of words with one tag each: entities found (as conlleval counts them) if the tags are IOB, else of single tags.

    Args:
        answers, labels: class numbers, one sequence per row; where a label is `IGNORED` nothing counts.
        classes: names of the classes.
    """
    kept = [
        [(int(a), int(b)) for a, b in zip(answer, label, strict=True) if b != IGNORED]
        for answer, label in zip(answers, labels, strict=True)
    ]
    found, given = ([pair[side] for row in kept for pair in row] for side in (0, 1))
    accuracy = float(accuracy_score(given, found))
    if not is_iob(classes):
        return {"accuracy": accuracy, "macro_f1": float(f1_score(given, found, average="macro", zero_division=0))}
    named = [[[classes[pair[side]] for pair in row] for row in kept] for side in (1, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, for a part without any entity
        scores = [float(each(*named, zero_division=0)) for each in (entity_f1, precision_score, recall_score)]
    return dict(zip(ENTITIES, [*scores, accuracy], strict=True))


def is_iob(classes: Sequence[str]) -> bool:
    """Whether tags mark entities: O, B-name and I-name, with one entity at least."""
    return all(map(IOB.fullmatch, classes)) and any(name != "O" for name in classes)


def text(counts: Any, _: Any = None) -> dict[str, float]:
    """Perplexity, share of tokens and share of rows that are predicted right from the true tokens before them.

    A row counts as right if each of its tokens is the most probable one: then greedy decoding writes just this text.

    Args:
        counts: float array, shape (rows, 3): negative log-likelihood, tokens, those predicted right; see `text_counts`.
    """
    loss, tokens, right = np.asarray(counts, dtype=np.float64).T
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(loss.sum() / tokens.sum()))
    values = perplexity, float(right.sum() / tokens.sum()), float(np.mean(right == tokens))
    return dict(zip(TEXT, values, strict=True))


def text_counts(outputs: Any, labels: Tensor, ahead: int) -> Tensor:
    """Negative log-likelihood, number of tokens and of tokens predicted right, of each row, float32, shape (rows, 3).

    Args:
        outputs: logits, shape (rows, tokens, words), or a tuple that begins with them.
        labels: shape (rows, tokens), with `IGNORED` where nothing counts.
        ahead: by how many tokens labels lie ahead of the logits that predict them: 1 for causal models, else 0.
    """
    logits, labels = first(outputs)[:, : labels.shape[1] - ahead], labels[:, ahead:]
    loss = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    right = (logits.argmax(-1) == labels) & (labels != IGNORED)
    return torch.stack([loss.sum(1), (labels != IGNORED).sum(1).float(), right.sum(1).float()], dim=1)


def first(outputs: Any, _: Any = None) -> Tensor:
    """The logits of outputs that may hold more than these."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


def _constant_class(
    train_labels: list[Any], labels: list[Any], compute: Callable[[Any, Any], dict[str, float]]
) -> dict[str, float]:
    return compute(np.tile(np.bincount(train_labels), (len(labels), 1)), labels)


def _constant_number(train_labels: list[Any], labels: list[Any]) -> dict[str, float]:
    return regression(np.full(len(labels), np.mean(train_labels)), labels)


def _constant_tag(train_labels: list[Any], labels: list[Any], classes: Sequence[str]) -> dict[str, float]:
    counts = np.bincount([tag for row in train_labels for tag in row if tag != IGNORED])
    return tagging([[int(counts.argmax())] * len(row) for row in labels], labels, classes)


def for_classification(_: Sequence[str] | None) -> Measure:
    """Of texts with one class each."""
    return _for_classes(CLASSIFICATION, classification)


def for_matthews(_: Sequence[str] | None) -> Measure:
    """Of texts with one class each, by Matthews' correlation."""
    return _for_classes(MATTHEWS, matthews)


def for_binary(_: Sequence[str] | None) -> Measure:
    """Of texts with one of two classes each, by the F1 of the second one."""
    return _for_classes(BINARY, binary)


def _for_classes(names: tuple[str, ...], compute: Callable[[Any, Any], dict[str, float]]) -> Measure:
    return Measure(names, first, compute, partial(_constant_class, compute=compute))


def for_regression(_: Sequence[str] | None) -> Measure:
    """Of texts with a number each."""
    return Measure(REGRESSION, first, regression, _constant_number)


def for_tagging(classes: Sequence[str] | None) -> Measure:
    """Of words with a tag each; `classes` are the tags."""
    assert classes is not None
    return Measure(
        ENTITIES if is_iob(classes) else CLASSIFICATION,
        lambda outputs, _: first(outputs).argmax(-1),
        partial(tagging, classes=classes),
        partial(_constant_tag, classes=classes),
    )


def for_text(_: Sequence[str] | None, ahead: int) -> Measure:
    """Of texts to write; see `text_counts`."""
    return Measure(TEXT, partial(text_counts, ahead=ahead), text)
