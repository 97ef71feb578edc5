"""The shapes that are measured are those of the models that they are named after."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.shapes import MODELS, total


def qwen(hidden, intermediate, heads, key_values, vocabulary, tied):
    return Qwen2ForCausalLM, Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=28,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


# As the config.json of each checkpoint says, with two labels where there is a classifier.
CONFIGS = {
    "bert-base": (BertForSequenceClassification, BertConfig()),
    "minilm-l6": (
        BertForSequenceClassification,
        BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6),
    ),
    "deberta-v3-base": (
        DebertaV2ForSequenceClassification,
        DebertaV2Config(
            hidden_size=768,
            num_attention_heads=12,
            num_hidden_layers=12,
            intermediate_size=3072,
            vocab_size=128100,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=256,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
        ),
    ),
    "t5-small": (
        T5ForConditionalGeneration,
        T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128),
    ),
    "smollm2-135m": (
        LlamaForCausalLM,
        LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2.5-1.5b": qwen(1536, 8960, 12, 2, 151936, True),
    "qwen2.5-7b": qwen(3584, 18944, 28, 4, 152064, False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_shapes_and_order_are_those_of_the_model(name):
    kind, config = CONFIGS[name]
    with torch.device("meta"):
        model = kind(config)
    expected = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert list(MODELS[name].items()) == list(expected.items())
    assert total(MODELS[name]) == sum(param.numel() for param in model.parameters())


def test_every_model_that_is_measured_is_compared():
    assert set(CONFIGS) == set(MODELS) - {"tiny"}
