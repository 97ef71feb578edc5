"""The output folder: all of it or nothing; and where the budget went, for models inside PEFT models, too."""

import os

import pytest
import torch
from selective_peft import SelectiveAdamW, results
from selective_peft.about import describe_model, public_name
from selective_peft.errors import InputError
from selective_peft.output import Output


def text(content):
    return lambda path: path.write_text(content)


def folder(path):
    (path / "deeper").mkdir(parents=True)
    (path / "deeper" / "file").write_text("x")


def test_a_new_folder_appears_at_once(tmp_path):
    target = tmp_path / "out"
    with Output(target) as output:
        staged = output.write("a.txt", text("first"))
        output.write("adapter", folder)
        assert staged.read_text() == "first"
        assert not target.exists()
        output.publish()
    assert (target / "a.txt").read_text() == "first"
    assert (target / "adapter" / "deeper" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in [target, *target.rglob("*")]}
    assert modes == {"out": 0o755, "a.txt": 0o644, "adapter": 0o755, "deeper": 0o755, "file": 0o644}


def test_an_empty_folder_is_filled_not_replaced(tmp_path):
    """It may be a mount."""
    target = tmp_path / "out"
    target.mkdir()
    number = target.stat().st_ino
    with Output(target) as output:
        output.write("a.txt", text("first"))
        output.write("adapter", folder)
        output.publish()
    assert target.stat().st_ino == number
    assert sorted(path.name for path in target.iterdir()) == ["a.txt", "adapter"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(error, exists, tmp_path):
    target = tmp_path / "out"
    if exists:
        target.mkdir()

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(error), Output(target) as output:
        output.write("a.txt", fail)
    assert list(tmp_path.rglob("*")) == ([target] if exists else [])


def test_two_runs_into_one_empty_folder_leave_the_first_one_s_files(tmp_path):
    """Both have found it empty; the second one finds out when it publishes, and takes away only its own."""
    target = tmp_path / "out"
    target.mkdir()

    def second_run():
        with Output(target) as second:
            second.write("b.txt", text("second"))
            second.write("adapter", folder)
            second.write("a.txt", text("second"))
            with Output(target) as first:
                first.write("a.txt", text("first"))
                first.write("adapter", folder)
                first.publish()
            second.publish()

    with pytest.raises(InputError, match=r"out/\w+(\.txt)?: expected nothing of this name"):
        second_run()
    assert sorted(path.name for path in target.iterdir()) == ["a.txt", "adapter"]
    assert (target / "a.txt").read_text() == "first"
    assert (target / "adapter" / "deeper" / "file").read_text() == "x"


def test_nothing_is_made_before_something_is_written(tmp_path):
    with Output(tmp_path / "out"):
        assert not list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def stepped(model, groups, **more):
    optimizer = SelectiveAdamW(groups, total_steps=1, **more)
    for number, param in enumerate(model.parameters()):
        param.grad = torch.full_like(param, 100.0**number)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("prefix", ["bert.", "base_model.model.bert."])
def test_where_the_budget_went(prefix):
    """The model's own prefix is left out, and what PEFT puts before it."""
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    words = torch.nn.Embedding(3, 2)
    model = torch.nn.Module()
    inner = model
    for part in prefix.strip(".").split("."):
        inner.add_module(part, torch.nn.Module())
        inner = inner.get_submodule(part)
    inner.add_module("words", words)
    inner.add_module("layer", layers)
    model.base_model_prefix = "bert"
    optimizer = stepped(model, model.named_parameters(), budget=5)
    counts = results.where(model, optimizer)
    assert sum(sum(by_layer.values()) for by_layer in counts.values()) == 5
    assert counts["words"] == {"": 0}
    assert counts["layer.*"] == {"0": 1, "1": 4}


def test_where_all_is_trained():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    optimizer = stepped(model, [{"params": list(model.named_parameters()), "selective": False}], method="full")
    assert sum(results.where(model, optimizer)["0"].values()) == 8


def test_what_a_base_is_called(tmp_path, monkeypatch):
    """A name on the Hub as it is; a folder's own name, not where it lies; what is given is kept."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    names = {
        "org/model": "org/model",
        "": "",
        "mine": "mine",
        "./mine": "mine",
        "mine/../link": "link",
        str(tmp_path / "mine"): "mine",
        str(tmp_path / "link") + "/": "link",
        "/not/there": "there",
        ".": tmp_path.name,
    }
    assert {name: public_name(name) for name in names} == names
    model = torch.nn.Linear(2, 2)
    model.config = type("Config", (), {"_name_or_path": str(tmp_path / "mine"), "_commit_hash": None})()
    assert describe_model(model, None, None) == {"base_model": "mine", "base_revision": "", "model_config": None}
    assert describe_model(model, "mine/x", "abc")["base_model"] == "mine/x"
    model.config._name_or_path = "org/model"
    model.config._commit_hash = "abc"
    told = describe_model(model, None, None)
    assert (told["base_model"], told["base_revision"]) == ("org/model", "abc")


@pytest.mark.parametrize("exists", [False, True])
def test_files_get_the_mode_that_new_files_get(exists, tmp_path):
    """Who keeps new files private keeps these private, too."""
    folder = tmp_path / "out"
    before = os.umask(0o077)
    try:
        if exists:
            folder.mkdir()
        with Output(folder) as output:
            output.write("inner/file", lambda path: path.write_text("x"))
            output.publish()
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "inner", folder / "inner" / "file")]
    assert modes == [0o700, 0o700, 0o600]
