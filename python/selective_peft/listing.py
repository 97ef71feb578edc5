"""What a message says is there when something was not found."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

LISTED = 10  # entries of a list


def what_is_there(named: Sequence[tuple[str, Tensor]]) -> str:
    """What is there, in one line: the deepest prefixes that are at most 10, with their parameters and scalars."""
    if not named:
        return "no parameter that requires a gradient"
    names = [name.split(".") for name, _ in named]
    depths = range(1, 1 + max(map(len, names)))
    depth = max((d for d in depths if len({tuple(parts[:d]) for parts in names}) <= LISTED), default=1)
    sizes: dict[str, list[int]] = {}
    for parts, (_, param) in zip(names, named, strict=True):
        sizes.setdefault(".".join(parts[:depth]), []).append(param.numel())
    shown = [_counted(prefix, found) for prefix, found in list(sizes.items())[:LISTED]]
    rest = [size for found in list(sizes.values())[LISTED:] for size in found]
    return "; ".join([*shown, *([_counted("and others", rest)] if rest else [])])


def _counted(what: str, sizes: Sequence[int]) -> str:
    return f"{what} ({len(sizes):,} parameter{'s' if len(sizes) > 1 else ''}, {sum(sizes):,} scalars)"
