"""Deltas that cannot be pushed or had, from a disk, from the Hub, or from a server that sends something else."""

import sys
from pathlib import Path

import pytest
import torch
from hubcases import NAME, assert_gives, made_runs, pushed, standing_in
from hubserver import TOKEN
from selective_peft import DeltaError, SparseDelta
from selective_peft.delta_file import FILE

pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def runs():
    return made_runs()


@pytest.fixture
def delta(runs):
    return runs[0][2]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with standing_in(monkeypatch, tmp_path) as made:
        yield made


# ---------------------------------------------------------------------- what is on this disk


def test_a_folder_or_a_file_needs_no_hub(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    runs[0][2].save(tmp_path / "run" / "delta")
    for source in (tmp_path / "run" / "delta", str(tmp_path / "run" / "delta"), tmp_path / "run" / "delta" / FILE):
        assert_gives(runs[0], SparseDelta.from_pretrained(source))
    assert_gives(runs[0], SparseDelta.from_pretrained(tmp_path / "run", subfolder="delta"))
    monkeypatch.chdir(tmp_path)
    assert_gives(runs[0], SparseDelta.from_pretrained("run/delta"))  # not the repository of that name


def test_a_folder_that_does_not_do(delta, tmp_path):
    delta.save(tmp_path / "delta")
    with pytest.raises(FileNotFoundError, match=f"source: expected a folder with {FILE} in it, got '{tmp_path}'"):
        SparseDelta.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"expected a folder with {FILE} in it, got '.*nothing'"):
        SparseDelta.from_pretrained(tmp_path, subfolder="nothing")
    with pytest.raises(ValueError, match="revision: expected none for what is on this disk, got 'main'"):
        SparseDelta.from_pretrained(tmp_path / "delta", revision="main")
    for missing in (tmp_path / "missing", "./missing", "missing", "a/b/c", Path("some/where")):
        with pytest.raises(FileNotFoundError, match="source: expected a folder that is there, or a repository"):
            SparseDelta.from_pretrained(missing)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["a/b/c", "", "some one/x", "-x", "a/b--c", "a/../b", "x.git"])
def test_names_that_are_none(hub, delta, name):
    with pytest.raises(ValueError, match=f"repo_id: expected a repository such as 'user/name', got {name!r}"):
        pushed(delta, name=name)
    assert hub.asked == []


@pytest.mark.parametrize("folder", ["..", "a/../../b", "/a", "a\\..\\b", ".git", "a/.git/b", "a\nb", "a\0b"])
def test_folders_that_are_outside(hub, delta, folder):
    for call in (lambda: pushed(delta, subfolder=folder), lambda: SparseDelta.from_pretrained(NAME, subfolder=folder)):
        with pytest.raises(ValueError, match="subfolder: expected a folder within the repository"):
            call()
    assert hub.asked == []


@pytest.mark.parametrize("argument", ["revision", "commit_message"])
def test_texts_that_are_empty(hub, delta, argument):
    """huggingface_hub would find out when the repository is made."""
    calls = [lambda: pushed(delta, **{argument: ""})]
    if argument == "revision":
        calls.append(lambda: SparseDelta.from_pretrained(NAME, revision=""))
    for call in calls:
        with pytest.raises(ValueError, match=f"{argument}: expected some text, got ''"):
            call()
    assert hub.asked == []


@pytest.mark.parametrize(("token", "given"), [("hf_wrong", "none, or one that may not"), (False, "none")])
def test_a_token_that_may_not_write(hub, delta, token, given):
    with pytest.raises(
        PermissionError, match=rf"token: expected one that may write to '{NAME}', got {given} \("
    ) as caught:
        pushed(delta, token=token)
    assert "hf_wrong" not in str(caught.value)
    assert hub.repositories == {}
    pushed(delta)
    hub.locked.add(NAME)
    with pytest.raises(PermissionError, match="token: expected one that may write"):
        pushed(delta, originals=False)


def test_what_is_not_there(hub, delta):
    pushed(delta, subfolder="delta")
    with pytest.raises(FileNotFoundError, match=r"source: expected a folder, or a repository .*, got 'someone/other'"):
        SparseDelta.from_pretrained("someone/other", token=TOKEN)
    for revision in ("v2", "0" * 40):
        with pytest.raises(
            FileNotFoundError, match=f"revision: expected a branch, a tag or a commit of '{NAME}', got '{revision}'"
        ):
            SparseDelta.from_pretrained(NAME, revision=revision, subfolder="delta")
    with pytest.raises(
        FileNotFoundError, match=rf"expected a repository with {FILE} in it, got '{NAME}' \(revision 'main'\)"
    ):
        SparseDelta.from_pretrained(NAME)
    with pytest.raises(FileNotFoundError, match=f"expected a repository with other/{FILE} in it"):
        SparseDelta.from_pretrained(NAME, subfolder="other")
    hub.gated.add(NAME)
    with pytest.raises(PermissionError, match=f"token: expected one that may read '{NAME}', which is gated"):
        SparseDelta.from_pretrained(NAME, subfolder="delta")
    with pytest.raises(ValueError, match="source: expected a repository such as 'user/name', got 'a/b--c'"):
        SparseDelta.from_pretrained("a/b--c")


def test_another_server_than_a_hub(hub, delta):
    with pytest.raises(FileNotFoundError, match=f"source: expected {FILE} of '{NAME}' from the Hub or in the cache"):
        SparseDelta.from_pretrained(NAME, endpoint=f"{hub.store}/{'0' * 64}")
    hub.unknown.clear()


def flipped(place):
    def damage(data):
        at = int(place * len(data))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *map(flipped, (0.0, 0.01, 0.2, 0.5, 0.7, 0.9, 0.999)),
        lambda data: b"\x80\x04\x95" + data[3:],  # a pickle's first bytes
        lambda data: b"<html>".ljust(len(data)),
        lambda data: bytes(len(data)),
    ],
)
def test_damaged_content_is_refused(hub, delta, damage):
    pushed(delta)
    hub.damage = damage
    with pytest.raises(DeltaError, match=rf"models--someone--delta.*{FILE}: ") as caught:
        SparseDelta.from_pretrained(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", bytes(8), b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_was_never_a_delta_is_refused(hub, delta, content):
    pushed(delta)
    hub.repositories[NAME].commit("main", {FILE: content})
    with pytest.raises(DeltaError, match=FILE):
        SparseDelta.from_pretrained(NAME)


def test_half_a_file_is_refused_and_not_kept(hub, runs):
    pushed(runs[0][2])
    hub.damage = lambda data: data[:-64]  # the size was told before
    with pytest.raises(OSError, match="size"):
        SparseDelta.from_pretrained(NAME)
    hub.damage = bytes
    assert_gives(runs[0], SparseDelta.from_pretrained(NAME))


def test_a_delta_that_no_file_can_hold_leaves_the_hub_alone(hub):
    base = {"a": torch.zeros(8), "a.original": torch.zeros(9)}
    with pytest.raises(DeltaError, match="would stand there twice"):
        pushed(SparseDelta.from_models(base, {name: tensor + 1 for name, tensor in base.items()}))
    assert hub.asked == []


def test_without_the_library(delta, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call, name in (
        (lambda: delta.push_to_hub(NAME), "push_to_hub"),
        (lambda: SparseDelta.from_pretrained(NAME), "from_pretrained"),
    ):
        message = rf"{name} needs huggingface_hub .*pip install 'selective-kernels\[hub\]'"
        with pytest.raises(ImportError, match=message):
            call()
