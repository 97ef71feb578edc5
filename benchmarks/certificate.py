"""The gate for large models: proves a selection right without sorting, in a few passes over parameters and gradients.

That k chosen scalars are the k best needs no other top-k: none that was left out may come before the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks.gate import Mismatch
from benchmarks.masking import DenseMasking
from benchmarks.rivals import LR, SCORE, GradSets
from benchmarks.shapes import copies
from selective_kernels.score import score_ref
from selective_kernels.testing import TOLERANCES, raw_bits

Maker = Callable[[list[Tensor]], "SelectiveAdamW | DenseMasking"]


@dataclass(frozen=True)
class Run:
    """What an optimizer selected in each of its first steps, and the parameters after them.

    Attributes:
        selected: per step and parameter: all positions selected so far, int64, ascending.
        params: after the last step.
    """

    selected: Sequence[Sequence[Tensor]]
    params: Sequence[Tensor]


def take_steps(base: Sequence[Tensor], grads: GradSets, make: Maker, steps: int) -> Run:
    """Runs an optimizer on a copy of the parameters; gradient sets are used in turn, by pointer or as copies."""
    params = copies(base)
    optimizer, selected = make(params), []
    for number in range(steps):
        for param, grad in zip(params, grads[number % len(grads)], strict=True):
            param.grad = grad if isinstance(optimizer, SelectiveAdamW) else grad.clone()
        optimizer.step()
        selected.append(_positions(optimizer, params))
    return Run(selected, [param.detach() for param in params])


def _positions(optimizer: SelectiveAdamW | DenseMasking, params: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(optimizer, SelectiveAdamW):
        return [optimizer.selected_indices(param) for param in params]
    parts = torch.split(optimizer.mask, [param.numel() for param in params])
    return [part.nonzero().view(-1) for part in parts]


def certify(base: Sequence[Tensor], grads: GradSets, make: Maker, targets: Sequence[int]) -> None:
    """Checks the first steps of an AdamW by D3: which scalars it selects, their values, and that no other one changes.

    Args:
        base: parameters, which are copied.
        grads: sets of gradients; the steps take them in turn.
        make: gives the optimizer for parameters: ours, or a dense one, whose equal scores must not matter.
        targets: how many scalars are to be selected after each step.

    Raises:
        Mismatch: a scalar was selected before a better one, or the values are not those of torch's AdamW.
    """
    run = take_steps(base, grads, make, len(targets))
    before = [torch.empty(0, dtype=torch.int64, device=param.device) for param in base]
    for number, (after, target) in enumerate(zip(run.selected, targets, strict=True)):
        if (count := sum(map(len, after))) != target:
            raise Mismatch(f"step {number}: expected {target} selected scalars, got {count}")
        check_selection(base, grads[number % len(grads)], before, after)
        before = list(after)
    check_values(base, grads, run)


def check_selection(
    base: Sequence[Tensor], grads: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]
) -> None:
    """Checks that what a step added comes before all that it left out: by score, then by tensor and position.

    Args:
        base: parameters, of which only selected ones have changed since.
        grads: of the step.
        before, after: positions selected before and after it, ascending, per parameter.

    Raises:
        Mismatch: it does not.
    """
    added = [_without(new, old) for new, old in zip(after, before, strict=True)]
    taken = [score_ref(g, p, SCORE.kernel_score()).view(-1)[new] for p, g, new in zip(base, grads, added, strict=True)]
    everything = torch.cat(taken)
    if not len(everything):
        return
    least = everything.min()
    last = max(i for i, scores in enumerate(taken) if bool((scores == least).any()))
    end = added[last][taken[last] == least].max()  # the last of the equal ones: (tensor, position)
    if not bool(least > 0):
        raise Mismatch("a scalar was selected whose score is not above 0")
    for i, (param, grad, chosen) in enumerate(zip(base, grads, after, strict=True)):
        scores = score_ref(grad, param, SCORE.kernel_score()).view(-1)
        scores[chosen] = 0.0
        wrong = scores > least
        if i < last:
            wrong = scores >= least
        elif i == last:
            wrong[:end] |= scores[:end] == least
        if bool((wrong & scores.isfinite()).any()):
            raise Mismatch(f"tensor {i}: {int(wrong.sum())} scalars were left out for lesser ones")


def check_values(base: Sequence[Tensor], grads: GradSets, run: Run) -> None:
    """Checks the selected scalars against torch's AdamW on gradients masked by what was selected, the others by bits.

    Raises:
        Mismatch: they differ.
    """
    chosen = run.selected[-1]
    starts = [_gather(param.float(), at) for param, at in zip(base, chosen, strict=True)]
    theta = torch.cat(starts)
    adamw = torch.optim.AdamW([theta.requires_grad_()], lr=LR, weight_decay=0.0)
    for number, selected in enumerate(run.selected):
        masked = []
        for grad, at, so_far in zip(grads[number % len(grads)], chosen, selected, strict=True):
            masked.append(_gather(grad.float(), at) * torch.isin(at, so_far))
        theta.grad = torch.cat(masked)
        adamw.step()
    wanted = torch.split(theta.detach(), [len(at) for at in chosen])
    for i, (param, old, at, new) in enumerate(zip(run.params, base, chosen, wanted, strict=True)):
        changed = (raw_bits(param) != raw_bits(old)).view(-1)
        changed[at] = False
        if bool(changed.any()):
            raise Mismatch(f"tensor {i}: {int(changed.sum())} scalars changed without being selected")
        try:
            tolerance = TOLERANCES[param.dtype]
            new = new.to(param.dtype)
            torch.testing.assert_close(_gather(param, at), new, rtol=tolerance["rtol"], atol=tolerance["atol"])
        except AssertionError as error:
            raise Mismatch(f"tensor {i}: {error}") from error


def _gather(values: Tensor, at: Tensor) -> Tensor:
    return values.reshape(-1)[at]


def _without(values: Tensor, others: Tensor) -> Tensor:
    return values[~torch.isin(values, others, assume_unique=True)]
