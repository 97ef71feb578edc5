"""The budget in scalars, and its division among tensors."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from selective_peft.listing import what_is_there

WANTED = "expected an integer >= 1 (scalars) or a float in (0, 1) (share of the selective scalars)"


def check_budget(budget: object) -> None:
    """Raises TypeError or ValueError unless the budget is an integer >= 1 or a float in (0, 1)."""
    if budget is None:
        raise TypeError(f"budget: {WANTED}, got None")
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise TypeError(f"budget: {WANTED}, got {type(budget).__name__}")
    if isinstance(budget, int) and budget < 1:
        raise ValueError(f"budget: {WANTED}, got {budget}")
    if isinstance(budget, float) and not 0.0 < budget < 1.0:
        raise ValueError(f"budget: {WANTED}, got {budget}")


def resolve_budget(budget: int | float, selectable: Sequence[tuple[str, Tensor]]) -> int:
    """The budget in scalars: a share is rounded down.

    Args:
        budget: what passed `check_budget`.
        selectable: names and parameters that can be selected from.

    Raises:
        ValueError: more than there are, or a share that is less than one scalar; lists what is there.
    """
    scalars = sum(param.numel() for _, param in selectable)
    resolved = budget if isinstance(budget, int) else int(budget * scalars)
    if not 1 <= resolved <= scalars:
        given = f"{budget}" if isinstance(budget, int) else f"{budget} (= {resolved} scalars)"
        raise ValueError(
            f"budget: expected 1 to {scalars} scalars (those of the selective parameters that require a gradient), got "
            f"{given}; there are: {what_is_there(selectable)}"
        )
    return resolved


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Divides `total` in proportion to sizes: integers that add up to it, none above its size.

    By Webster's method (the seat a + 1 of a tensor of size s has the quotient s / (a + 1/2); the highest quotients win,
    among equal ones the first tensor), since with it no share ever falls when the total grows: what a tensor has been
    given at one step is never too much at a later one.

    Args:
        total: 0 <= total <= sum(sizes).
        sizes: integers >= 0.

    Raises:
        ValueError: the total is out of range.
    """
    if not 0 <= total <= sum(sizes):
        raise ValueError(f"total: expected 0 to {sum(sizes)}, got {total}")
    shares = _surely_won(total, torch.tensor(sizes, dtype=torch.float64, device="cpu"))
    # What rounding leaves open is given out one by one, by exact quotients.
    waiting = [
        (-Fraction(2 * size, 2 * share + 1), i) for i, (size, share) in enumerate(zip(sizes, shares, strict=True))
    ]
    waiting = [entry for entry in waiting if entry[0]]
    heapq.heapify(waiting)
    for _ in range(total - sum(shares)):
        _, i = waiting[0]
        shares[i] += 1
        heapq.heapreplace(waiting, (-Fraction(2 * sizes[i], 2 * shares[i] + 1), i))
    return shares


def _surely_won(total: int, sizes: Tensor) -> list[int]:
    """Seats whose quotients lie so far above the last one's that no rounding matters; at most `total` of them."""
    low, high = 0.5, 4.0 * float(sizes.max()) + 1.0 if len(sizes) else 1.0  # at `high` nobody has a seat
    for _ in range(100):  # until float64 has no number between the two
        middle = (low + high) / 2
        if float((sizes / middle + 0.5).floor().sum()) <= total:
            high = middle
        else:
            low = middle
    safe = high * (1.0 + 1e-9)
    return [int(seats) for seats in (sizes / safe + 0.5).floor().tolist()]
