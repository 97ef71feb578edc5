"""Tensor shapes of real encoders, so that kernels are measured on what they will meet without any weights at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]

# Typical of a trained encoder's matrices and of their gradients; only the order of the scores matters to the speed.
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


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, hidden: int) -> dict[str, Shape]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


MODELS: dict[str, dict[str, Shape]] = {
    "bert-base": bert_shapes(12, 768, 3072),
    "minilm-l6": bert_shapes(6, 384, 1536),
}


def total(shapes: Mapping[str, Shape]) -> int:
    """Number of scalars."""
    return sum(prod(shape) for shape in shapes.values())


def random_tensors(shapes: Mapping[str, Shape], std: float, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Normally distributed tensors of these shapes; the same seed gives the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).mul_(std).to(dtype) for shape in shapes.values()]


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Clones that require a gradient, in memory of their own."""
    return [tensor.clone().requires_grad_() for tensor in tensors]
