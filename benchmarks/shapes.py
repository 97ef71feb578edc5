"""Tensor shapes of real models, so that kernels are measured on what they will meet without any weights at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]

# Typical of a trained model's matrices and of their gradients; only the order of the scores matters to the speed.
PARAM_STD = 0.04
GRAD_STD = 1e-3


def bert_shapes(
    layers: int, hidden: int, intermediate: int, *, vocabulary: int = 30522, positions: int = 512, labels: int = 2
) -> dict[str, Shape]:
    """Names and shapes of a BERT encoder with pooler and classifier, in the order of `named_parameters()`.

    Source: `BertForSequenceClassification` of transformers.
    """
    shapes: dict[str, Shape] = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, hidden),
        "bert.embeddings.position_embeddings.weight": (positions, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        **_norm("bert.embeddings.LayerNorm", hidden),
    }
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes.update(_linear(f"{layer}.attention.{name}", hidden, hidden))
        shapes.update(_norm(f"{layer}.attention.output.LayerNorm", hidden))
        shapes.update(_linear(f"{layer}.intermediate.dense", intermediate, hidden))
        shapes.update(_linear(f"{layer}.output.dense", hidden, intermediate))
        shapes.update(_norm(f"{layer}.output.LayerNorm", hidden))
    shapes.update(_linear("bert.pooler.dense", hidden, hidden))
    shapes.update(_linear("classifier", labels, hidden))
    return shapes


def deberta_shapes(
    layers: int, hidden: int, intermediate: int, *, vocabulary: int = 128100, relative: int = 512, labels: int = 2
) -> dict[str, Shape]:
    """The same of a DeBERTa-v3 encoder, whose layers share one table of relative positions.

    Source: `DebertaV2ForSequenceClassification` of transformers.
    """
    shapes: dict[str, Shape] = {
        "deberta.embeddings.word_embeddings.weight": (vocabulary, hidden),
        **_norm("deberta.embeddings.LayerNorm", hidden),
    }
    for i in range(layers):
        layer = f"deberta.encoder.layer.{i}"
        for name in ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"):
            shapes.update(_linear(f"{layer}.attention.{name}", hidden, hidden))
        shapes.update(_norm(f"{layer}.attention.output.LayerNorm", hidden))
        shapes.update(_linear(f"{layer}.intermediate.dense", intermediate, hidden))
        shapes.update(_linear(f"{layer}.output.dense", hidden, intermediate))
        shapes.update(_norm(f"{layer}.output.LayerNorm", hidden))
    shapes["deberta.encoder.rel_embeddings.weight"] = (relative, hidden)
    shapes.update(_norm("deberta.encoder.LayerNorm", hidden))
    shapes.update(_linear("pooler.dense", hidden, hidden))
    shapes.update(_linear("classifier", labels, hidden))
    return shapes


def decoder_shapes(
    layers: int, hidden: int, intermediate: int, *, key_value: int, vocabulary: int, tied: bool, biases: bool
) -> dict[str, Shape]:
    """The same of a Llama language model, or of a Qwen2.5 one, whose queries, keys and values have biases.

    `key_value` is the width of keys, and of values. A tied head is no tensor of its own.

    Source: `LlamaForCausalLM`, `Qwen2ForCausalLM` of transformers.
    """
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name, width in (("q", hidden), ("k", key_value), ("v", key_value)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, hidden)
            if biases:
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (width,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, intermediate)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def t5_shapes(
    layers: int, hidden: int, intermediate: int, *, heads: int, vocabulary: int = 32128, buckets: int = 32
) -> dict[str, Shape]:
    """The same of a T5 model with as many layers in the encoder as in the decoder, heads of 64, and a tied head.

    Source: `T5ForConditionalGeneration` of transformers.
    """
    shapes: dict[str, Shape] = {"shared.weight": (vocabulary, hidden)}
    for stack, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for i in range(layers):
            block = f"{stack}.block.{i}"
            for j, attention in enumerate(attentions):
                for name in "qkv":
                    shapes[f"{block}.layer.{j}.{attention}.{name}.weight"] = (64 * heads, hidden)
                shapes[f"{block}.layer.{j}.{attention}.o.weight"] = (hidden, 64 * heads)
                if i == j == 0:
                    shapes[f"{block}.layer.0.SelfAttention.relative_attention_bias.weight"] = (buckets, heads)
                shapes[f"{block}.layer.{j}.layer_norm.weight"] = (hidden,)
            dense = f"{block}.layer.{len(attentions)}"
            shapes[f"{dense}.DenseReluDense.wi.weight"] = (intermediate, hidden)
            shapes[f"{dense}.DenseReluDense.wo.weight"] = (hidden, intermediate)
            shapes[f"{dense}.layer_norm.weight"] = (hidden,)
        shapes[f"{stack}.final_layer_norm.weight"] = (hidden,)
    return shapes


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, hidden: int) -> dict[str, Shape]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


MODELS: dict[str, dict[str, Shape]] = {
    "bert-base": bert_shapes(12, 768, 3072),
    "minilm-l6": bert_shapes(6, 384, 1536),
    "deberta-v3-base": deberta_shapes(12, 768, 3072),
    "t5-small": t5_shapes(6, 512, 2048, heads=8),
    "smollm2-135m": decoder_shapes(30, 576, 1536, key_value=192, vocabulary=49152, tied=True, biases=False),
    "qwen2.5-1.5b": decoder_shapes(28, 1536, 8960, key_value=256, vocabulary=151936, tied=True, biases=True),
    "qwen2.5-7b": decoder_shapes(28, 3584, 18944, key_value=512, vocabulary=152064, tied=False, biases=True),
    "tiny": bert_shapes(1, 16, 32, vocabulary=40, positions=8),  # to try a benchmark, not to measure
}


def total(shapes: Mapping[str, Shape]) -> int:
    """Number of scalars."""
    return sum(prod(shape) for shape in shapes.values())


def random_tensors(
    shapes: Mapping[str, Shape], std: float, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Normally distributed tensors of these shapes; the same seed gives the same numbers on the same kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=device).mul_(std).to(dtype) for shape in shapes.values()]


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Clones that require a gradient, in memory of their own."""
    return [tensor.clone().requires_grad_() for tensor in tensors]
