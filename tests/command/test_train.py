"""`selective-peft train` from the command line to the files: every task, every kind of bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import changed, put_in, same
from PIL import Image
from reviewfiles import reviews, write_csv
from selective_peft import SparseDelta, data, files, loading, metrics
from selective_peft.cli import main

# A shell may start tests with SIGINT ignored, which their processes would inherit.
START = (
    "import signal, sys; from selective_peft.cli import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
)
STEPS = 150  # enough to learn which words are good
FAST = ["--steps", "12", "--batch-size", "8", "--evaluations", "2", "--lr", "0.01", "--budget", "300"]


def train(tiny_model, file, output, *more):
    return main(
        ["train", "--model", str(tiny_model), "--data", str(file), "--output", str(output), *FAST, *map(str, more)]
    )


def rebuilt(model, saved, classes):
    """A fresh copy of the base model, whose head is another one, with the delta put in."""
    loaded = loading.load(str(model), 99, classes)
    put_in(loaded.model, saved)
    return loaded


def quality(loaded, examples, measure):
    encoded = loaded.tokenizer(examples.texts, examples.pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        return measure(loaded.model.eval()(**encoded).logits.numpy(), np.array(examples.labels))


def test_classification_files_hold_what_was_trained(tiny_model, review_file, tmp_path, capsys):
    held_out = write_csv(tmp_path / "eval.csv", reviews(40, seed=1))
    output = tmp_path / "out"
    assert train(tiny_model, review_file, output, "--eval-data", held_out, "--steps", STEPS) == 0
    written = ["analyses.png", "delta", "metrics.json", "report.png"]
    assert sorted(path.name for path in output.iterdir()) == written
    report = json.loads((output / "metrics.json").read_text())
    examples, classes = data.read_examples(held_out, files.Columns("text", "label"))
    assert report["classes"] == classes == ["fresh", "rotten"]
    assert report["selected"] == 300 == sum(report["selected_per_step"])
    assert len(report["selected_per_step"]) == STEPS
    assert sum(sum(layers.values()) for layers in report["budget_by_module_and_layer"].values()) == 300
    found = quality(rebuilt(tiny_model, output / "delta", classes), examples, metrics.classification)
    for name in metrics.CLASSIFICATION:
        assert found[name] == pytest.approx(report["metrics"]["fine_tuned"][name], abs=1e-6)
    assert report["metrics"]["constant_answer"]["accuracy"] == 0.5
    assert report["metrics"]["fine_tuned"]["accuracy"] > 0.8
    assert {"eval_accuracy", "loss"} <= {key for entry in report["history"] for key in entry}
    assert all(seconds > 0 for seconds in report["seconds_per_step"].values())
    sparse, whole = changed(output / "delta")
    assert sum(map(len, sparse.values())) == 300
    assert whole == {"classifier.weight", "classifier.bias"}
    with Image.open(output / "report.png") as picture:
        assert picture.size[0] > 800
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10
    printed = capsys.readouterr().out
    assert "fine tuned" in printed
    assert "300 (" in printed
    assert "selection, ms per step" in printed


def counting(load, passes):
    """`load`, whose model notes the second texts' tokens of each training pass."""

    def loads(*arguments):
        loaded = load(*arguments)
        loaded.model.register_forward_pre_hook(
            lambda model, _, given: passes.append(given["input_ids"]) if model.training else None, with_kwargs=True
        )
        return loaded

    return loads


def test_text_pairs_groups_and_accumulation(tiny_model, review_file, tmp_path, monkeypatch):
    output = tmp_path / "out"
    passes = []
    monkeypatch.setattr(loading, "load", counting(loading.load, passes))
    more = ["--text-pair-column", "other", "--group-column", "film", "--eval-share", "0.25", "--accumulation", "2"]
    more += [
        "--method",
        "d3-static",
        "--bias-correction",
        "per_entry",
        "--max-grad-norm",
        "1.0",
    ]
    assert train(tiny_model, review_file, output, *more) == 0
    report = json.loads((output / "metrics.json").read_text())
    assert report["selected_per_step"] == [300] + [0] * 11
    assert report["evaluation_rows_seen_in_training"] == 0
    assert len(passes) == 2 * 12
    _, classes = data.read_examples(review_file, files.Columns("text", "label"))
    alone = loading.load(str(tiny_model), 0, classes).tokenizer([row["text"] for row in reviews(120)])["input_ids"]
    assert max(tokens.shape[1] for tokens in passes) == 1 + max(map(len, alone))


def test_regression(tiny_model, review_file, tmp_path):
    held_out = write_csv(tmp_path / "eval.csv", reviews(40, seed=1))
    output = tmp_path / "out"
    more = ["--task", "regression", "--label-column", "stars", "--eval-data", held_out, "--steps", STEPS]
    assert train(tiny_model, review_file, output, *more) == 0
    report = json.loads((output / "metrics.json").read_text())
    examples = data.read_regression(held_out, files.Columns("text", "stars"))
    found = quality(rebuilt(tiny_model, output / "delta", None), examples, metrics.regression)
    for name in metrics.REGRESSION:
        assert found[name] == pytest.approx(report["metrics"]["fine_tuned"][name], rel=1e-4, abs=1e-5)
    assert report["metrics"]["fine_tuned"]["spearman"] > 0.6
    assert report["metrics"]["constant_answer"]["pearson"] == 0.0


def test_texts_longer_than_the_model_takes(tiny_model, tmp_path):
    """A tokenizer that knows no limit does not make the model look up positions that it does not have."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    file = write_csv(tmp_path / "long.csv", [{**row, "text": row["text"] + " film" * 100} for row in reviews(40)])
    assert train(folder, file, tmp_path / "out") == 0


def test_the_command_is_a_module_too():
    done = subprocess.run(
        [sys.executable, "-m", "selective_peft", "--help"], capture_output=True, text=True, check=True
    )
    assert "selective-peft" in done.stdout


def test_the_same_seed_gives_the_same_files(tiny_model, review_file, tmp_path):
    for name in ("a", "b"):
        assert train(tiny_model, review_file, tmp_path / name, "--precision", "bf16") == 0
    assert same(tmp_path / "a" / "delta", tmp_path / "b" / "delta")
    first, second = (tmp_path / name / "delta" / "selective_delta.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_model_that_has_its_head_keeps_all_of_it_selective(tiny_model, review_file, tmp_path):
    loaded = loading.load(str(tiny_model), 0, ["fresh", "rotten"])
    assert loaded.new == {"classifier.weight", "classifier.bias"}
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    assert loading.load(str(tmp_path / "model"), 0, ["fresh", "rotten"]).new == frozenset()
    assert train(tmp_path / "model", review_file, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["trained_whole"] == 0


def bad_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{")
    return path


# arguments besides the good ones (which come first), and what the message says
BAD = {
    "missing column": (["--label-column", "nowhere"], "expected a column 'nowhere', found 'text', "),
    "missing file": (["--data", "none.csv"], "expected a CSV or JSONL file"),
    "missing evaluation file": (["--eval-data", "none.csv"], "expected a CSV or JSONL file"),
    "budget above the model": (["--budget", "99999999"], "budget: expected "),
    "no such model": (["--model", "./nowhere"], "--model ./nowhere: cannot be loaded ("),
    "fp16 without a GPU": (["--precision", "fp16"], "--precision fp16: expected a GPU"),
    "score": (["--score-exp", "nan"], "exp: expected "),
    "eps underflows": (["--score-eps", "1e-30"], "eps: expected "),
}
USAGE = {  # what argparse itself refuses
    "no command": [],
    "unknown command": ["tune"],
    "no model": ["train"],
    "budget zero": ["--budget", "0"],
    "budget share": ["--budget", "120%"],
    "budget word": ["--budget", "half"],
    "share of one": ["--eval-share", "1.0"],
    "negative lr": ["--lr", "-1"],
    "nan lr": ["--lr", "nan"],
    "no steps": ["--steps", "0"],
    "steps and epochs": ["--steps", "3", "--epochs", "1"],
    "unknown schedule": ["--schedule", "zigzag"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, tiny_model, review_file, tmp_path, capsys, monkeypatch):
    if name == "fp16 without a GPU":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    more, message = BAD[name]
    assert train(tiny_model, review_file, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("selective-peft: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unreadable_models(tiny_model, review_file, tmp_path, capsys):
    """A broken configuration, broken weights, weights that are a pickle."""
    broken, pickled = tmp_path / "weights", tmp_path / "pickled"
    for folder in (broken, pickled):
        folder.mkdir()
        for path in tiny_model.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    torch.save({}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder in (bad_folder(tmp_path / "config"), broken, pickled):
        assert train(folder, review_file, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"selective-peft: --model {folder}: cannot be loaded (")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", USAGE)
def test_usage_errors_end_with_2(name, tmp_path, capsys):
    good = ["train", "--model", "m", "--data", "d.csv", "--output", str(tmp_path / "out")]
    given = USAGE[name]
    with pytest.raises(SystemExit) as caught:
        main(good + given if given[:1] and given[0].startswith("--") else given)
    assert caught.value.code == 2
    assert "usage: selective-peft" in capsys.readouterr().err


def test_a_full_output_folder_is_left_alone(tiny_model, review_file, tmp_path, capsys):
    (tmp_path / "precious").write_text("x")
    assert train(tiny_model, review_file, tmp_path) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert train(tiny_model, review_file, tmp_path / "no" / "parent") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_group_on_both_sides_is_refused(tiny_model, review_file, tmp_path, capsys):
    more = ["--eval-data", write_csv(tmp_path / "eval.csv", reviews(20)), "--group-column", "film"]
    assert train(tiny_model, review_file, tmp_path / "out", *more) == 2
    assert "found 4 of them, such as 'film 0'" in capsys.readouterr().err


def test_a_failure_while_writing_leaves_nothing(tiny_model, review_file, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SparseDelta, "save", full)
    assert train(tiny_model, review_file, tmp_path / "out") == 1
    assert "train failed: [Errno 28] No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1), (signal.SIGTERM, 1)]
)
def test_a_killed_run_leaves_no_file(number, code, tiny_model, review_file, tmp_path):
    command = [sys.executable, "-c", START]
    command += ["train", "--model", str(tiny_model), "--data", str(review_file), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--steps", "100000", "--budget", "300"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    seen = ""
    while "/100000" not in seen:  # the progress bar of the training itself
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    time.sleep(0.2)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in rest
    if code == 1:
        assert "interrupted; nothing was written" in rest
    assert not list(tmp_path.iterdir())
