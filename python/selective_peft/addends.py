"""What has to be added to a weight so that it becomes another, to the last bit, where that is possible."""

from __future__ import annotations

import torch
from torch import Tensor

from selective_peft.rawbytes import bits


def addends(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """float32 numbers d for which `before` + d, computed in float32 and rounded once, has the bits of `after`.

    The float32 number next to the difference does it, or one beside that, if any does: just below a power of two floats
    lie closer together than above it. None does where a scalar becomes a far smaller one (1 to 1e-10: their difference
    has no room for the last digits), or -0 from another value.

    Args:
        before, after: float32, bfloat16 or float16, of one dtype and shape.

    Returns:
        The numbers, and where they are right (bool); both of that shape.
    """
    exact = after.double() - before.double()
    nearest = exact.float()
    found, right = nearest.clone(), torch.zeros(nearest.shape, dtype=torch.bool, device="cpu")
    infinity = torch.tensor(float("inf"), dtype=torch.float32, device="cpu")
    for tried in (nearest, torch.nextafter(nearest, infinity), torch.nextafter(nearest, -infinity)):
        good = ~right & tried.isfinite() & (bits(added(before, tried)) == bits(after))
        found[good], right = tried[good], right | good
    return found, right


def in_two(before: Tensor, after: Tensor, numbers: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """What is added one after the other where one number does not do: minus the old value, then the new one.

    torch adds entries for one place in their order on a CPU, and in any order on a GPU, where the result may be off by
    a rounding of the old value.

    Args:
        before, after, numbers, right: vectors, as `addends` takes and gives them.

    Returns:
        How often each scalar stands (int64: 1 or 2), and the numbers, that many for each, in order (float32).
    """
    times = torch.where(right, 1, 2)
    both = torch.where(right, numbers, -before.float()).repeat_interleave(times)
    both[times.cumsum(0)[~right] - 1] = after[~right].float()
    return times, both


def is_lost(before: Tensor, after: Tensor, right: Tensor) -> Tensor:
    """Where two numbers do not do either (bool): where -0 follows another value."""
    zero = before.float() - before.float()
    return ~right & (bits(added(zero.to(after.dtype), after.float())) != bits(after))


def added(weights: Tensor, numbers: Tensor) -> Tensor:
    """As PEFT merges: the sum in float32, rounded to the weights' dtype."""
    return (weights.float() + numbers).to(weights.dtype)
