"""Where adapters go: a table of the sublayers of known model families, and finding them in a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ATTENTION, FEED_FORWARD = "attention", "feed_forward"


@dataclass(frozen=True)
class Place:
    """Where an adapter goes, as paths inside a layer of a model.

    Attributes:
        sublayer: `ATTENTION` or `FEED_FORWARD`.
        owner: the module that gets the adapter as a child.
        dense: the linear map inside the owner that gives width, dtype and device.
        last: the module inside the owner whose output the residual connection takes.
    """

    sublayer: str
    owner: str
    dense: str
    last: str


@dataclass(frozen=True)
class Site:
    """A place found in a model: its modules, and the owner's path for messages."""

    place: Place
    path: str
    owner: nn.Module
    dense: nn.Module
    last: nn.Module

    def linear(self) -> tuple[Tensor, int]:
        """The linear map's matrix, and the length of the vectors that it gives.

        Raises:
            ValueError: it is no linear map, or quantized.
        """
        weight: Any = getattr(self.dense, "weight", None)
        width: Any = getattr(self.dense, "out_features", None) or getattr(self.dense, "nf", None)  # nf: GPT-2's Conv1D
        where = f"model: {self.path}.{self.place.dense}"
        if not isinstance(width, int) or not isinstance(weight, Tensor):
            raise ValueError(f"{where}: expected a linear map, got {type(self.dense).__name__}")
        if not weight.dtype.is_floating_point:
            raise ValueError(f"{where}: expected weights of a floating-point dtype, got {weight.dtype}")
        return weight, width


# A layer belongs to the first family of which it has an attention and a feed-forward place.
FAMILIES = {
    "BERT, RoBERTa, DeBERTa": (
        Place(ATTENTION, "attention.output", "dense", "dropout"),
        Place(ATTENTION, "crossattention.output", "dense", "dropout"),
        Place(FEED_FORWARD, "output", "dense", "dropout"),
    ),
    "Llama, Qwen2": (
        Place(ATTENTION, "self_attn", "o_proj", "o_proj"),
        Place(FEED_FORWARD, "mlp", "down_proj", "down_proj"),
    ),
    "GPT-2": (
        Place(ATTENTION, "attn", "c_proj", "resid_dropout"),
        Place(ATTENTION, "crossattention", "c_proj", "resid_dropout"),
        Place(FEED_FORWARD, "mlp", "c_proj", "dropout"),
    ),
    "T5": (
        Place(ATTENTION, "layer.0", "SelfAttention.o", "dropout"),
        Place(ATTENTION, "layer.1", "EncDecAttention.o", "dropout"),
        Place(FEED_FORWARD, "layer.1", "DenseReluDense.wo", "dropout"),
        Place(FEED_FORWARD, "layer.2", "DenseReluDense.wo", "dropout"),
    ),
}


def find_sites(model: nn.Module) -> list[Site]:
    """All attention and feed-forward sublayers of a model, in its order.

    Raises:
        ValueError: no layer is of a family in `FAMILIES`, or only some layers of a stack are.
    """
    found = {path: sites for path, layer in model.named_modules() if (sites := _sites(path, layer))}
    strange: dict[str, nn.Module] = {}
    for path, stack in model.named_modules():
        layers = {f"{path}.{name}" if path else name: layer for name, layer in stack.named_children()}
        if isinstance(stack, nn.ModuleList) and (not found or layers.keys() & found.keys()):
            strange |= {name: layer for name, layer in layers.items() if name not in found}
    if strange or not found:
        raise ValueError(f"model: expected layers like those of {_known()}, got {_described(model, strange)}")
    return [site for sites in found.values() for site in sites]


def _sites(path: str, layer: nn.Module) -> list[Site]:
    for places in FAMILIES.values():
        sites = [site for place in places if (site := _site(path, layer, place)) is not None]
        if {site.place.sublayer for site in sites} == {ATTENTION, FEED_FORWARD}:
            return sites
    return []


def _site(path: str, layer: nn.Module, place: Place) -> Site | None:
    owner = _child(layer, place.owner)
    dense, last = _child(owner, place.dense), _child(owner, place.last)
    if owner is None or dense is None or last is None:
        return None
    return Site(place, f"{path}.{place.owner}" if path else place.owner, owner, dense, last)


def _child(module: nn.Module | None, path: str) -> nn.Module | None:
    for part in path.split("."):
        module = None if module is None else dict(module.named_children()).get(part)
    return module


def _known() -> str:
    def listed(places: Iterable[Place]) -> str:
        return ", ".join(f"{place.owner}.{place.dense}" for place in places)

    return "; ".join(f"{family} ({listed(places)})" for family, places in FAMILIES.items())


def _described(model: nn.Module, layers: dict[str, nn.Module]) -> str:
    """The classes of layers, each with the path and children of its first one."""
    first: dict[str, str] = {}
    for path, layer in layers.items() or [("the model itself", model)]:
        children = ", ".join(name for name, _ in layer.named_children())
        first.setdefault(type(layer).__name__, f"{path} ({children})")
    return "; ".join(f"{name}: {where}" for name, where in first.items())
