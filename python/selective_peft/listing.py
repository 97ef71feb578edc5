"""What a message says is there when something was not found."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

MOST = 10  # lines of a listing


def what_is_there(named: Iterable[tuple[str, Tensor]]) -> str:
    """Parameters in one sentence: their number, and names with sizes, the largest first; "none" without any."""
    sizes = sorted(((param.numel(), name) for name, param in named), key=lambda item: -item[0])
    if not sizes:
        return "none"
    shown = ", ".join(f"{name} ({size:,})" for size, name in sizes[:MOST])
    more = f" and {len(sizes) - MOST} more" if len(sizes) > MOST else ""
    return f"{len(sizes)} parameters with {sum(size for size, _ in sizes):,} scalars: {shown}{more}"
