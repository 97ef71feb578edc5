"""Where a parameter stands in its model, read from its name: for tables of layers x modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """A module's name, and the layer it stands in, "" without one."""

    module: str
    layer: str


def places(names: Iterable[str], prefix: str = "") -> list[Place]:
    """The place of each parameter of a model.

    The layer is the first number between two dots. The module is what follows it, without the last part (".weight",
    ".bias"); if a name has no layer, all of it without the last part. If a model has several stacks of layers (an
    encoder and a decoder) the module begins with its stack: "decoder.block.*.layer.0.SelfAttention.q".

    Args:
        names: of all parameters that are to share a table.
        prefix: what to leave out at the beginning of a name, such as "bert.".
    """
    split = [_split(name, prefix) for name in names]
    several = len({stack for stack, layer, _ in split if layer}) > 1
    return [
        Place(".".join(part for part in (f"{stack}.*" if layer and (several or not rest) else "", rest) if part), layer)
        for stack, layer, rest in split
    ]


def _split(name: str, prefix: str) -> tuple[str, str, str]:
    """What stands before the layer, the layer, what follows without the last part."""
    parts = name.split(".")
    at = next((i for i in range(1, len(parts) - 1) if parts[i].isdecimal()), None)
    if at is None:
        rest = name.removeprefix(prefix)
        return "", "", rest.rpartition(".")[0] or rest
    return ".".join(parts[:at]).removeprefix(prefix), parts[at], ".".join(parts[at + 1 : -1])


def count_by_place(places: Sequence[Place], counts: Sequence[int]) -> dict[str, dict[str, int]]:
    """Sums of the parameters' counts: module -> layer -> count."""
    found: dict[str, dict[str, int]] = {}
    for place, count in zip(places, counts, strict=True):
        layers = found.setdefault(place.module, {})
        layers[place.layer] = layers.get(place.layer, 0) + count
    return found


def layer_order(layers: Iterable[str]) -> list[str]:
    """Layers by number, "" (none) first."""
    return sorted(set(layers), key=lambda layer: int(layer or -1))


def top_modules(counts: Mapping[str, int], most: int) -> dict[str, str]:
    """The row of each module in a table of at most `most` rows.

    The modules with the highest counts come first and have a row of their own; what is left, if anything, shares
    one, "others (number of modules)".
    """
    order = sorted(counts, key=lambda module: -counts[module])
    own = len(order) if len(order) <= most else most - 1
    others = f"others ({len(order) - own})"
    return {module: module if i < own else others for i, module in enumerate(order)}
