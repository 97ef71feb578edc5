"""What the adapters refuse: the message names the argument and what is there, and nothing was changed."""

import pytest
import torch
from families import tiny, transformers
from selective_peft.adapters import adapter_state, add_adapters, load_adapter_state, remove_adapters
from torch import nn

from selective_kernels.testing import assert_bitwise_equal

SIZE = 5


def test_state_of_other_adapters_is_refused():
    model = tiny("bert")
    with pytest.raises(ValueError, match="model: expected one with adapters"):
        adapter_state(model)
    with pytest.raises(ValueError, match="state: expected the 0 parameters"):
        load_adapter_state(model, {})
    add_adapters(model, size=SIZE)
    state = adapter_state(model)
    first = next(iter(state))
    wrong = {
        r"got 7: missing \['bert.encoder.layer.0": {name: value for name, value in state.items() if name != first},
        r"got 9: missing \[\], unknown \['x'\]": {**state, "x": torch.zeros(1)},
        r"down.weight: expected torch.float32 \(5, 16\), got torch.float32 \(4, 16\)": {
            **state,
            first: state[first][1:],
        },
        "got torch.float64": {**state, first: state[first].double()},
    }
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_adapter_state(model, {name: value + 1 for name, value in given.items()})
        for name, value in adapter_state(model).items():
            assert_bitwise_equal(value, state[name], name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"placement": "parallel"}, r"placement: expected one of \['houlsby', 'pfeiffer'\], got 'parallel'"),
        ({"activation": "step"}, r"activation: expected one of \['gelu', 'relu', 'silu', 'tanh'\], got 'step'"),
        ({"size": 0}, "size: expected an integer >= 1, got 0"),
        ({"size": True}, "size: expected an integer >= 1, got True"),
        ({"train_fully": ["classifier"]}, "train_fully: expected no patterns without freeze_base=True"),
        ({"freeze_base": True, "train_fully": ["head"]}, "got 'head', which fits none; there are: bert.emb"),
    ],
)
def test_bad_arguments(arguments, message):
    model = tiny("bert")
    with pytest.raises(ValueError, match=message):
        add_adapters(model, **arguments)
    assert all(param.requires_grad for param in model.parameters())
    assert vars(model).keys() == vars(tiny("bert")).keys()


def test_patterns_are_a_list():
    with pytest.raises(TypeError, match="train_fully: expected a list of patterns, got the string 'classifier'"):
        add_adapters(tiny("bert"), freeze_base=True, train_fully="classifier")


def test_adapters_twice_and_taking_away_what_is_not_there():
    model = tiny("bert")
    with pytest.raises(ValueError, match="expected the module given to add_adapters, got a BertForSequence"):
        remove_adapters(model)
    add_adapters(model, size=SIZE)
    for module in (model, model.bert):
        with pytest.raises(ValueError, match="model: expected one without adapters, got 2 of them"):
            add_adapters(module, size=SIZE)
    with pytest.raises(ValueError, match="expected the module given to add_adapters"):
        remove_adapters(model.bert)


def quantize(model):
    model.layers[1].mlp.down_proj.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)


def strange_layer(model):
    model.layers[1].mlp = nn.Bilinear(2, 2, 2)


def strange_projection(model):
    model.layers[1].mlp.down_proj = nn.Identity()


def taken_name(model):
    model.layers[0].mlp.adapter = nn.Identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantize, "layers.1.mlp.down_proj: expected weights of a floating-point dtype, got torch.uint8"),
        (strange_layer, r"expected layers like those of BERT.*got LlamaDecoderLayer: layers.1 \(self_attn, mlp, "),
        (strange_projection, "layers.1.mlp.down_proj: expected a linear map, got Identity"),
        (taken_name, "layers.0.mlp: expected no attribute 'adapter'"),
    ],
)
def test_a_layer_that_cannot_take_one_is_named(change, message):
    model = tiny("llama").model
    change(model)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        add_adapters(model, size=SIZE)
    assert [name for name, _ in model.named_modules()] == before


def test_an_unknown_family_is_refused():
    config = transformers.AlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=24
    )
    known = r"BERT.*\(attention.output.dense, .*Llama.*GPT-2.*T5"
    with pytest.raises(ValueError, match=rf"expected layers like those of {known}.*got .*AlbertLayer: .*attention"):
        add_adapters(transformers.AlbertModel(config))
    with pytest.raises(ValueError, match=r"got Sequential: the model itself \(0, 1\)"):
        add_adapters(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
