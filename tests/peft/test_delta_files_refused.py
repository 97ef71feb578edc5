"""Hostile and broken checkpoint folders: one error before anything is written. Which files are read and copied."""

import json
import os
import shutil

import pytest
import torch
from checkpoints import applied, assert_same_tensors, base_tensors, files_in, refused, tensors_in, tuned_tensors, write
from safetensors.torch import load_file, save_file
from selective_peft import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.patch_files import apply_files, diff_files, revert_files

OPERATIONS = [apply_files, revert_files]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def story(tmp_path):
    base = base_tensors()
    tuned = tuned_tensors(base)
    return write(tmp_path / "base", base, 2), tuned, SparseDelta.from_models(base, tuned)


def edited_index(folder, edit):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


PLACES = [
    "../base/model-00001-of-00002.safetensors",
    "/etc/passwd.safetensors",
    "sub/model.safetensors",
    "..\\model.safetensors",
    ".hidden.safetensors",
    "..",
    "",
    "model.bin",
    "a\0.safetensors",
    7,
    None,
    ["model.safetensors"],
]


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_an_index_names_files_of_the_folder_only(story, place):
    folder, _, delta = story
    edited_index(folder, lambda content: content["weight_map"].update({"embed.weight": place}))
    for operation in OPERATIONS:
        refused("embed.weight: expected the name of a .safetensors file in the folder", operation, folder, delta)
    with pytest.raises(DeltaError, match="expected the name of a"):
        diff_files(folder, folder)


INDEXES = {
    "nothing": ("", "expected JSON"),
    "no JSON": ("{", "expected JSON"),
    "no object": ("[1]", "expected a JSON object"),
    "no map": ('{"metadata": {}}', "weight_map: expected an object"),
    "an empty map": ('{"weight_map": {}}', "weight_map: expected an object"),
    "a list": ('{"weight_map": []}', "weight_map: expected an object"),
    "a name twice": ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "each name once"),
    "NaN": ('{"weight_map": NaN}', "expected JSON"),
    "nested": ("[" * 100_000, "expected JSON"),
    "no UTF-8": (b"\xff\xfe", "expected UTF-8"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_is_none(story, name):
    folder, _, delta = story
    text, message = INDEXES[name]
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "model.safetensors.index.json").write_bytes(data)
    refused(message, apply_files, folder, delta)


def test_an_index_must_be_that_of_the_files(story):
    folder, _, delta = story
    names = list(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])
    cases = [
        (lambda found: found.pop(names[0]), f"{names[0]}: expected {FIRST}, where the tensor is, it has none"),
        (lambda found: found.update({names[0]: SECOND}), f"expected {FIRST}, where the tensor is, it says {SECOND}"),
        (lambda found: found.update(more=SECOND), f"more: expected it in {SECOND}, there is none"),
        (lambda found: found.update(more="model-9.safetensors"), "model-9.safetensors: expected a file of weights"),
    ]
    kept = (folder / "model.safetensors.index.json").read_text()
    for edit, message in cases:
        edited_index(folder, lambda content, edit=edit: edit(content["weight_map"]))
        refused(message, apply_files, folder, delta)
        (folder / "model.safetensors.index.json").write_text(kept)
    assert applied(folder, delta)


def test_a_tensor_in_two_files(story):
    folder, _, delta = story
    first, second = load_file(folder / FIRST), load_file(folder / SECOND)
    save_file({**second, "embed.weight": first["embed.weight"]}, folder / SECOND)
    refused(f"embed.weight: expected it once, got it in {FIRST} and {SECOND}", apply_files, folder, delta)


def test_a_missing_file(story):
    folder, _, delta = story
    (folder / SECOND).unlink()
    refused(f"{SECOND}: expected a file of weights, there is none", apply_files, folder, delta)
    (folder / SECOND).symlink_to("../blobs/gone")
    refused(f"{SECOND}: expected a file of weights, there is none", apply_files, folder, delta)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file(story, share):
    folder, _, delta = story
    path = folder / SECOND
    os.truncate(path, int(path.stat().st_size * share))
    refused(f"{SECOND}: expected a safetensors file", apply_files, folder, delta)


def test_a_flipped_bit(story):
    """In a tensor that is changed, the fingerprint notices; the header is checked by the library."""
    folder, _, delta = story
    path = folder / FIRST
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused("expected the base that the delta was made for", apply_files, folder, delta)
    path.write_bytes(b"\xff" * 8 + bytes(data[8:]))
    refused("expected a safetensors file", apply_files, folder, delta)


def test_a_file_that_is_replaced_while_it_is_read(story, monkeypatch):
    folder, _, delta = story
    out = folder.parent / "out"

    def replace(done, total, what):
        for name in (FIRST, SECOND):
            save_file({"x": torch.zeros(3)}, folder / name)

    with pytest.raises(DeltaError, match="expected the file of a moment ago"):
        apply_files(folder, delta, out, progress=replace)
    assert not out.exists()


# ---------------------------------------------------------------------- which files are the checkpoint


def test_more_files_than_the_index_has(story):
    """They are not the model's, as for transformers: not read, not copied, told."""
    folder, tuned, delta = story
    save_file({"x": torch.zeros(3)}, folder / "consolidated.safetensors")
    done = apply_files(folder, delta, folder.parent / "out")
    assert done.left_out == ("consolidated.safetensors",)
    assert_same_tensors(tensors_in(folder.parent / "out"), tuned)


def test_several_files_without_an_index(story):
    folder, _, delta = story
    (folder / "model.safetensors.index.json").unlink()
    refused("expected an index of its 2 safetensors files, there is none", apply_files, folder, delta)


def test_two_checkpoints_in_one_folder(story):
    folder, _, delta = story
    shutil.copy(folder / FIRST, folder / "model.safetensors")
    refused(
        "expected one checkpoint, got model.safetensors.index.json and model.safetensors", apply_files, folder, delta
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(tmp_path, name):
    folder = tmp_path / "base"
    folder.mkdir()
    torch.save({"a": torch.zeros(2)}, folder / name)
    message = f"expected weights as safetensors, there are none but {name}; if .* call save_pretrained"
    refused(message, apply_files, folder, SparseDelta({}))
    with pytest.raises(DeltaError, match="call save_pretrained"):
        apply_files(folder / name, SparseDelta({}), tmp_path / "out")


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    SparseDelta({}).save(tmp_path / "delta")
    for name, message in (
        ("none", "expected a checkpoint folder, there is none"),
        ("empty", "there are none$"),
        ("delta", "there are none$"),
    ):
        with pytest.raises(DeltaError, match=message):
            apply_files(tmp_path / name, SparseDelta({}), tmp_path / "out")


def test_what_is_copied_and_what_is_not(story):
    folder, _, delta = story
    for name in (".git/config", ".cache/x", "sub/.hidden", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    old = ["pytorch_model.bin", "pytorch_model.bin.index.json", "onnx/model.onnx", "original/consolidated.00.pth"]
    for name in [*old, "tf_model.h5", "other.safetensors", "other.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    out = folder.parent / "out"
    done = apply_files(folder, delta, out)
    assert set(done.left_out) == {*old, "tf_model.h5", "other.safetensors"}
    expected = {"1_Pooling/config.json", "2_Dense/model.safetensors", "other.txt", "config.json", "tokenizer/words.txt"}
    assert files_in(out).keys() == expected | {FIRST, SECOND, "model.safetensors.index.json"}


def test_a_link_to_nothing_beside_the_weights(story):
    folder, _, delta = story
    (folder / "vocab.txt").symlink_to("../../blobs/gone")
    with pytest.raises(DeltaError, match="expected a file, got a link to nothing"):
        apply_files(folder, delta, folder.parent / "out")


def test_a_folder_of_the_hubs_cache(story):
    """All files are links to blobs; they are read, not written to, and the copy has files."""
    folder, tuned, delta = story
    snapshot, blobs = folder.parent / "models" / "snapshots" / "abc", folder.parent / "models" / "blobs"
    blobs.mkdir(parents=True)
    for number, (name, data) in enumerate(files_in(folder).items()):
        (blobs / str(number)).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blobs / str(number), (snapshot / name).parent))
    before, out = files_in(blobs), folder.parent / "out"
    apply_files(snapshot, delta, out)
    assert files_in(out).keys() == files_in(folder).keys()
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert_same_tensors(tensors_in(out), tuned)
    assert files_in(blobs) == before
