"""`selective-peft inspect`: numbers, tables and pictures of one delta and of two."""

import io
import json
import os
from dataclasses import replace

import pytest
import torch
from deltafolders import CHANGED, FILE, WEIGHTS, json_of, pair, ran, refused, tuned_weights, write_delta
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import spearmanr
from selective_peft import SparseDelta, inspecting
from selective_peft.changes import Change
from selective_peft.cli import main


@pytest.fixture
def one(tmp_path, tiny_model):
    base = load_file(tiny_model / WEIGHTS)
    return write_delta(tmp_path / "one", base, tuned_weights(base, 1))


def is_picture(path, width):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > width
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10  # something is drawn


def test_json_of_one_delta_is_complete(one, tmp_path, capsys):
    found = json_of(capsys, "inspect", one)
    delta = SparseDelta.load(one)
    assert delta.summary().items() <= found.items()
    assert found["scalars"] == sum(CHANGED.values())
    assert found["base_model"] == "tiny"
    assert found["encoding"] == "indices"
    assert found["position_bytes"] == 4 * found["scalars"]
    assert found["file_bytes"] == (one / FILE).stat().st_size
    assert found["density"] == found["scalars"] / sum(delta.changes[name].numel for name in CHANGED)
    assert found["new"] == ["classifier.weight"]
    assert found["reverts"] == "checkpoints"
    modules = {"pooler.dense": (1, 40), "attention.self.query": (2, 32), "output.dense": (1, 3)}
    assert {name: (each["layers"], each["scalars"]) for name, each in found["modules"].items()} == modules
    assert list(found["modules"]) == list(modules)  # most scalars first
    queries = [delta.changes[name] for name in CHANGED if "query" in name]
    sizes = torch.cat([(change.values - change.originals).abs() for change in queries])
    assert found["modules"]["attention.self.query"]["mean_update"] == pytest.approx(float(sizes.mean()), rel=1e-5)
    assert found["whole_mean_update"] == {"classifier.weight": None}
    assert json_of(capsys, "inspect", one / FILE) == found


def test_the_table_of_one_delta(one, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, error = ran(capsys, "inspect", one, "--top", 2)
    assert (code, error) == (0, "")
    delta = SparseDelta.load(one)
    for words in (
        "tiny",
        "75 of ",
        " in 4 tensors",
        "1 (64 scalars)",
        delta.fingerprint,
        "can be undone",
        "4.00 bytes",
    ):
        assert words in out, words
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in rows if len(row) == 5}
    assert table["pooler.dense"][:3] == ["1", "40", "53.3 %"]
    assert table["others (2)"][:3] == ["", "35", "46.7 %"]
    assert float(table["others (2)"][3]) > 0
    assert table["classifier.weight, whole"][1] == "64"


def test_quiet_says_nothing(one, capsys):
    assert ran(capsys, "inspect", one, "--quiet") == (0, "", "")


def test_without_originals(tmp_path, tiny_model, capsys):
    first, second = pair(tmp_path, tiny_model, originals=False)
    found = json_of(capsys, "inspect", first)
    assert found["originals"] is False
    assert found["reverts"] == "nothing"
    assert {each["mean_update"] for each in found["modules"].values()} == {None}
    assert "cannot be undone" in ran(capsys, "inspect", first)[1]
    assert json_of(capsys, "inspect", first, second)["spearman"] is None
    refused(capsys, "--picture: expected two deltas with", "inspect", first, second, "--picture", tmp_path / "x.png")
    assert json_of(capsys, "inspect", first, "--picture", tmp_path / "x.png")["picture"] == str(tmp_path / "x.png")
    is_picture(tmp_path / "x.png", 800)


def test_compact_positions_are_smaller(tmp_path, tiny_model, capsys):
    found = json_of(capsys, "inspect", pair(tmp_path, tiny_model, compact=True)[0])
    assert found["encoding"] == "gaps"
    assert 0 < found["position_bytes"] < 2 * found["scalars"]


def test_pictures(one, tmp_path, tiny_model, capsys):
    """Of single scalars, of whole tensors only, of nothing, and of two deltas."""
    base = load_file(tiny_model / WEIGHTS)
    tuned = {name: tensor + 1 for name, tensor in base.items() if tensor.is_floating_point()}
    whole = write_delta(tmp_path / "whole", {name: base[name] for name in tuned}, tuned)
    assert json_of(capsys, "inspect", whole)["scalars"] == 0
    SparseDelta({}).save(tmp_path / "nothing")
    for folder in (one, whole, tmp_path / "nothing"):
        code, out, _ = ran(capsys, "inspect", folder, "--picture", tmp_path / f"{folder.name}.png")
        assert code == 0
        assert "picture: " in out
        with Image.open(tmp_path / f"{folder.name}.png") as picture:
            assert picture.size[0] > 800
    is_picture(tmp_path / "one.png", 800)
    is_picture(tmp_path / "whole.png", 800)
    assert ran(capsys, "inspect", *pair(tmp_path, tiny_model), "--picture", tmp_path / "two.png")[0] == 0
    is_picture(tmp_path / "two.png", 1000)


def test_two_deltas(tmp_path, tiny_model, capsys):
    """Against sets of places, and scipy's Spearman."""
    folders = pair(tmp_path, tiny_model)
    found = json_of(capsys, "inspect", *folders)
    a, b = (
        {
            (name, place): (float(new), float(new) - float(old))
            for name, change in SparseDelta.load(folder).changes.items()
            for place, new, old in zip(
                change.indices.tolist(), change.values.double(), change.originals.double(), strict=True
            )
        }
        for folder in folders
    )
    shared = sorted(a.keys() & b.keys())
    assert len(shared) > 1
    assert found["agreement"]["all"] == {
        "first": len(a),
        "second": len(b),
        "shared": len(shared),
        "jaccard": len(shared) / len(a.keys() | b.keys()),
        "conflicts": sum(a[key][0] != b[key][0] for key in shared),
    }
    assert sum(each["first"] for module, each in found["agreement"].items() if module != "all") == len(a)
    rho = spearmanr([a[key][1] for key in shared], [b[key][1] for key in shared]).statistic
    assert found["spearman"] == pytest.approx(rho, abs=1e-9)
    assert found["first"] == json_of(capsys, "inspect", folders[0])
    out = ran(capsys, "inspect", *folders, "--top", 2)[1]
    assert f"of {len(shared)} scalars in both: {rho:.3f}" in " ".join(out.split())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in rows if len(row) == 6}
    assert list(table) == ["pooler.dense", "others (2)", "all"]
    assert table["all"][:3] == [str(len(a)), str(len(b)), str(len(shared))]
    assert int(table["pooler.dense"][0]) + int(table["others (2)"][0]) == len(a)


def test_deltas_of_different_bases_are_not_compared(tmp_path, tiny_model, capsys):
    first, _ = pair(tmp_path, tiny_model)
    base = {name: tensor + 1 for name, tensor in load_file(tiny_model / WEIGHTS).items() if tensor.is_floating_point()}
    other = write_delta(tmp_path / "other", base, tuned_weights(base, 3, head=False))
    refused(capsys, "expected deltas of one base", "inspect", first, other)


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    """Whoever made a delta chose them."""
    change = Change.whole(torch.ones(3), torch.zeros(3))
    delta = SparseDelta({"[red]a\x1b[31m.weight": change})
    replace(delta, about=replace(delta.about, base_model="b\x1b]0;title\x07[/x]")).save(tmp_path / "bad")
    code, out, _ = ran(capsys, "inspect", tmp_path / "bad")
    assert code == 0
    assert "[red]a?[31m.weight, whole" in out
    assert "b?]0;title?[/x]" in out
    assert "\x1b" not in out


def test_refused(one, tmp_path, capsys):
    refused(capsys, "expected one or two, got 3", "inspect", one, one, one)
    refused(capsys, "expected a folder with selective_delta.safetensors", "inspect", tmp_path / "none")
    refused(capsys, "expected a folder with selective_delta.safetensors", "inspect", tmp_path)
    refused(capsys, "expected a file in a folder that exists", "inspect", one, "--picture", tmp_path / "no" / "x.png")
    refused(capsys, "expected a file in a folder that exists", "inspect", one, "--picture", tmp_path)
    data = bytearray((one / FILE).read_bytes())
    data[-1] ^= 1
    (one / FILE).write_bytes(data)
    refused(capsys, "checksum: expected that of the file", "inspect", one, "--picture", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_long_names_do_not_fill_a_picture(one):
    assert inspecting._name(one, 60) == f"{one.parent.name}/one"
    assert inspecting._name(one, 10) == "..." + f"{one.parent.name}/one"[-7:]


def test_a_terminal_that_lacks_signs(tmp_path, capfd, monkeypatch):
    """JSON says the same everywhere; tables show something else instead."""
    base = {"größe.weight": torch.zeros(9), "語.weight": torch.zeros(9)}
    tuned = {name: torch.eye(3).view(9) for name in base}
    folder = write_delta(tmp_path / "delta", base, tuned)
    capfd.readouterr()
    for more in (["--json"], []):
        with io.TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="ascii") as stdout:
            monkeypatch.setattr("sys.stdout", stdout)
            assert main(["inspect", str(folder), *more]) == 0
        out = capfd.readouterr().out
        assert "gr??e" in out if not more else set(json.loads(out)["modules"]) == {"größe", "語"}
