"""--save-at: one run gives models of increasing size, each exactly the model as it was then."""

from types import SimpleNamespace

import pytest
import torch
from commands import changed, put_in, report_of, same, train
from selective_peft import SparseDelta, loading, sizes
from selective_peft.cli import main
from selective_peft.options import shares
from selective_peft.output import Output

CLASSES = ["fresh", "rotten"]
SHARES = "0.1,0.25,0.5,1.0"
FOLDERS = [f"delta-{share}" for share in ("0.10", "0.25", "0.50", "1.00")]


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
        ["analyses.png", "delta", "metrics.json", "report.png", *FOLDERS]
    )
    saved = report_of(output)["saved"]
    assert [entry["folder"] for entry in saved] == FOLDERS
    assert [entry["step"] for entry in saved] == [1, 2, 4, 8]  # 25 scalars a step; 20, 50, 100, 200 are asked for
    assert [entry["scalars"] for entry in saved] == [25, 50, 100, 200]
    for entry in saved:
        model = loading.load(str(tiny_model), 0, CLASSES).model
        then.pop()  # of this load
        put_in(model, output / entry["folder"])
        for name, param in model.named_parameters():
            assert torch.equal(param, then[entry["step"]][name]), (entry["share"], name)
        about = SparseDelta.load(output / entry["folder"]).about
        assert about.method == method
        told = {"steps": entry["step"], "selected": entry["scalars"], "share": entry["share"]}
        assert told.items() <= about.hyperparameters.items()
        assert entry["size"] == (output / entry["folder"] / "selective_delta.safetensors").stat().st_size
    assert saved[-1]["metrics"] == report_of(output)["metrics"]["fine_tuned"]
    assert same(output / "delta", output / FOLDERS[-1])


def test_saving_changes_nothing_else(tiny_model, review_file, tmp_path):
    """Evaluations draw no random numbers that dropout would have drawn."""
    for name, more in (("a", []), ("b", ["--save-at", SHARES])):
        assert train(tiny_model, review_file, tmp_path / name, *more, evaluations=3) == 0
    assert same(tmp_path / "a" / "delta", tmp_path / "b" / "delta")
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
    assert same(*(tmp_path / "out" / entry["folder"] for entry in saved[:2]))


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
    assert not (tmp_path / "out" / FOLDERS[-1]).exists()


def test_a_failure_later_on_leaves_nothing(tiny_model, review_file, tmp_path, capsys, monkeypatch):
    """Sizes that were written before it are gone, too."""
    written = []

    def saves(delta, path):
        if path.name == "delta":
            raise OSError(28, "No space left on device")
        written.append(path)
        save(delta, path)

    save = SparseDelta.save
    monkeypatch.setattr(SparseDelta, "save", saves)
    assert train(tiny_model, review_file, tmp_path / "out", "--save-at", "0.5") == 1
    assert [path.name for path in written] == [FOLDERS[2]]
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes_of_an_adapter(tiny_model, review_file, tmp_path):
    assert train(tiny_model, review_file, tmp_path / "out", "--save-at", "0.5,1", base="lora", budget=40, steps=4) == 0
    sparse, whole = changed(tmp_path / "out" / FOLDERS[2])
    assert sparse
    assert all(".lora_" in name for name in sparse)
    assert all(".modules_to_save." in name for name in whole)
    assert [entry["scalars"] for entry in report_of(tmp_path / "out")["saved"]] == [20, 40]


@pytest.mark.parametrize(("share", "budget", "scalars"), [(0.1, 300, 30), (0.1, 3, 1), (0.07, 100, 7), (1.0, 7, 7)])
def test_scalars_of_a_share(share, budget, scalars):
    """0.07 * 100 is a little more than 7 for a computer."""
    assert sizes.needed(share, budget) == scalars


@pytest.mark.parametrize(("share", "name"), [(0.1, "0.10"), (1.0, "1.00"), (0.125, "0.125"), (0.001, "0.001")])
def test_names_of_folders(share, name):
    assert sizes.folder_name(share) == f"delta-{name}"


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
    due = sizes.Sizes([0.5], optimizer, lambda _: pytest.fail("made"), Output(tmp_path / "out"))
    due(0, lambda: pytest.fail("evaluated"))
    assert due.saved == []
