"""--save-at: one run gives models of increasing size, each exactly the model as it was then."""

from types import SimpleNamespace

import pytest
import torch
from commands import put_in, report_of, train
from safetensors import safe_open
from safetensors.torch import load_file
from selective_peft import loading, results, sizes
from selective_peft.cli import main
from selective_peft.options import shares

CLASSES = ["fresh", "rotten"]
SHARES = "0.1,0.25,0.5,1.0"
FILES = [f"selected-{share}.safetensors" for share in ("0.10", "0.25", "0.50", "1.00")]


@pytest.fixture
def then(monkeypatch):
    """Copies of the trained model's parameters, taken after each step; `then[0]` is before training."""
    copies, models = [], []

    def loads(*arguments):
        loaded = load(*arguments)
        models.append(loaded.model)
        copies.append(copied(loaded.model))
        return loaded

    def call(self, step, evaluate):
        copies.append(copied(models[0]))
        saves(self, step, evaluate)
        assert all(
            torch.equal(new, old) for new, old in zip(copied(models[0]).values(), copies[-1].values(), strict=True)
        )

    load, saves = loading.load, sizes.Sizes.__call__
    monkeypatch.setattr(loading, "load", loads)
    monkeypatch.setattr(sizes.Sizes, "__call__", call)
    return copies


def copied(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


@pytest.mark.parametrize("method", ["id3", "gradient", "pafi-increment"])
def test_each_file_is_the_model_as_it_was(method, tiny_model, review_file, tmp_path, then):
    output = tmp_path / "out"
    assert train(tiny_model, review_file, output, "--save-at", SHARES, steps=8, budget=200, method=method) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["analyses.png", "metrics.json", "report.png", "selected.safetensors", *FILES]
    )
    saved = report_of(output)["saved"]
    assert [entry["file"] for entry in saved] == FILES
    assert [entry["step"] for entry in saved] == [1, 2, 4, 8]  # 25 scalars a step; 20, 50, 100, 200 are asked for
    assert [entry["scalars"] for entry in saved] == [25, 50, 100, 200]
    for entry in saved:
        model = loading.load(str(tiny_model), 0, CLASSES).model
        then.pop()  # of this load
        put_in(model, output / entry["file"])
        for name, param in model.named_parameters():
            assert torch.equal(param, then[entry["step"]][name]), (entry["share"], name)
        with safe_open(output / entry["file"], "pt") as file:
            about = file.metadata()
        assert (about["step"], about["selected"], about["method"]) == (
            str(entry["step"]),
            str(entry["scalars"]),
            method,
        )
        assert float(about["share"]) == entry["share"]
        assert entry["size"] == (output / entry["file"]).stat().st_size
    assert saved[-1]["metrics"] == report_of(output)["metrics"]["fine_tuned"]
    whole, last = load_file(output / "selected.safetensors"), load_file(output / FILES[-1])
    assert whole.keys() == last.keys()
    assert all(torch.equal(whole[key], last[key]) for key in whole)


def test_saving_changes_nothing_else(tiny_model, review_file, tmp_path):
    """Evaluations draw no random numbers that dropout would have drawn."""
    for name, more in (("a", []), ("b", ["--save-at", SHARES])):
        assert train(tiny_model, review_file, tmp_path / name, *more, evaluations=3) == 0
    first, second = (load_file(tmp_path / name / "selected.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    histories = [report_of(tmp_path / name)["history"] for name in "ab"]
    losses = [[(entry["step"], entry["loss"]) for entry in history if "loss" in entry] for history in histories]
    assert losses[0] == losses[1]
    assert [len(history) for history in histories] == [10, 10]  # six steps, three evaluations, the end


def test_metrics_are_of_that_step(tiny_model, review_file, tmp_path):
    """As the Trainer's own evaluations after the same steps."""
    assert train(tiny_model, review_file, tmp_path / "out", "--save-at", "0.5,1", evaluations=2, steps=8) == 0
    report = report_of(tmp_path / "out")
    logged = {entry["step"]: entry["eval_loss"] for entry in report["history"] if "eval_loss" in entry}
    assert {entry["step"]: entry["metrics"]["loss"] for entry in report["saved"]} == logged


def test_several_shares_in_one_step(tiny_model, review_file, tmp_path):
    assert train(tiny_model, review_file, tmp_path / "out", "--save-at", "0.1,0.2,0.9", steps=2, budget=100) == 0
    saved = report_of(tmp_path / "out")["saved"]
    assert [(entry["step"], entry["scalars"]) for entry in saved] == [(1, 50), (1, 50), (2, 100)]
    first, second = (load_file(tmp_path / "out" / entry["file"]) for entry in saved[:2])
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_share_that_is_never_reached(tiny_model, review_file, tmp_path, capsys):
    """Too few scalars have a gradient: words that no text has stay at zero."""
    more = ["--save-at", "0.1,1.0", "--exclude", "encoder", "pooler", "LayerNorm"]
    assert train(tiny_model, review_file, tmp_path / "out", *more, budget=0.99, steps=4) == 0
    report = report_of(tmp_path / "out")
    assert [entry["reached"] for entry in report["saved"]] == [True, False]
    assert report["saved"][1] == {"share": 1.0, "reached": False}
    printed = " ".join(capsys.readouterr().out.split())
    assert "not reached" in printed
    assert f"--save-at 1.0: not reached, {report['selected']:,} of " in printed
    assert not (tmp_path / "out" / FILES[-1]).exists()


def test_a_failure_later_on_leaves_nothing(tiny_model, review_file, tmp_path, capsys, monkeypatch):
    """Sizes that were written before it are gone, too."""
    written = []

    def writes(path, values, about):
        if path.name == "selected.safetensors":
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, values, about)

    write = results.write_values
    monkeypatch.setattr(results, "write_values", writes)
    assert train(tiny_model, review_file, tmp_path / "out", "--save-at", "0.5") == 1
    assert [path.name for path in written] == [FILES[2]]
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes_of_an_adapter(tiny_model, review_file, tmp_path):
    assert train(tiny_model, review_file, tmp_path / "out", "--save-at", "0.5,1", base="lora", budget=40, steps=4) == 0
    names = set(load_file(tmp_path / "out" / FILES[2]))
    assert names
    assert all(".lora_" in name or ".modules_to_save." in name for name in names)
    assert [entry["scalars"] for entry in report_of(tmp_path / "out")["saved"]] == [20, 40]


@pytest.mark.parametrize(("share", "budget", "scalars"), [(0.1, 300, 30), (0.1, 3, 1), (0.07, 100, 7), (1.0, 7, 7)])
def test_scalars_of_a_share(share, budget, scalars):
    """0.07 * 100 is a little more than 7 for a computer."""
    assert sizes.needed(share, budget) == scalars


@pytest.mark.parametrize(("share", "name"), [(0.1, "0.10"), (1.0, "1.00"), (0.125, "0.125"), (0.001, "0.001")])
def test_names_of_files(share, name):
    assert sizes.file_name(share) == f"selected-{name}.safetensors"


@pytest.mark.parametrize("given", ["", "0", "0.5,0.1", "0.5,0.5", "1.1", "-0.1", "half", "0.1,,1", "nan", "10%"])
def test_refused_shares(given, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--model", "m", "--data", "d.csv", "--output", "o", f"--save-at={given}"])
    assert "expected ascending shares > 0 and <= 1" in capsys.readouterr().err


def test_shares():
    assert shares("0.1,0.25,0.5,1.0") == [0.1, 0.25, 0.5, 1.0]
    assert shares("1") == [1.0]


def test_nothing_is_due_before_the_first_step(tmp_path):
    """The budget of a share is known from the first step on."""
    optimizer = SimpleNamespace(num_selected=0, budget=None)
    due = sizes.Sizes([0.5], None, optimizer, frozenset(), results.Output(tmp_path / "out"), {})
    due(0, lambda: pytest.fail("evaluated"))
    assert due.saved == []
