"""Running `selective-peft train` in tests, and putting what it saved into fresh models."""

import json

import torch
from selective_peft import SparseDelta
from selective_peft.cli import main

FAST = {"--steps": 6, "--batch-size": 8, "--evaluations": 1, "--lr": 0.01, "--budget": 300}


def train(model, file, output, *more, **changed):
    """The exit code; `changed` are options like FAST's, None leaves one out."""
    given = {**FAST, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    command = ["train", "--model", str(model), "--data", str(file), "--output", str(output), *options]
    return main([*command, *map(str, more)])


def report_of(output):
    return json.loads((output / "metrics.json").read_text())


def put_in(model, folder):
    """The trained model of its base; every value finds its place, or this fails."""
    SparseDelta.load(folder).apply_(model)
    return model.eval()


def changed(folder):
    """Tensors of a delta: name -> offsets of what is changed one by one; and the names of those replaced whole."""
    changes = SparseDelta.load(folder).changes
    sparse = {name: each.indices.tolist() for name, each in changes.items() if not each.is_whole}
    return sparse, {name for name, each in changes.items() if each.is_whole}


def same(first, second):
    """Whether two deltas change the same to the same."""
    a, b = (SparseDelta.load(folder).changes for folder in (first, second))
    return changed(first) == changed(second) and all(torch.equal(a[name].values, b[name].values) for name in a)
