"""Selective fine-tuning: drop-in optimizers that train a chosen few scalars of a model."""

from selective_peft.composing import agreement, compose
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.fisher import fisher_scores
from selective_peft.groups import selective_param_groups
from selective_peft.methods import methods
from selective_peft.optim import SelectiveAdam, SelectiveAdamW, SelectiveSGD
from selective_peft.scores import D3, Random, SmallestMagnitude, Snip
from selective_peft.swapping import swap_
from selective_peft.tensor_scores import Difference, PerTensor
from selective_peft.weight_patches import WeightPatch
from selective_peft.wrapped import selective

__all__ = [
    "D3",
    "DeltaError",
    "Difference",
    "PerTensor",
    "Random",
    "SelectiveAdam",
    "SelectiveAdamW",
    "SelectiveSGD",
    "SmallestMagnitude",
    "Snip",
    "SparseDelta",
    "WeightPatch",
    "agreement",
    "compose",
    "fisher_scores",
    "methods",
    "selective",
    "selective_param_groups",
    "swap_",
]
