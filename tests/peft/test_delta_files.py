"""Deltas on checkpoint folders: apply gives the tuned bits, revert the base's bytes, in one file or several."""

import json
import shutil

import pytest
import torch
from checkpoints import (
    applied,
    assert_same_tensors,
    base_tensors,
    files_in,
    tensors_in,
    tuned_tensors,
    write,
)
from deltatests import pairs, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from selective_peft import SparseDelta, container, streaming
from selective_peft.patch_files import apply_files, diff_files, merge_files, revert_files

HEAD = {"head.weight": torch.randn(3, 5), "head.bias": torch.randn(3)}


@pytest.fixture(params=[1, 3], ids=["one file", "three files"])
def shards(request):
    return request.param


def pair(tmp_path, shards, **options):
    base = base_tensors()
    tuned = tuned_tensors(base)
    return write(tmp_path / "base", base, shards, **options), base, tuned, SparseDelta.from_models(base, tuned)


@pytest.mark.parametrize("check", [True, False])
def test_there_and_back(tmp_path, shards, check):
    """All dtypes; every byte of the other files, and of the weights when they are back."""
    folder, _, tuned, delta = pair(tmp_path, shards)
    out = applied(folder, delta, check=check)
    assert_same_tensors(tensors_in(out), tuned)
    before, after = files_in(folder), files_in(out)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == sorted(path.name for path in weights(folder))
    for path in weights(out):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "note": "kept"}
    assert revert_files(out, delta, tmp_path / "back", check=check).removed == ()
    assert files_in(tmp_path / "back") == before


@pytest.mark.parametrize("size", [4, 32, 100])
def test_tensors_in_many_pieces(tmp_path, monkeypatch, size):
    """Pieces end within changes and between them; whole tensors are cut, too."""
    monkeypatch.setattr(container, "CHUNK", size)
    monkeypatch.setattr(streaming, "CHUNK", size)
    base = base_tensors()
    tuned = {**tuned_tensors(base), **HEAD, "layer.0.weight": base["layer.0.weight"] + 1}
    folder = write(tmp_path / "base", base, 2)
    delta = SparseDelta.from_models(base, tuned)
    out = applied(folder, delta)
    assert_same_tensors(tensors_in(out), tuned)
    assert_same_changes(diff_files(folder, out).changes, delta.changes)
    revert_files(out, delta, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), base)
    merge_files(folder, delta, tmp_path / "merged")
    assert_same_tensors(tensors_in(tmp_path / "merged"), tuned)


def weights(folder):
    return sorted(folder.glob("*.safetensors"))


@settings(max_examples=30, deadline=None)
@given(pair=pairs(), whole_above=st.sampled_from([0.0, 0.5, 1.0]), shards=st.integers(1, 3))
def test_any_pair_of_models(tmp_path_factory, pair, whole_above, shards):
    base, tuned = map(tensors_of, pair)
    tmp_path = tmp_path_factory.mktemp("any")
    folder = write(tmp_path / "base", base, min(shards, len(base)))
    delta = SparseDelta.from_models(base, tuned, whole_above=whole_above)
    out = applied(folder, delta)
    assert_same_tensors(tensors_in(out), tuned)
    revert_files(out, delta, tmp_path / "back")
    assert files_in(tmp_path / "back") == files_in(folder)
    again = diff_files(folder, out, whole_above=whole_above)
    assert again.fingerprint == delta.fingerprint
    assert_same_changes(again.changes, delta.changes)
    shutil.rmtree(tmp_path)


def assert_same_changes(actual, expected):
    assert actual.keys() == expected.keys()
    for name, change in expected.items():
        assert (actual[name].indices is None) == (change.indices is None)
        if change.indices is not None:
            assert torch.equal(actual[name].indices, change.indices)
        parts = {"values": change.values} | ({} if change.originals is None else {"originals": change.originals})
        assert_same_tensors({part: getattr(actual[name], part) for part in parts}, parts)


def test_files_without_a_change_are_copied(tmp_path):
    folder, base, _, _ = pair(tmp_path, 3)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["layer.1.weight"][0, 0] = 3
    out = applied(folder, SparseDelta.from_models(base, tuned))
    differs = [name for name, data in files_in(folder).items() if files_in(out)[name] != data]
    assert len(differs) == 1
    assert_same_tensors(tensors_in(out), tuned)


def test_a_delta_without_changes_copies(tmp_path, shards):
    folder, _, _, _ = pair(tmp_path, shards)
    assert files_in(applied(folder, SparseDelta({}))) == files_in(folder)


@pytest.mark.parametrize("kind", ["new", "known"])
def test_a_head_is_added_and_removed(tmp_path, shards, kind):
    """A head that the base lacks; one with originals, from training, gets these back."""
    folder, base, tuned, delta = pair(tmp_path, shards)
    before = {name: torch.zeros_like(tensor) for name, tensor in HEAD.items()}
    head = SparseDelta.from_models({} if kind == "new" else before, HEAD)
    delta = SparseDelta({**delta.changes, **head.changes})
    out = tmp_path / "out"
    done = apply_files(folder, delta, out)
    assert done.added == tuple(HEAD)
    assert_same_tensors(tensors_in(out), {**tuned, **HEAD})
    if shards > 1:
        weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        assert {weight_map[name] for name in HEAD} == {weights(out)[-1].name}
    undone = revert_files(out, delta, tmp_path / "back")
    assert set(undone.removed) == (set(HEAD) if kind == "new" else set())
    assert_same_tensors(tensors_in(tmp_path / "back"), base if kind == "new" else {**base, **before})


def test_added_tensors_keep_all_aligned(tmp_path):
    """A wide one after narrow ones moves to where its size divides the offset."""
    folder = write(tmp_path / "base", {"a": torch.zeros(3, dtype=torch.bfloat16)})
    delta = SparseDelta.from_models({}, {"b": torch.ones(2), "c": torch.ones(1, dtype=torch.float16)})
    out = applied(folder, delta)
    with (out / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["b"]["data_offsets"] == [0, 8]
    assert len(tensors_in(out)) == 3


def test_a_file_alone(tmp_path):
    folder, _, tuned, delta = pair(tmp_path, 1)
    apply_files(folder / "model.safetensors", delta, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert_same_tensors(tensors_in(tmp_path / "out"), tuned)
    assert diff_files(folder / "model.safetensors", tmp_path / "out").fingerprint == delta.fingerprint


def test_a_single_file_of_another_name(tmp_path):
    folder, _, tuned, delta = pair(tmp_path, 1)
    (folder / "model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors")
    out = applied(folder, delta)
    assert files_in(out).keys() == files_in(folder).keys()
    assert_same_tensors(tensors_in(out), tuned)


@pytest.mark.parametrize("operation", [apply_files, revert_files, merge_files])
def test_progress_adds_up(tmp_path, shards, operation):
    folder, _, _, delta = pair(tmp_path, shards)
    if operation is revert_files:
        folder = applied(folder, delta)
    told = []
    operation(folder, delta, tmp_path / "out", progress=lambda *each: told.append(each))
    done, total = zip(*[each[:2] for each in told], strict=True)
    assert list(done) == sorted(done)
    assert len(set(total)) == 1
    assert done[-1] == total[0]
    changed = sum(tensor.nbytes for name, tensor in tensors_in(folder).items() if name in delta.changes)
    assert total[0] > changed + sum(path.stat().st_size for path in weights(folder))
    assert {what.split()[0] for *_, what in told} == {"checking", "writing", "copying"}


def test_progress_of_a_comparison(tmp_path, shards):
    folder, base, _, delta = pair(tmp_path, shards)
    told = []
    diff_files(folder, applied(folder, delta), progress=lambda *each: told.append(each))
    total = sum(tensor.nbytes for tensor in base.values())
    assert told[-1][:2] == (total, total)


def test_a_difference_knows_its_model(tmp_path):
    folder, base, tuned, _ = pair(tmp_path, 1)
    config = {"model_type": "tiny", "num_labels": 5}
    other = write(tmp_path / "tuned", tuned, 3, config)
    delta = diff_files(folder, other, base_model="somebody/model", base_revision="main")
    assert (delta.about.base_model, delta.about.base_revision) == ("somebody/model", "main")
    assert delta.about.method == "diff"
    assert delta.about.model_config == config
    assert_same_changes(delta.changes, SparseDelta.from_models(base, tuned).changes)


def test_a_delta_from_a_file_does_the_same(tmp_path):
    folder, _, tuned, delta = pair(tmp_path, 3)
    delta.save(tmp_path / "delta")
    assert_same_tensors(tensors_in(applied(folder, SparseDelta.load(tmp_path / "delta"))), tuned)
    delta.save(tmp_path / "short", originals=False)
    short = SparseDelta.load(tmp_path / "short")
    shutil.rmtree(tmp_path / "base-out")
    assert_same_tensors(tensors_in(applied(folder, short)), tuned)
