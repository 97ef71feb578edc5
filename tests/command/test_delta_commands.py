"""`selective-peft compose`, `diff`, `apply`, `revert` and `merge` from the command line to the files."""

import pytest
import torch
from deltafolders import (
    FILE,
    WEIGHTS,
    all_files,
    json_of,
    pair,
    ran,
    refused,
    tuned_weights,
    write_delta,
    write_model,
)
from safetensors.torch import load_file
from selective_peft import SparseDelta, compose, delta_options
from selective_peft.cli import main, parser


@pytest.fixture
def base(tiny_model):
    return load_file(tiny_model / WEIGHTS)


@pytest.fixture
def tuned(base):
    return tuned_weights(base, 1)


@pytest.fixture
def delta(tmp_path, base, tuned):
    return write_delta(tmp_path / "delta", base, tuned)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_changes(a, b):
    return a.changes.keys() == b.changes.keys() and all(
        torch.equal(a.changes[name].values, b.changes[name].values)
        and (a.changes[name].is_whole or torch.equal(a.changes[name].indices, b.changes[name].indices))
        for name in a.changes
    )


# ---------------------------------------------------------------------- checkpoints


def test_there_and_back(tiny_model, delta, tuned, tmp_path, capsys):
    """apply gives the tuned weights beside copies of all other files; revert gives the base's files, byte for byte."""
    found = json_of(capsys, "apply", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / WEIGHTS), tuned)
    assert found["command"] == "apply"
    assert (found["base"], found["deltas"], found["out"]) == (str(tiny_model), [str(delta)], str(tmp_path / "out"))
    assert (found["checked"], found["conflicts"], found["added"]) == (True, 0, ["classifier.weight"])
    assert set(found["changed"]) == set(SparseDelta.load(delta).changes) - {"classifier.weight"}
    assert found["nbytes"] == (tmp_path / "out" / WEIGHTS).stat().st_size
    assert found["seconds"] > 0
    before, after = all_files(tiny_model), all_files(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {WEIGHTS}
    more = ["--tuned", tmp_path / "out", "--delta", delta, "--out", tmp_path / "back"]
    assert json_of(capsys, "revert", *more)["removed"] == ["classifier.weight"]
    assert all_files(tmp_path / "back") == before


def test_merge_and_diff(tiny_model, delta, tuned, tmp_path, capsys):
    found = json_of(capsys, "merge", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "merged")
    assert found["command"] == "merge"
    assert equal(load_file(tmp_path / "merged" / WEIGHTS), tuned)
    (tmp_path / "again").mkdir()  # an empty folder is as good as none
    given = ["--base", tiny_model, "--tuned", tmp_path / "merged", "--out", tmp_path / "again"]
    found = json_of(capsys, "diff", *given, "--base-model", "org/tiny", "--base-revision", "abc")
    again, first = SparseDelta.load(tmp_path / "again"), SparseDelta.load(delta)
    assert same_changes(again, first)
    assert again.fingerprint == first.fingerprint == found["fingerprint"]
    assert (again.about.base_model, again.about.base_revision, again.about.method) == ("org/tiny", "abc", "diff")
    assert (found["scalars"], found["whole"]) == (75, {"classifier.weight": 64})
    assert found["file_bytes"] == (tmp_path / "again" / FILE).stat().st_size
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "README.md",
        "selective_config.json",
        FILE,
    ]
    assert str(tiny_model) not in (tmp_path / "again" / "README.md").read_text()


def test_options_of_diff(tiny_model, tuned, tmp_path, capsys):
    tuned = {name: tensor for name, tensor in tuned.items() if name != "pooler.dense.bias"}
    other = write_model(tmp_path / "tuned", tiny_model, tuned)
    given = ["diff", "--base", tiny_model, "--tuned", other]
    refused(capsys, "pooler.dense.bias is missing", *given, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    given += ["--allow-missing"]
    found = json_of(capsys, *given, "--whole-above", 0.02, "--no-originals", "--out", tmp_path / "a")
    assert set(found["whole"]) == {"classifier.weight", "encoder.layer.1.output.dense.bias", "pooler.dense.weight"}
    assert found["originals"] is False
    loaded = SparseDelta.load(tmp_path / "a")
    assert not any(change.originals is not None for change in loaded.changes.values())
    assert loaded.about.base_model == "tiny"
    assert json_of(capsys, *given, "--compact", "--whole-above", 1, "--out", tmp_path / "b")["scalars"] == 75
    assert SparseDelta.load(tmp_path / "b").changes["pooler.dense.weight"].originals is not None
    with pytest.raises(SystemExit):
        main([*map(str, given), "--out", str(tmp_path / "c"), "--whole-above", "1.1"])
    assert "expected a share from 0 to 1, got 1.1" in capsys.readouterr().err


def test_equal_checkpoints(tiny_model, tmp_path, capsys):
    code, out, _ = ran(capsys, "diff", "--base", tiny_model, "--tuned", tiny_model, "--out", tmp_path / "d")
    assert code == 0
    assert "The two are equal, bit for bit" in out
    assert SparseDelta.load(tmp_path / "d").changes == {}


def test_several_deltas_are_composed_first(tiny_model, base, tmp_path, capsys):
    a, b = pair(tmp_path, tiny_model)
    given = ["merge", "--base", tiny_model, "--delta", a, b, "--out", tmp_path / "out"]
    refused(capsys, "--on-conflict first or last decides", *given)
    assert not (tmp_path / "out").exists()
    found = json_of(capsys, *given, "--on-conflict", "last")
    first, second = (tuned_weights(base, seed, head=False) for seed in (1, 2))
    expected = {name: torch.where(second[name] != base[name], second[name], first[name]) for name in base}
    assert equal(load_file(tmp_path / "out" / WEIGHTS), expected)
    assert found["conflicts"] == sum(
        int(((first[name] != base[name]) & (second[name] != base[name])).sum()) for name in base
    )
    assert found["conflicts"] > 0


def test_without_checks_it_says_so(tiny_model, delta, base, tmp_path, capsys):
    """On weights that are not the delta's base: refused; with --no-check done, and said."""
    other = write_model(
        tmp_path / "other", tiny_model, {**base, "pooler.dense.weight": base["pooler.dense.weight"] + 1}
    )
    given = ["apply", "--base", other, "--delta", delta, "--out", tmp_path / "out"]
    refused(capsys, "pooler.dense.weight: expected the base that the delta was made for", *given)
    assert not (tmp_path / "out").exists()
    code, out, error = ran(capsys, *given, "--no-check")
    assert (code, error) == (0, "")
    assert "fingerprints were not compared" in " ".join(out.split())
    given[-1] = tmp_path / "again"
    assert json_of(capsys, *given, "--no-check")["checked"] is False


def test_applied_twice_or_not_applied(tiny_model, delta, tmp_path, capsys):
    assert ran(capsys, "apply", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "out")[0] == 0
    refused(capsys, "applied already", "apply", "--base", tmp_path / "out", "--delta", delta, "--out", tmp_path / "c")
    given = ["revert", "--tuned", tiny_model, "--out", tmp_path / "c", "--delta"]
    refused(capsys, "expected a tensor 'classifier.weight', there is none", *given, delta)
    refused(capsys, "it is not applied", *given, pair(tmp_path, tiny_model)[0])
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------------- deltas


@pytest.mark.parametrize("on_conflict", ["first", "last"])
def test_compose(on_conflict, tiny_model, tmp_path, capsys):
    a, b = pair(tmp_path, tiny_model)
    out = tmp_path / "out"
    refused(capsys, "expected no scalar with two values", "compose", a, b, "--out", out)
    assert not out.exists()
    found = json_of(capsys, "compose", a, b, "--out", out, "--on-conflict", on_conflict)
    expected = compose([SparseDelta.load(a), SparseDelta.load(b)], on_conflict)
    assert same_changes(SparseDelta.load(out), expected)
    conflicts = json_of(capsys, "inspect", a, b)["agreement"]["all"]["conflicts"]
    assert found["conflicts"] == conflicts > 0
    assert found["scalars"] == expected.summary()["scalars"]
    assert (found["deltas"], found["originals"]) == ([str(a), str(b)], True)
    code, printed, _ = ran(capsys, "compose", a, b, "--out", tmp_path / "table", "--on-conflict", on_conflict)
    assert code == 0
    assert f"{conflicts}; the {on_conflict} one decided" in printed


def test_conflicts_of_three(tmp_path, capsys):
    """Each is counted against what the ones before it gave: with "last" the third agrees with the second."""
    base = {"weight": torch.zeros(4)}
    folders = []
    for name, values in (("a", [1.0, 0.0]), ("b", [2.0, 3.0]), ("c", [2.0, 4.0])):
        folders.append(
            write_delta(tmp_path / name, base, {"weight": torch.tensor([*values, 0.0, 0.0])}, originals=True)
        )
    for on_conflict, count, values in (("last", 2, [2.0, 4.0]), ("first", 3, [1.0, 3.0])):
        out = tmp_path / on_conflict
        found = json_of(capsys, "compose", *folders, "--out", out, "--on-conflict", on_conflict)
        assert found["conflicts"] == count
        assert SparseDelta.load(out).changes["weight"].values.tolist() == values


def test_one_delta_in_another_form(delta, tmp_path, capsys):
    found = json_of(capsys, "compose", delta, "--out", tmp_path / "out", "--compact", "--no-originals")
    first, second = SparseDelta.load(delta), SparseDelta.load(tmp_path / "out")
    assert same_changes(first, second)
    assert second.about == first.about
    assert found["file_bytes"] < (delta / FILE).stat().st_size
    assert found["originals"] is False
    assert all(change.originals is None for change in second.changes.values())


# ---------------------------------------------------------------------- progress and help


def test_a_progress_bar_for_people_only(tiny_model, delta, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    given = ["apply", "--base", tiny_model, "--delta", delta, "--out"]
    assert "copying " in ran(capsys, *given, tmp_path / "a")[2]  # what came last
    assert ran(capsys, *given, tmp_path / "b", "--quiet") == (0, "", "")
    assert json_of(capsys, *given, tmp_path / "c")["command"] == "apply"


@pytest.mark.parametrize("name", delta_options.COMMANDS)
def test_help(name, capsys):
    """Its examples are commands that are understood."""
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    examples = [line.split()[1:] for line in out.splitlines() if line.startswith("  selective-peft ")]
    assert examples
    assert all(parser().parse_args(example).command == name for example in examples)
