"""Modules and layers read from parameter names."""

import pytest
from selective_peft.naming import count_by_place, layer_order, places, top_modules

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
