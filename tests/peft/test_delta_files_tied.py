"""Tensors that a model ties: stored under one of their names or several, and told from equal ones that are not tied."""

import copy

import pytest
import torch
from checkpoints import applied, assert_same_tensors, refused, tensors_in, write
from deltatests import Model, changed, random_tensor
from selective_peft import SparseDelta
from selective_peft.patch_files import apply_files, diff_files, revert_files

TIED = {"tie_word_embeddings": True}


def tied_pair():
    words = random_tensor((20, 6), torch.float32, 4)
    inner = random_tensor((6, 6), torch.float32, 5)
    base = {"model.embed.weight": words, "model.layer.0.weight": inner}
    return base, {name: changed(tensor, 0.1, 6) for name, tensor in base.items()}


@pytest.mark.parametrize("whole_above", [0.5, 0.0])
def test_a_tied_tensor_stored_twice_is_changed_twice(tmp_path, whole_above):
    """Else transformers would find two different ones and untie them."""
    base, tuned = tied_pair()
    delta = SparseDelta.from_models(base, tuned, whole_above=whole_above)
    folder = write(tmp_path / "base", {**base, "lm_head.weight": base["model.embed.weight"]}, 3, TIED)
    out = applied(folder, delta)
    assert_same_tensors(tensors_in(out), {**tuned, "lm_head.weight": tuned["model.embed.weight"]})
    revert_files(out, delta, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), tensors_in(folder))


@pytest.mark.parametrize("config", [{"tie_word_embeddings": False}, {"text_config": {"tie_word_embeddings": False}}])
def test_equal_tensors_that_are_not_tied_stay_apart(tmp_path, config):
    base, tuned = tied_pair()
    twice = {**base, "lm_head.weight": base["model.embed.weight"]}
    out = applied(write(tmp_path / "base", twice, config=config), SparseDelta.from_models(base, tuned))
    assert_same_tensors(tensors_in(out), {**tuned, "lm_head.weight": base["model.embed.weight"]})


def frozen_copy():
    """Two equal networks, of which one is trained."""
    base = {"student.weight": random_tensor((20, 6), torch.float32, 4)}
    base["teacher.weight"] = base["student.weight"].clone()
    return base, {**base, "student.weight": changed(base["student.weight"], 0.1, 6)}


def test_equal_tensors_of_which_nobody_says_whether_they_are_tied(tmp_path):
    """A delta of state dicts does not know; a configuration beside the file decides."""
    base, tuned = frozen_copy()
    folder = write(tmp_path / "base", base)
    (folder / "config.json").unlink()
    delta = SparseDelta.from_models(base, tuned)
    words = "expected a config.json with tie_word_embeddings, .*'student.weight' and 'teacher.weight' are equal"
    refused(words, apply_files, folder, delta)
    (folder / "config.json").write_text('{"tie_word_embeddings": false}')
    assert_same_tensors(tensors_in(applied(folder, delta)), tuned)


@pytest.mark.parametrize("config", [TIED, {}, {"tie_word_embeddings": False}])
def test_a_delta_that_knows_of_no_ties_changes_one_tensor(tmp_path, config):
    """From a model, or from two checkpoints, whatever a configuration says."""
    base, tuned = frozen_copy()
    folder = write(tmp_path / "base", base, config=config)
    deltas = {
        "model": SparseDelta.from_models(Model(base), Model(tuned)),
        "files": diff_files(folder, write(tmp_path / "tuned", tuned, config=config)),
    }
    for origin, delta in deltas.items():
        assert delta.changes["student.weight"].tied == ()
        out = tmp_path / origin
        apply_files(folder, delta, out)
        assert_same_tensors(tensors_in(out), tuned)


@pytest.mark.parametrize("stored", [("embed", "head", "other"), ("head", "other"), ("other",), ("embed",)])
def test_a_model_s_ties_say_where_else_a_tensor_is_stored(tmp_path, stored):
    """Under all of its names that the checkpoint has, also if a configuration denies it."""
    base = Model({"embed": random_tensor((20, 6), torch.float32, 4), "inner": random_tensor((9,), torch.float32, 5)})
    base.head = base.other = base.embed
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.embed[3:5] += 1
    delta = SparseDelta.from_models(base, tuned)
    assert delta.changes["embed"].tied == ("head", "other")
    twin = {"twin": base.embed.detach().clone()}  # as equal as they are, and no part of the model's tie
    files = {**dict.fromkeys(stored, base.embed.detach()), "inner": base.inner.detach(), **twin}
    folder = write(tmp_path / "base", files, config={"tie_word_embeddings": False})
    out = applied(folder, delta)
    assert_same_tensors(tensors_in(out), {**files, **dict.fromkeys(stored, tuned.embed.detach())})
    revert_files(out, delta, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), files)
    spoilt = {**files, stored[-1]: base.embed.detach() + 2}
    message = "expected the base that the delta was made for"
    refused(message, apply_files, write(tmp_path / "spoilt", spoilt, config=TIED), delta)


def test_equal_constants_are_not_tied(tmp_path):
    """Biases and norms begin as zeros and ones."""
    base = {"a.bias": torch.zeros(8), "b.bias": torch.zeros(8)}
    tuned = {"a.bias": torch.tensor([0.0] * 7 + [1.0])}
    out = applied(
        write(tmp_path / "base", base, config=TIED), SparseDelta.from_models({"a.bias": base["a.bias"]}, tuned)
    )
    assert_same_tensors(tensors_in(out), {**tuned, "b.bias": base["b.bias"]})


@pytest.mark.parametrize("whole_above", [0.5, 0.0])
def test_a_tied_tensor_stored_under_its_other_names(tmp_path, whole_above):
    """As old checkpoints of T5 have it; found by content, patched, and undone."""
    base, tuned = tied_pair()
    delta = SparseDelta.from_models(base, tuned, whole_above=whole_above)
    names = ("encoder.embed.weight", "decoder.embed.weight")
    stored = {**base, **dict.fromkeys(names, base["model.embed.weight"])}
    del stored["model.embed.weight"]
    folder = write(tmp_path / "base", stored, 2, TIED)
    out = applied(folder, delta)
    patched = {
        **dict.fromkeys(names, tuned["model.embed.weight"]),
        "model.layer.0.weight": tuned["model.layer.0.weight"],
    }
    assert_same_tensors(tensors_in(out), patched)
    revert_files(out, delta, tmp_path / "back")
    assert_same_tensors(tensors_in(tmp_path / "back"), stored)


def test_no_partner_of_a_tied_tensor(tmp_path):
    """The only candidate has other values."""
    base, tuned = tied_pair()
    stored = {"lm_head.weight": base["model.embed.weight"] + 1, "model.layer.0.weight": base["model.layer.0.weight"]}
    folder = write(tmp_path / "base", stored, config=TIED)
    for check in (True, False):
        message = "expected a tensor 'model.embed.weight', there is none"
        refused(message, apply_files, folder, SparseDelta.from_models(base, tuned), check=check)
