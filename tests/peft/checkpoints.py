"""What the tests of deltas on files share: checkpoint folders of plain tensors, and what is in them."""

import json
from pathlib import Path

import pytest
import torch
from deltatests import DTYPES, changed, random_tensor
from safetensors.torch import load_file, save_file
from selective_peft.errors import DeltaError
from selective_peft.patch_files import apply_files

LAYERS, WIDTH = 3, 12


def base_tensors(prefix="", seed=0):
    """An embedding, layers of all dtypes, a counter, an empty tensor."""
    found = {f"{prefix}embed.weight": random_tensor((20, WIDTH), torch.float32, seed)}
    for i in range(LAYERS):
        dtype = DTYPES[i % len(DTYPES)]
        found[f"{prefix}layer.{i}.weight"] = random_tensor((WIDTH, WIDTH), dtype, seed + i + 1)
        found[f"{prefix}layer.{i}.bias"] = random_tensor((WIDTH,), dtype, seed + i + 50)
    found[f"{prefix}steps"] = torch.tensor([3, 4])
    found[f"{prefix}empty"] = torch.empty(0, WIDTH)
    return found


def tuned_tensors(base, share=0.1, seed=7):
    return {
        name: changed(tensor, share, seed + i) if tensor.dtype in DTYPES else tensor.clone()
        for i, (name, tensor) in enumerate(base.items())
    }


def renamed(tensors, cut="", put=""):
    return {put + name.removeprefix(cut): tensor for name, tensor in tensors.items()}


def write(folder, tensors, shards=1, config=None, metadata=None):
    """A checkpoint folder as save_pretrained writes it, with files beside the weights."""
    folder.mkdir(parents=True)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # the library refuses shared memory
    metadata = {"format": "pt", "note": "kept"} if metadata is None else metadata
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
    else:
        names, weight_map = list(tensors), {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            mine = {name: tensors[name] for name in names[i::shards]}
            save_file(mine, folder / file, metadata)
            weight_map |= dict.fromkeys(mine, file)
        write_index(folder, weight_map, {"total_size": sum(tensor.nbytes for tensor in tensors.values())})
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny"} if config is None else config))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "words.txt").write_bytes(b"a\r\nb\n\xff")
    return folder


def write_index(folder, weight_map, metadata=None):
    content = {"metadata": metadata or {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def refused(message, operation, folder, delta, **options):
    """The operation raises, and leaves nothing behind."""
    before = files_in(folder.parent)
    with pytest.raises(DeltaError, match=message):
        operation(folder, delta, folder.parent / "refused", **options)
    assert files_in(folder.parent) == before
    assert not (folder.parent / "refused").exists()


def tensors_in(folder):
    """All tensors of a checkpoint, as another library reads them; checks the index, if there is one."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        mine = load_file(path)
        assert not mine.keys() & found.keys()
        found |= mine
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        assert content["weight_map"].keys() == found.keys()
        for name, file in content["weight_map"].items():
            assert name in load_file(folder / file)
        if "total_size" in content["metadata"]:
            assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    return found


def files_in(folder):
    """Bytes of all files by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert same(actual[name], tensor), name


def same(a, b):
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def applied(folder, delta, **options):
    """Where the patched copy of a checkpoint lies."""
    out = folder.parent / f"{folder.name}-out"
    apply_files(folder, delta, out, **options)
    return out
