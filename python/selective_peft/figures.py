"""What to log of a selective optimizer."""

from __future__ import annotations

from torch.optim import Optimizer

from selective_peft.making_deltas import bare_optimizer

PREFIX = "selective/"


def selection_figures(optimizer: Optimizer) -> dict[str, float]:
    """Numbers about a selection, for a logger.

    "selective/selected": scalars selected so far; "selective/sparsity": share of the selective scalars that are not;
    "selective/threshold": the lowest score in the last selection, left out where there is none;
    "selective/skipped_steps": steps that the optimizer skipped because of inf or NaN. The first three are left out if
    all is trained whole. On a GPU this waits to know whether the last step was skipped.

    Args:
        optimizer: a selective one, or Accelerate's wrapper of one.

    Raises:
        ValueError: another optimizer.
    """
    inner = bare_optimizer(optimizer)
    params = [param for group in inner.param_groups if group["selective"] for param in group["params"]]
    scalars = sum(param.numel() for param in params if param.requires_grad)
    found: dict[str, float] = {"skipped_steps": inner.skipped_steps}
    if scalars:
        found |= {"selected": inner.num_selected, "sparsity": 1.0 - inner.num_selected / scalars}
        if inner.threshold is not None:
            found["threshold"] = inner.threshold
    return {f"{PREFIX}{name}": found[name] for name in sorted(found)}
