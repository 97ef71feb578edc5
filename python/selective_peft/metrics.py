"""How good predictions are."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

CLASSIFICATION = ("accuracy", "macro_f1")
REGRESSION = ("pearson", "spearman", "mean_squared_error")


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


def baseline(
    train_labels: list[int] | list[float], labels: list[int] | list[float], is_class: bool
) -> dict[str, float]:
    """What always the training part's most frequent class, or its mean, would reach."""
    given = np.asarray(train_labels)
    if is_class:
        counts = np.bincount(given)
        return classification(np.tile(counts, (len(labels), 1)), labels)
    return regression(np.full(len(labels), given.mean()), labels)
