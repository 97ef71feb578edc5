"""Short selective runs, with dense masks of what was selected after each step."""

import torch
from harness import make_grads, make_params, set_grads
from selective_peft import SelectiveAdamW


def named(params):
    return [(f"m.{i}.weight", param) for i, param in enumerate(params)]


def run(dtype=torch.float32, steps=7, **options):
    """An optimizer after some steps, its parameters, their first values, and the dense masks after each step."""
    params = make_params(dtype=dtype)
    first = [param.detach().clone() for param in params]
    opt = SelectiveAdamW(named(params), lr=1e-2, **{"budget": 60, "total_steps": 10, **options})
    history = []
    for step in range(steps):
        set_grads(params, make_grads(params, step))
        opt.step()
        masks = [torch.zeros(param.numel(), dtype=torch.bool) for param in params]
        for mask, param in zip(masks, params, strict=True):
            mask[opt.selected_indices(param)] = True
        history.append(masks)
    return opt, params, first, history
