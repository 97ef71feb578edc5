"""Writing delta files: durable, with the usual mode, and nothing that could not be read back."""

import os
import stat

import pytest
import torch
from deltatests import trained
from selective_peft import DeltaError, SparseDelta
from selective_peft.delta_file import FILE


@pytest.fixture(scope="module")
def delta():
    _, tuned, optimizer = trained(torch.bfloat16)
    return SparseDelta.from_optimizer(optimizer, tuned, base_model="someone/base")


def test_names_that_would_collide_are_refused(tmp_path):
    base = {"a": torch.zeros(4), "a.values": torch.zeros(4)}
    tuned = {"a": torch.tensor([0.0, 1.0, 0.0, 0.0]), "a.values": torch.ones(4)}
    delta = SparseDelta.from_models(base, tuned)
    with pytest.raises(DeltaError, match=r"'a\.values' would stand there twice"):
        delta.save(tmp_path / "delta")
    assert not (tmp_path / "delta" / FILE).exists()


def test_files_get_the_mode_that_new_files_get(delta, tmp_path):
    (tmp_path / "plain").touch()
    delta.save(tmp_path / "delta")
    for path in (tmp_path / "delta").iterdir():
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {path.name for path in (tmp_path / "delta").iterdir()} == {FILE, "selective_config.json", "README.md"}


def test_all_is_on_the_disk_before_it_has_its_name(delta, tmp_path, monkeypatch):
    """Content, then the name, then the folder: also a machine that loses power has the old file or the new one."""
    done, sync, replace = [], os.fsync, os.replace

    def synced(handle):
        done.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        sync(handle)

    def named(old, new):
        done.append(new.name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    delta.save(tmp_path / "delta")
    assert done == [part for name in (FILE, "selective_config.json", "README.md") for part in (False, name, True)]


@pytest.mark.parametrize("originals", [True, False])
def test_names_that_mean_something_are_refused(tmp_path, originals):
    """Without originals, too: a reader would look for them under that name."""
    base = {"a": torch.zeros(4), "a.original": torch.zeros(4)}
    tuned = {"a": torch.eye(4)[0], "a.original": torch.ones(4)}
    for pair in ((base, tuned), ({"__metadata__": base["a"]}, {"__metadata__": base["a"] + 1})):
        with pytest.raises(DeltaError, match="expected names that stay apart"):
            SparseDelta.from_models(*pair).save(tmp_path / "delta", originals=originals)
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("compact", [False, True])
def test_a_new_tensor_without_scalars(tmp_path, compact):
    delta = SparseDelta.from_models({"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.empty(0, 3)})
    delta.save(tmp_path / "delta", compact=compact)
    assert SparseDelta.load(tmp_path / "delta").changes["b"].shape == (0, 3)


@pytest.mark.parametrize(("base", "named"), [("org/model-1.0", True), ("model", False), ("a/b/c", False), ("", False)])
def test_the_card_names_a_base_that_the_hub_can_find(tmp_path, base, named):
    """A folder's name would be looked for there, or be refused."""
    delta = SparseDelta.from_models({"a": torch.zeros(3)}, {"a": torch.ones(3)}, base_model=base)
    delta.save(tmp_path)
    front = (tmp_path / "README.md").read_text().split("---\n")[1]
    assert (f"base_model: {base}\nbase_model_relation: adapter\n" in front) == named
    assert ("base_model" in front) == named
