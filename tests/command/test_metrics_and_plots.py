"""Metrics against their definitions, and what the map in the picture counts."""

import numpy as np
import pytest
from selective_peft import metrics, plots, results


def test_classification_by_hand():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    found = metrics.classification(logits, np.array([0, 0, 0, 1]))
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_regression_by_hand():
    found = metrics.regression(np.array([[1.0], [2.0], [10.0]]), np.array([1.0, 3.0, 4.0]))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 10], [1, 3, 4])[0, 1])
    assert found["mean_squared_error"] == pytest.approx((0 + 1 + 36) / 3)
    assert metrics.regression(np.ones(3), np.array([1.0, 2.0, 3.0]))["spearman"] == 0.0


def test_regression_of_nan_is_nan():
    assert np.isnan(list(metrics.regression(np.array([1.0, np.nan]), np.array([1.0, 2.0])).values())).all()


def test_baselines_answer_what_training_had_most_of():
    classes, numbers = metrics.for_classification(None).constant, metrics.for_regression(None).constant
    assert classes([1, 1, 0], [1, 0, 0, 1])["accuracy"] == 0.5
    assert classes([2, 2, 0], [2, 2, 2, 1])["accuracy"] == 0.75
    assert numbers([1.0, 3.0], [2.0, 4.0])["mean_squared_error"] == 2.0


def test_map_adds_up_and_orders():
    where = {f"m{i}": {"0": i, "10": 2 * i, "2": 0} for i in range(30)} | {"embeddings": {"": 1000}}
    rows, layers, counts = plots.budget_map(where)
    assert layers == ["", "0", "2", "10"]
    assert rows[0] == "embeddings"
    assert rows[1] == "m29"
    assert rows[-1] == "others (18)"
    assert counts.shape == (plots.MODULES, 4)
    assert counts.sum() == 1000 + 3 * sum(range(30))
    assert counts[1].tolist() == [0, 29, 0, 58]


def test_json_has_no_nan(tmp_path):
    results.write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": "é"}})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").split() == (
        ["{", '"a":', "null,", '"b":', "[", "1.0,", "null", "],", '"c":', "{", '"d":', '"é"', "}", "}"]
    )
