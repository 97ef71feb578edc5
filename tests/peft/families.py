"""Tiny random models of the families in use, each with a head and a seeded batch."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[test]'")

VOCABULARY = 60
ROWS, LENGTH = 4, 7
WIDTH = 16
ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "num_labels": 3,
}  # fmt: skip
DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
DEBERTA_V3 = {  # what deberta-v3-base sets
    **ENCODER, "type_vocab_size": 0, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
    "max_relative_positions": -1,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_positions": 32, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "bos_token_id": 1,
    "eos_token_id": 1,
}  # fmt: skip

# family: (class of the configuration, its arguments, class of the model, what the labels are)
FAMILIES = {
    "bert": ("BertConfig", ENCODER, "BertForSequenceClassification", "class"),
    "roberta": ("RobertaConfig", ENCODER, "RobertaForTokenClassification", "token class"),
    "deberta-v3": ("DebertaV2Config", DEBERTA_V3, "DebertaV2ForSequenceClassification", "class"),
    "t5": ("T5Config", T5, "T5ForConditionalGeneration", "token"),
    "gpt2": ("GPT2Config", GPT2, "GPT2LMHeadModel", "token"),
    "llama": ("LlamaConfig", DECODER, "LlamaForCausalLM", "token"),
    "qwen2": ("Qwen2Config", DECODER, "Qwen2ForCausalLM", "token"),
}


def tiny(family, seed=0, **changes):
    """A model of a family in training mode, with its dropout; the same one for the same seed."""
    config_class, arguments, model_class, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, config_class)(**{**arguments, **changes})
        return getattr(transformers, model_class)(config).train()


def batch(family, seed=0):
    """Token ids, a mask that leaves out the end of a row, and labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCABULARY, (ROWS, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, -2:] = 0
    labels = {
        "class": torch.randint(3, (ROWS,), generator=generator),
        "token class": torch.randint(3, (ROWS, LENGTH), generator=generator),
        "token": tokens,
    }
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels[FAMILIES[family][3]]}


def backward(model, family, seed=0):
    """One batch forward and backward, with dropout drawn from the seed; returns the loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = model(**batch(family, seed)).loss
    loss.backward()
    return loss.detach()


def snapshot(model):
    """Copies of all parameters by name."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}
