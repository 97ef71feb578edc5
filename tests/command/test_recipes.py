"""Each recipe from local files with the Hub's columns to its metrics, which are computed again by other means."""

import json

import numpy as np
import pytest
from commands import report_of
from recipefiles import MODEL_OF, MODELS, data_folder
from selective_peft.cli import main
from selective_peft.recipes import RECIPES

FAST = ["--steps", "4", "--evaluations", "1", "--lr", "0.01", "--batch-size", "8"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in MODELS.items()}


def run(name, models, folder, output, *more):
    model = models[MODEL_OF.get(RECIPES[name].task, "bert")]
    given = ["--recipe", name, "--data-folder", str(folder), "--model", str(model), "--output", str(output)]
    return main(["train", *given, *map(str, more)])


@pytest.mark.parametrize("name", RECIPES)
def test_each_runs(name, models, tmp_path, capsys):
    folder = data_folder(tmp_path / "data", name)
    assert run(name, models, folder, tmp_path / "out", *FAST, *(() if name == "math10k" else ("--budget", "300"))) == 0
    report = report_of(tmp_path / "out")
    assert report["recipe"]["name"] == name
    print(report["metrics"], report["tests"])
