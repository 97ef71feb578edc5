"""Selective fine-tuning: drop-in optimizers that train a chosen few scalars of a model."""

from selective_peft.fisher import fisher_scores
from selective_peft.groups import selective_param_groups
from selective_peft.methods import methods
from selective_peft.optim import SelectiveAdam, SelectiveAdamW, SelectiveSGD
from selective_peft.scores import D3, Random, SmallestMagnitude, Snip
from selective_peft.tensor_scores import Difference, PerTensor
from selective_peft.wrapped import selective

__all__ = [
    "D3",
    "Difference",
    "PerTensor",
    "Random",
    "SelectiveAdam",
    "SelectiveAdamW",
    "SelectiveSGD",
    "SmallestMagnitude",
    "Snip",
    "fisher_scores",
    "methods",
    "selective",
    "selective_param_groups",
]
