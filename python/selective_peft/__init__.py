"""Selective fine-tuning: drop-in optimizers that train a chosen few scalars of a model."""

from selective_peft.optim import SelectiveAdam, SelectiveAdamW, SelectiveSGD
from selective_peft.scores import D3

__all__ = ["D3", "SelectiveAdam", "SelectiveAdamW", "SelectiveSGD"]
