"""Names of the bare model's parameters; modules and layers read from them."""

import os
import subprocess
import sys

import pytest
import torch
from selective_peft.naming import count_by_place, layer_order, named_params, places, tied_names, top_modules, unwrapped
from torch import nn
from torch.nn.parallel import DataParallel

# name -> (module, layer), for a model with one stack of layers
ONE_STACK = {
    "bert.embeddings.word_embeddings.weight": ("bert.embeddings.word_embeddings", ""),
    "bert.encoder.layer.0.attention.self.query.bias": ("attention.self.query", "0"),
    "bert.encoder.layer.11.attention.self.query.weight": ("attention.self.query", "11"),
    "bert.encoder.layer.3.experts.7.up.weight": ("experts.7.up", "3"),  # only the first number is the layer
    "bert.encoder.layer.2.weight": ("bert.encoder.layer.*", "2"),  # nothing follows but the last part
    "weight": ("weight", ""),
    "0.weight": ("0", ""),  # of a Sequential: not between two dots
    "param_groups[0]['params'][3]": ("param_groups[0]['params'][3]", ""),
}


@pytest.mark.parametrize("name", ONE_STACK)
def test_place_by_hand(name):
    assert places([name]) == [ONE_STACK[name]]


def test_places_keep_the_order_of_names():
    assert places(ONE_STACK) == list(ONE_STACK.values())


def test_prefix_goes():
    names = ["bert.embeddings.x.weight", "bert.layer.0.weight", "albert.x.weight"]
    assert places(names, "bert.") == [("embeddings.x", ""), ("layer.*", "0"), ("albert.x", "")]


def test_stacks_are_kept_apart():
    names = ["shared.weight", "encoder.block.0.layer.0.q.weight", "decoder.block.0.layer.0.q.weight"]
    assert places(names) == [
        ("shared", ""),
        ("encoder.block.*.layer.0.q", "0"),
        ("decoder.block.*.layer.0.q", "0"),
    ]


def test_counts_add_up_by_place():
    where = places(["m.0.a.weight", "m.0.a.bias", "m.1.a.bias", "head.bias"])
    assert count_by_place(where, [1, 2, 4, 8]) == {"a": {"0": 3, "1": 4}, "head": {"": 8}}


def test_layers_are_ordered_by_number():
    assert layer_order(["10", "2", "", "2"]) == ["", "2", "10"]


def test_rows_of_a_long_table():
    counts = {"a": 1, "b": 5, "c": 0, "d": 5}
    assert top_modules(counts, 4) == {"b": "b", "d": "d", "a": "a", "c": "c"}
    assert top_modules(counts, 3) == {"b": "b", "d": "d", "a": "others (2)", "c": "others (2)"}
    assert top_modules({}, 3) == {}


class Odd(nn.Module):
    """Names that look like a wrapper's, a tied weight, a module in two places, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.again = self.module[1]
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.module[1].weight
        self.nothing = nn.Linear(2, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.tied(self.again(self.module(x))) * self.scale


def compiled(module):
    return torch.compile(module, backend="eager")


def wrap_parts(model):
    model.module[0] = compiled(model.module[0])
    model.tied = compiled(DataParallel(model.tied))
    return model


WRAPPERS = {
    "bare": lambda model: model,
    "compiled": compiled,
    "parallel": DataParallel,
    "compiled, then parallel": lambda model: DataParallel(compiled(model)),
    "parallel, then compiled": lambda model: compiled(DataParallel(model)),
    "compiled in parts": wrap_parts,
    "all of it": lambda model: compiled(DataParallel(wrap_parts(model))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_those_of_the_bare_model(wrapper):
    model = Odd()
    expected = dict(model.named_parameters())
    wrapped = WRAPPERS[wrapper](model)
    found = named_params(wrapped)
    assert list(found) == list(expected)
    assert all(found[name] is param for name, param in expected.items())
    assert next(iter(found)) == "scale"
    assert "module.1.weight" in found
    assert not {"again.weight", "tied.weight"} & set(found)
    assert unwrapped(wrapped) is model
    if wrapper != "bare":
        assert list(dict(wrapped.named_parameters())) != list(expected)  # the wrapper does change names


def test_names_without_a_compiler_do_not_import_it():
    """torch._dynamo takes seconds to import."""
    code = (
        "import sys, torch; from selective_peft.naming import named_params; named_params(torch.nn.Linear(2, 2)); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"


def test_further_names_of_tied_parameters():
    """Of shared parameters and shared modules, in their order, without what wrappers add."""
    model = nn.Module()
    model.embed = nn.Embedding(4, 3)
    model.part = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4))
    model.part[1].weight = model.embed.weight
    model.again = model.embed
    model.loop = nn.Module()
    model.loop.weight = model.part[0].bias
    expected = {"embed.weight": ("part.1.weight", "again.weight"), "part.0.bias": ("loop.weight",)}
    assert tied_names(model) == expected
    model.part = torch.compile(model.part, backend="eager")
    assert tied_names(nn.DataParallel(model)) == expected
    assert tied_names(nn.Linear(2, 2)) == {}
