"""What parameters are called in their bare model, and where they stand in it by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

OPTIMIZED = "torch._dynamo.eval_frame.OptimizedModule"  # not imported: that takes seconds, and most need none of it


def unwrapped(model: nn.Module) -> nn.Module:
    """The module within DistributedDataParallel, DataParallel and `torch.compile`, in whatever order they stand."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif any(f"{kind.__module__}.{kind.__name__}" == OPTIMIZED for kind in type(model).__mro__):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def named_params(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model under the names that they have without its wrappers.

    Args:
        model: a bare model, or one within DistributedDataParallel, DataParallel or `torch.compile`, also if only parts
            of it are.

    Returns:
        Names and parameters, as `named_parameters()` of the bare model gives them: in its order, and a tied parameter
        once, under its first name.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in _bare_modules(model, "", set()):
        for name, param in module.named_parameters(recurse=False):
            found.setdefault(id(param), (prefix + name, param))
    return dict(found.values())


def named_saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong into a checkpoint, named as `named_params` names parameters; a shared one once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in _bare_modules(model, "", set()):
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found.setdefault(id(buffer), (prefix + name, buffer))
    return dict(found.values())


def is_count(name: str) -> bool:
    """Whether a tensor of this name counts the batches that a normalisation has seen."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The further names of each parameter that has several, by the name that `named_params` gives it."""
    found: dict[int, list[str]] = {}
    for name, param in _all_names(model, "", frozenset()):
        found.setdefault(id(param), []).append(name)
    return {names[0]: tuple(names[1:]) for names in found.values() if len(names) > 1}


def _all_names(module: nn.Module, prefix: str, around: frozenset[int]) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter under each of its names, in the order of `named_modules()`; `around`: modules that hold this."""
    bare = unwrapped(module)
    if id(bare) in around:
        return
    yield from ((prefix + name, param) for name, param in bare._parameters.items() if param is not None)
    for name, child in bare._modules.items():
        if child is not None:
            yield from _all_names(child, f"{prefix}{name}.", around | {id(bare)})


def _bare_modules(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Each module once, with what stands before the names in it, in the order of `named_modules()`."""
    bare = unwrapped(module)
    if id(bare) in seen:
        return
    seen.add(id(bare))
    yield prefix, bare
    for name, child in bare.named_children():
        yield from _bare_modules(child, f"{prefix}{name}.", seen)


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
