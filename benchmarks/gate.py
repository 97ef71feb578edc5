"""No time without a right result: one run of the kernels against the PyTorch reference, on the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks.rivals import GradSets, at_step
from benchmarks.shapes import copies
from selective_kernels.testing import TOLERANCES, raw_bits


class Mismatch(Exception):
    """The kernels and the reference disagree."""


def check(base: Sequence[Tensor], grads: GradSets, budget: int, total_steps: int) -> int:
    """Takes two selecting steps with both backends, to the middle of a run and one beyond; returns the number selected.

    Raises:
        Mismatch: see `agree`.
    """
    done = total_steps // 2
    wanted = budget * (done + 1) // total_steps
    agree(base, grads, lambda params, backend: at_step(params, budget, total_steps, done, backend), wanted)
    return wanted


def agree(
    base: Sequence[Tensor],
    grads: GradSets,
    make: Callable[[list[Tensor], str], SelectiveAdamW],
    wanted: int,
    steps: int = 2,
    kernels: str = "cpu",
) -> None:
    """Takes the first steps of an optimizer with both backends.

    The lists of selected scalars must be the same, the parameters equal to rounding, and every other scalar must keep
    its bits.

    Args:
        base: parameters, which are copied.
        grads: sets of gradients; the steps take them in turn.
        make: gives the optimizer for parameters and backend.
        wanted: how many scalars are to be selected in the end.
        steps: how many steps.
        kernels: the backend that is compared with "reference".

    Raises:
        Mismatch: they are not.
    """
    lists, values = [], []
    for backend in (kernels, "reference"):
        params = copies(base)
        optimizer = make(params, backend)
        for number in range(steps):
            for param, grad in zip(params, grads[number % len(grads)], strict=True):
                param.grad = grad
            optimizer.step()
        lists.append([optimizer.selected_indices(param) for param in params])
        values.append([param.detach() for param in params])
    selected = sum(len(each) for each in lists[0])
    if selected != wanted:
        raise Mismatch(f"expected {wanted} selected scalars, got {selected}")
    for i, (kernel, reference) in enumerate(zip(*lists, strict=True)):
        if not torch.equal(kernel, reference):
            raise Mismatch(f"tensor {i}: the kernels and the reference select other scalars")
    for i, (kernel, reference) in enumerate(zip(*values, strict=True)):
        _compare(i, base[i], kernel, reference, lists[0][i])


def _compare(number: int, before: Tensor, kernel: Tensor, reference: Tensor, selected: Tensor) -> None:
    changed = (raw_bits(kernel) != raw_bits(before)).reshape(-1)
    changed[selected] = False
    if bool(changed.any()):
        raise Mismatch(f"tensor {number}: {int(changed.sum())} scalars changed without being selected")
    try:
        tolerance = TOLERANCES[kernel.dtype]
        torch.testing.assert_close(kernel, reference, rtol=tolerance["rtol"], atol=tolerance["atol"])
    except AssertionError as error:
        raise Mismatch(f"tensor {number}: {error}") from error
