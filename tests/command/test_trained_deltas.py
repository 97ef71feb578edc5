"""From `selective-peft train` to a plain checkpoint and back: what was evaluated is what a server loads."""

import numpy as np
import pytest
import torch
from commands import report_of, train
from deltafolders import WEIGHTS, all_files, json_of
from reviewfiles import reviews, write_csv
from safetensors.torch import load_file
from selective_peft import SparseDelta, data, files, loading, metrics
from transformers import AutoModelForSequenceClassification


@pytest.fixture
def held_out(tmp_path):
    return write_csv(tmp_path / "eval.csv", reviews(40, seed=1))


def quality(folder, file):
    """Metrics of a plain checkpoint, and its logits."""
    examples, _ = data.read_examples(file, files.Columns("text", "label"))
    tokenizer = loading.load(str(folder), 0, ["fresh", "rotten"]).tokenizer
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokenizer(examples.texts, padding=True, return_tensors="pt")).logits.numpy()
    return metrics.classification(logits, np.array(examples.labels)), model


@pytest.mark.parametrize("method", ["id3", "d3-repeat"])
def test_train_merge_and_serve(method, tiny_model, review_file, held_out, tmp_path, capsys):
    """The base's checkpoint has no head, and names without "bert."."""
    out, delta = tmp_path / "out", tmp_path / "out" / "delta"
    assert train(tiny_model, review_file, out, "--eval-data", held_out, method=method, steps=30) == 0
    found = json_of(capsys, "inspect", delta)
    assert (found["base_model"], found["method"]) == (tiny_model.name, method)
    assert set(found["new"]) == {"classifier.weight", "classifier.bias"}
    assert found["reverts"] == "models and checkpoints"
    json_of(capsys, "merge", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "merged")
    again, model = quality(tmp_path / "merged", held_out)
    told = report_of(out)["metrics"]["fine_tuned"]
    assert {name: told[name] for name in again} == pytest.approx(again, abs=1e-6)
    base = loading.load(str(tiny_model), 99, ["fresh", "rotten"]).model  # with another head
    SparseDelta.load(delta).apply_(base)
    for (name, param), other in zip(base.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(param, other), name
    json_of(capsys, "apply", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "applied")
    names = set(load_file(tiny_model / WEIGHTS)) | {"classifier.weight", "classifier.bias"}
    assert set(load_file(tmp_path / "applied" / WEIGHTS)) == names
    json_of(capsys, "revert", "--tuned", tmp_path / "applied", "--delta", delta, "--out", tmp_path / "back")
    assert all_files(tmp_path / "back") == all_files(tiny_model)


def test_nothing_published_says_where_things_lie(tiny_model, review_file, tmp_path):
    assert train(tiny_model, review_file, tmp_path / "out", base="pfeiffer", adapter_size=4, budget=50, steps=2) == 0
    published = all_files(tmp_path / "out")
    published.pop("metrics.json")  # which is for whoever ran it
    for name, content in published.items():
        for folder in (tiny_model.parent, tmp_path):
            assert str(folder).encode() not in content, name


def test_sizes_compose_to_the_last(tiny_model, review_file, tmp_path, capsys):
    """Deltas of growing size are of one base: the larger one decides, and wins over the smaller."""
    out = tmp_path / "out"
    assert train(tiny_model, review_file, out, "--save-at", "0.5,1.0", steps=4, budget=100) == 0
    parts = [out / "delta-0.50", out / "delta-1.00"]
    found = json_of(capsys, "compose", *parts, "--out", tmp_path / "both", "--on-conflict", "last")
    assert found["scalars"] == 100
    both, last = (SparseDelta.load(folder) for folder in (tmp_path / "both", parts[-1]))
    assert all(torch.equal(both.changes[name].values, each.values) for name, each in last.changes.items())
