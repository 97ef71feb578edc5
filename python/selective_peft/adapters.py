"""Bottleneck adapters in Houlsby and Pfeiffer placement, to be trained whole or selectively.

An adapter gets the output of a sublayer just before the sublayer's residual connection, as in the code of Houlsby et
al. (2019): for BERT dense, dropout, adapter, then residual and LayerNorm. It stands beside the layers it follows and is
called by a forward hook, so that no parameter of the base model changes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from selective_peft.adapter_places import ATTENTION, FEED_FORWARD, Site, find_sites
from selective_peft.groups import matches
from selective_peft.listing import what_is_there

PLACEMENTS = {"houlsby": (ATTENTION, FEED_FORWARD), "pfeiffer": (FEED_FORWARD,)}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
STD = 0.01  # of the first matrix, cut off at two deviations (Houlsby et al. 2019, section 3)
NAME = "adapter"  # of the new module
FROZEN = "frozen_for_adapters"  # attribute of the model: the parameters that `add_adapters` froze


class BottleneckAdapter(nn.Module):
    """x + up(activation(down(x))) for x of shape (..., width); `up` is zero at first, which makes it the identity."""

    def __init__(self, site: Site, size: int, activation: str, generator: torch.Generator) -> None:
        super().__init__()
        weight, width = site.linear()
        # On the meta device first: Linear's own initialization would draw from the global generator.
        self.down = nn.Linear(width, size, device="meta", dtype=weight.dtype).to_empty(device=weight.device)
        self.up = nn.Linear(size, width, device="meta", dtype=weight.dtype).to_empty(device=weight.device)
        self.activation = activation
        self.handle: RemovableHandle | None = None
        # The same values whatever the model's dtype and device.
        drawn = torch.empty(size, width, dtype=torch.float32, device="cpu")
        nn.init.trunc_normal_(drawn, std=STD, a=-2 * STD, b=2 * STD, generator=generator)
        with torch.no_grad():
            self.down.weight.copy_(drawn)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The adapted x, of the same shape and dtype."""
        change: Tensor = self.up(ACTIVATIONS[self.activation](self.down(x)))
        return x + change

    def follow(self, last: nn.Module) -> None:
        """From now on takes the place of a module's output, until `detach`."""
        self.handle = last.register_forward_hook(self._after)

    def detach(self) -> None:
        """Leaves that module's output alone again."""
        if self.handle is not None:
            self.handle.remove()

    # A bound method, so that a deep copy of the model calls the copy's adapter.
    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        adapted: Tensor = self(output)
        return adapted


def add_adapters(
    model: nn.Module,
    placement: str = "pfeiffer",
    size: int = 64,
    activation: str = "relu",
    seed: int = 0,
    *,
    freeze_base: bool = False,
    train_fully: Sequence[str] = (),
) -> list[str]:
    """Puts a bottleneck adapter into each layer of a transformer; its output stays the same until they are trained.

    Args:
        model: contains layers like those of BERT, RoBERTa, DeBERTa, Llama, Qwen2, GPT-2 or T5.
        placement: "pfeiffer": after each feed-forward sublayer (Pfeiffer et al. 2021); "houlsby": after each attention
            sublayer, too (Houlsby et al. 2019).
        size: width of the bottleneck.
        activation: "gelu", "relu", "silu" or "tanh".
        seed: the first matrices are drawn from it, the second ones and the biases are zero.
        freeze_base: sets requires_grad to False for all parameters that were there before.
        train_fully: with `freeze_base`, patterns of what stays trainable ("classifier", "LayerNorm"); see
            `groups.matches`.

    Returns:
        Names of the new parameters, in the order of `model.named_parameters()`. Each adapter has the dtype and device
        of the linear map it follows.

    Raises:
        TypeError: patterns that are one string.
        ValueError: an argument out of range, a pattern that matches nothing, adapters added twice, or a model with
            other layers. Nothing is changed then.
    """
    _one_of("placement", placement, PLACEMENTS)
    _one_of("activation", activation, ACTIVATIONS)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size: expected an integer >= 1, got {size!r}")
    there = [name for name, _ in _adapters(model)]
    if there:
        raise ValueError(f"model: expected one without adapters, got {len(there)} of them, the first is {there[0]}")
    sites = [site for site in find_sites(model) if site.place.sublayer in PLACEMENTS[placement]]
    frozen = _to_freeze(model, freeze_base, train_fully)
    generator = torch.Generator().manual_seed(seed)
    adapters = [BottleneckAdapter(_free(site), size, activation, generator) for site in sites]
    for site, adapter in zip(sites, adapters, strict=True):
        site.owner.add_module(NAME, adapter.train(site.owner.training))
        adapter.follow(site.last)
    vars(model)[FROZEN] = list(frozen)
    for param in frozen.values():
        param.requires_grad_(False)
    return list(_params(model))


def remove_adapters(model: nn.Module) -> None:
    """Takes the adapters away again and makes trainable what `add_adapters` froze.

    Raises:
        ValueError: not the module that was given to `add_adapters`, or adapters were removed already.
    """
    if FROZEN not in vars(model):
        raise ValueError(f"model: expected the module given to add_adapters, got a {type(model).__name__} without them")
    for path, adapter in _adapters(model):
        adapter.detach()
        owner = model.get_submodule(path.rpartition(".")[0])
        delattr(owner, NAME)
    frozen = set(vars(model).pop(FROZEN))
    for name, param in model.named_parameters():
        if name in frozen:
            param.requires_grad_(True)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters of the adapters, by name.

    Raises:
        ValueError: the model has no adapters.
    """
    state = {name: param.detach().clone() for name, param in _params(model).items()}
    if not state:
        raise ValueError(f"model: expected one with adapters (see add_adapters), got a {type(model).__name__} without")
    return state


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrites the parameters of the adapters with what `adapter_state` gave, from whatever device.

    Raises:
        ValueError: the names, shapes or dtypes differ from the model's; nothing is changed then.
    """
    params = _params(model)
    missing, unknown = [name for name in params if name not in state], [name for name in state if name not in params]
    if missing or unknown or not params:
        raise ValueError(
            f"state: expected the {len(params)} parameters of this model's adapters (same placement, layers), "
            f"got {len(state)}: missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, param in params.items():
        if state[name].shape != param.shape or state[name].dtype != param.dtype:
            given = f"{state[name].dtype} {tuple(state[name].shape)}"
            raise ValueError(f"state: {name}: expected {param.dtype} {tuple(param.shape)}, got {given}")
    with torch.no_grad():
        for name, param in params.items():
            param.copy_(state[name])


def _one_of(name: str, value: str, allowed: Mapping[str, object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {sorted(allowed)}, got {value!r}")


def _adapters(model: nn.Module) -> list[tuple[str, BottleneckAdapter]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BottleneckAdapter)]


def _params(model: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{path}.{name}": param for path, adapter in _adapters(model) for name, param in adapter.named_parameters()}


def _free(site: Site) -> Site:
    """The site; raises ValueError if its owner has something of our name."""
    if hasattr(site.owner, NAME):
        raise ValueError(f"model: {site.path}: expected no attribute {NAME!r}, got one that is not of add_adapters")
    return site


def _to_freeze(model: nn.Module, freeze_base: bool, train_fully: Sequence[str]) -> dict[str, nn.Parameter]:
    if isinstance(train_fully, str):
        raise TypeError(f"train_fully: expected a list of patterns, got the string {train_fully!r}")
    if train_fully and not freeze_base:
        raise ValueError(f"train_fully: expected no patterns without freeze_base=True, got {list(train_fully)}")
    trainable = {name: param for name, param in model.named_parameters() if freeze_base and param.requires_grad}
    kept: set[str] = set()
    for pattern in train_fully:
        matching = {name for name in trainable if matches(name, pattern)}
        if not matching:
            raise ValueError(
                f"train_fully: expected patterns that fit a trainable parameter, got {pattern!r}, which fits none; "
                f"there are: {what_is_there(list(trainable.items()))}"
            )
        kept |= matching
    return {name: param for name, param in trainable.items() if name not in kept}
