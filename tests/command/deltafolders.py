"""A tiny checkpoint, tuned ones, and the deltas between them, for tests of the commands that work on them."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file
from selective_peft import SparseDelta
from selective_peft.cli import main

WEIGHTS = "model.safetensors"
FILE = "selective_delta.safetensors"
CHANGED = {  # tensor -> scalars that are changed
    "encoder.layer.0.attention.self.query.weight": 20,
    "encoder.layer.1.attention.self.query.weight": 12,
    "encoder.layer.1.output.dense.bias": 3,
    "pooler.dense.weight": 40,
}


def tuned_weights(base, seed, changed=CHANGED, head=True):
    """The base's tensors with some scalars changed by the seed, and a new head."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for name, count in changed.items():
        flat = tuned[name].view(-1)
        places = torch.randperm(len(flat), generator=generator)[:count]
        flat[places] += torch.randn(count, generator=generator)
    if head:
        tuned["classifier.weight"] = torch.randn(2, 32, generator=generator)
    return tuned


def write_model(folder, like, tensors):
    """A copy of a checkpoint folder with other tensors."""
    shutil.copytree(like, folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def write_delta(folder, base, tuned, **more):
    SparseDelta.from_models(base, tuned, base_model="tiny").save(folder, **more)
    return folder


def pair(tmp_path, tiny_model, **more):
    """Folders of two deltas of the tiny model, without new tensors; they share some places."""
    base = load_file(tiny_model / WEIGHTS)
    return [
        write_delta(tmp_path / name, base, tuned_weights(base, seed, head=False), **more)
        for name, seed in (("a", 1), ("b", 2))
    ]


def ran(capsys, *given):
    """Exit code, what stands on stdout, what on stderr."""
    capsys.readouterr()
    code = main([str(each) for each in given])
    return (code, *capsys.readouterr())


def json_of(capsys, *given):
    """What a command prints with --json; nothing else stands anywhere."""
    code, out, error = ran(capsys, *given, "--json")
    assert (code, error) == (0, "")
    return json.loads(out)


def refused(capsys, words, *given):
    """The command is refused in one sentence."""
    code, out, error = ran(capsys, *given)
    assert (code, out) == (2, ""), error
    assert error.startswith("selective-peft: ")
    assert words in error, error
    assert error.count("\n") == 1


def all_files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
