"""Selective fine-tuning written for clarity: dense masks, one stable sort, torch's own dense optimizers.

Everything is held in float32: an unselected entry of a 16-bit parameter is exactly its widened value, and a selected
one is the fp32 master copy that C6 asks for.
"""

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import torch
from torch.nn import Parameter

getcontext().prec = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")

OPTIMIZERS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam, "SGD": torch.optim.SGD}


def sine(x):
    """sin of a Decimal by its Taylor series: exact enough that no floor below can go wrong."""
    term, total, n = x, x, 1
    while abs(term) > Decimal(10) ** -50:
        n += 2
        term = -term * x * x / ((n - 1) * n)
        total += term
    return total


def target(schedule, step, total_steps, budget):
    """C5: floor(B F(x)), x = (t + 1) / T, the last one forced to B; a callable gives the target itself."""
    if step >= total_steps - 1:
        return budget
    if callable(schedule):
        return schedule(step, total_steps, budget)
    x = Fraction(step + 1, total_steps)
    if schedule == "cosine":
        decimal = Decimal(x.numerator) / Decimal(x.denominator)
        return math.floor(budget * (decimal + sine(PI * decimal) / PI))
    share = {"uniform": x, "linear": 1 - (1 - x) ** 2, "front": min(Fraction(1), 10 * x)}[schedule]
    return math.floor(budget * share)


def quota(schedule, step, total_steps, budget, selected, *, select_every=1, static=False):
    """C5: how many entries the step selects."""
    if step >= total_steps or step % select_every:
        return 0
    ahead = min(step + select_every, total_steps) - 1
    return (budget if static else target(schedule, ahead, total_steps, budget)) - selected


def score(grad, theta, exp, eps):
    """C2: |g| / (|theta| + eps)^exp in float32, every operation rounded once."""
    d = theta.float().abs() + torch.tensor(eps, dtype=torch.float32)
    power = {0.0: torch.ones_like(d), 0.5: d.sqrt(), 1.0: d, 2.0: d * d}[exp]
    return grad.float().abs() / power


class Oracle:
    """One selective optimizer over groups of parameters, which it copies and never changes.

    Args:
        groups: dicts with "params" and the group's options for torch's optimizer.
        optimizer: "AdamW", "Adam" or "SGD".
    """

    def __init__(
        self, groups, optimizer, *, budget, total_steps, exp=2.0, eps=1.0, strategy="increment", schedule="uniform",
        select_every=1, bias_correction="global", max_grad_norm=None,
    ):  # fmt: skip
        params = [param for group in groups for param in group["params"]]
        self.budget, self.total_steps, self.exp, self.eps = budget, total_steps, exp, eps
        self.static, self.schedule, self.select_every = strategy == "static", schedule, select_every
        self.per_entry, self.max_grad_norm = bias_correction == "per_entry", max_grad_norm
        self.frozen = [param.detach().clone() for param in params]
        self.values = [Parameter(param.detach().float().clone()) for param in params]
        self.masks = [torch.zeros(param.shape, dtype=torch.bool) for param in params]
        self.chosen = [torch.full(param.shape, -1) for param in params]
        self.options, self.make = [], OPTIMIZERS[optimizer]
        rest = iter(self.values)
        dense_groups = []
        for group in groups:
            options = {key: value for key, value in group.items() if key != "params"}
            self.options += [options] * len(group["params"])
            dense_groups.append({**options, "params": [next(rest) for _ in group["params"]]})
        self.dense = self.make(dense_groups)
        self.cohorts = []
        self.step_number = 0

    @property
    def count(self):
        return sum(int(mask.sum()) for mask in self.masks)

    def visible(self, i):
        """Parameter i as the model should hold it."""
        return torch.where(self.masks[i], self.values[i].detach().to(self.frozen[i].dtype), self.frozen[i])

    def selected(self, i):
        return self.masks[i].reshape(-1).nonzero().reshape(-1)

    def step(self, grads):
        """One step; `grads` has one gradient or None per parameter."""
        if all(grad is None for grad in grads):
            return
        new = self.select(grads)
        clip = self.clip_factor(grads)
        if self.per_entry:
            self.update_cohorts(new, grads, clip)
        else:
            self.update_dense(grads, clip)
        self.step_number += 1

    def select(self, grads):
        """Adds the best entries to the masks (C3, C4, C5); returns the masks of the new ones."""
        wanted = quota(
            self.schedule, self.step_number, self.total_steps, self.budget, self.count,
            select_every=self.select_every, static=self.static,
        )  # fmt: skip
        keys = []
        for i, (grad, mask) in enumerate(zip(grads, self.masks, strict=True)):
            key = self.key(i, grad)
            keys.append(torch.where(mask | ~key.isfinite(), torch.zeros(()), key).reshape(-1))
        new = self.best(keys, wanted)
        pieces = [
            piece.reshape(mask.shape)
            for piece, mask in zip(new.split([len(key) for key in keys]), self.masks, strict=True)
        ]
        for piece, mask, chosen in zip(pieces, self.masks, self.chosen, strict=True):
            mask |= piece
            chosen[piece] = self.step_number
        return pieces

    def key(self, i, grad):
        """Scores of parameter i in float32; 0 or less is not selectable."""
        if grad is None:
            return torch.zeros_like(self.values[i]).detach()
        return score(grad, self.values[i].detach(), self.exp, self.eps)

    def best(self, keys, wanted):
        """Which entries of all are among the best `wanted`, as one flat mask."""
        flat = torch.cat(keys)
        best = torch.sort(flat, descending=True, stable=True).indices[:wanted]
        new = torch.zeros(len(flat), dtype=torch.bool)
        new[best] = flat[best] > 0
        return new

    def clip_factor(self, grads):
        """C9: by the float64 norm over the selected entries; 1e-6 as in torch.nn.utils.clip_grad_norm_."""
        if self.max_grad_norm is None:
            return 1.0
        chosen = [grad[mask].double() for grad, mask in zip(grads, self.masks, strict=True) if grad is not None]
        return min(1.0, self.max_grad_norm / (float(torch.cat(chosen).norm()) + 1e-6))

    def update_dense(self, grads, clip):
        """torch's dense step on masked gradients; then everything that is not selected is put back."""
        before = [value.detach().clone() for value in self.values]
        for value, grad, mask in zip(self.values, grads, self.masks, strict=True):
            value.grad = None if grad is None else torch.where(mask, grad.float() * clip, torch.zeros(()))
        self.dense.step()
        with torch.no_grad():
            for value, old, mask in zip(self.values, before, self.masks, strict=True):
                value[~mask] = old[~mask]
                self.forget(value, mask)

    def forget(self, value, mask):
        """What is not selected has no moments, whatever weight decay did to them."""
        for name, moment in self.dense.state[value].items():
            if name != "step" and moment is not None:
                moment[~mask] = 0.0

    def update_cohorts(self, new, grads, clip):
        """The entries selected in one step form a cohort with a torch optimizer of its own, whose steps are ages."""
        if any(mask.any() for mask in new):
            parts = [Parameter(value.detach()[mask].clone()) for value, mask in zip(self.values, new, strict=True)]
            groups = [{**options, "params": [part]} for options, part in zip(self.options, parts, strict=True)]
            self.cohorts.append((new, parts, self.make(groups)))
        for masks, parts, optimizer in self.cohorts:
            for part, grad, mask in zip(parts, grads, masks, strict=True):
                part.grad = None if grad is None else grad[mask].float() * clip
            optimizer.step()
            for part, value, mask in zip(parts, self.values, masks, strict=True):
                value.data[mask] = part.detach()
