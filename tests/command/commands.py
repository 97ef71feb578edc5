"""Running `selective-peft train` in tests, and putting what it saved into fresh models."""

import json

import torch
from safetensors.torch import load_file
from selective_peft.cli import main

FAST = {"--steps": 6, "--batch-size": 8, "--evaluations": 1, "--lr": 0.01, "--budget": 300}


def train(model, file, output, *more, **changed):
    """The exit code; `changed` are options like FAST's, None leaves one out."""
    given = {**FAST, **{f"--{name.replace('_', '-')}": value for name, value in changed.items()}}
    options = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    command = ["train", "--model", str(model), "--data", str(file), "--output", str(output), *options]
    return main([*command, *map(str, more)])


def report_of(output):
    return json.loads((output / "metrics.json").read_text())


@torch.no_grad()
def put_in(model, file):
    """As docs/quickstart.md does it; every value must find its place."""
    values = load_file(file)
    for name, param in model.named_parameters():
        if name in values:
            param.copy_(values.pop(name))
        elif f"{name}.indices" in values:
            param.view(-1)[values.pop(f"{name}.indices").long()] = values.pop(f"{name}.values")
    assert not values
    return model.eval()
