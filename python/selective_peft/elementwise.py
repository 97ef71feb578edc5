"""Running a torch optimizer on vectors of scalars, and finding out whether it is element-wise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

State = dict[str, Any]
Make = Callable[[list[Parameter]], Optimizer]
SUITED = "RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, Rprop, Adam, AdamW or SGD"
# Vector and scalar code of torch's CPU kernels round differently by a bit or two.
RELATIVE, ABSOLUTE = 1e-4, 1e-7
PROBED_RATE = 0.05  # large enough to see what a step does to scalars of about 1


@dataclass(frozen=True)
class Entry:
    """What an optimizer knows of one scalar: its moments, and what all scalars of its tensor share (step counters)."""

    moments: Mapping[str, float]
    shared: Mapping[str, Any]

    def packed(self) -> dict[str, Any]:
        """Tensors and primitives, copied."""
        return {"moments": dict(self.moments), "shared": _copied(self.shared)}

    @staticmethod
    def unpacked(packed: Any, names: Sequence[str]) -> Entry:
        """The inverse of `packed`.

        Raises:
            KeyError, TypeError, ValueError: it is damaged or has other moments.
        """
        moments = {str(name): float(value) for name, value in packed["moments"].items()}
        if sorted(moments) != sorted(names):
            raise ValueError(f"the moments {sorted(moments)}")
        return Entry(moments, _copied(packed["shared"]))


def _copied(shared: Mapping[str, Any]) -> State:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in shared.items()}


def _is_moment(value: Any, param: Tensor) -> bool:
    """Whether a state value has one item per scalar of a parameter of two or more."""
    return isinstance(value, Tensor) and value.shape == param.shape


def advance(
    make: Make,
    values: Tensor,
    grads: Tensor,
    moments: Mapping[str, Tensor],
    ghost: Entry | None,
) -> Entry:
    """One step on a vector of scalars that share their history, and on their ghost.

    Args:
        make: makes the optimizer of a list of parameters.
        values: float32, shape (n,), updated in place.
        grads: float32, shape (n,).
        moments: float32, shape (n,) each, updated in place; not read before the first step.
        ghost: the state of a scalar at zero that has had zero gradients so far; None before the first step.

    Returns:
        The ghost after the step.
    """
    # The ghost is two scalars, so that no moment can be taken for a value that is shared.
    pair = Parameter(torch.zeros(2, device=values.device, dtype=torch.float32))
    pair.grad = torch.zeros_like(pair)
    entries = Parameter(values)
    entries.grad = grads
    params = [entries, pair] if len(values) else [pair]
    inner = make(params)
    if ghost is not None:
        twice = {name: torch.full_like(pair, value).detach() for name, value in ghost.moments.items()}
        inner.state[pair] = {**_copied(ghost.shared), **twice}
        if len(values):
            inner.state[entries] = {**_copied(ghost.shared), **moments}
    inner.step()
    if len(values):
        if entries.data_ptr() != values.data_ptr():
            values.copy_(entries.detach())
        for name, array in moments.items():
            after = inner.state[entries].get(name)  # of some groups' options only
            if after is not None and after.data_ptr() != array.data_ptr():
                array.copy_(after)
    after = inner.state[pair]
    shared = {name: value for name, value in after.items() if not _is_moment(value, pair) and value is not None}
    kept = {name: after.get(name) for name in moments}
    return Entry({name: 0.0 if value is None else float(value[0]) for name, value in kept.items()}, shared)


def moments_of(make: Make) -> set[str]:
    """Names of the state with one item per scalar that an optimizer keeps."""
    param = Parameter(torch.ones(2, dtype=torch.float32, device="cpu"))
    param.grad = torch.ones(2, dtype=torch.float32, device="cpu")
    inner = make([param])
    inner.step()
    return {name for name, value in inner.state[param].items() if _is_moment(value, param)}


def probe(optimizer: type[Optimizer], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Tries an optimizer on a few scalars: whole, one by one, and with one that joins late; returns its defaults.

    Raises:
        TypeError: not an optimizer class, or arguments that it does not take.
        ValueError: its update of a scalar depends on other scalars, or on more than gradients.
    """
    if not isinstance(optimizer, type) or not issubclass(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected a class of torch optimizers, got {optimizer!r}")
    defaults = dict(optimizer([Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))], **arguments).defaults)
    if "lr" not in defaults:
        raise ValueError(
            f"optimizer: expected one with the argument lr, got {optimizer.__name__} with {list(defaults)}"
        )
    arguments = {**arguments, "lr": PROBED_RATE}
    grads = torch.tensor(
        [[0.5, -2.0, 0.03], [-0.25, -1.0, 0.02], [0.7, 0.125, -0.04], [0.3, 0.5, 0.08]],
        dtype=torch.float32,
        device="cpu",
    )
    start = torch.tensor([0.4, -0.3, 1.7], dtype=torch.float32, device="cpu")
    try:
        whole = _run(optimizer, arguments, start, grads)
        names = tuple(sorted(name for name, value in whole.state.items() if _is_moment(value, start)))
        for i in range(3):
            alone = _run(optimizer, arguments, start[[i, i]], grads[:, [i, i]])
            _compare(optimizer, names, whole, alone, [i, i])
        late = _run_late(lambda params: optimizer(params, **arguments), names, start, grads)
        masked = grads.clone()
        masked[:2, 2] = 0.0
        _compare(optimizer, names, _run(optimizer, arguments, start, masked, still=2), late, [0, 1, 2])
    except (RuntimeError, TypeError, KeyError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"optimizer: expected one that updates each scalar by its own gradients, such as {SUITED}; "
            f"{optimizer.__name__} fails on a vector ({str(error).strip().partition(chr(10))[0]})"
        ) from error
    return defaults


@dataclass(frozen=True)
class _Trial:
    values: Tensor
    state: State


def _run(
    optimizer: type[Optimizer], arguments: Mapping[str, Any], start: Tensor, grads: Tensor, still: int = 0
) -> _Trial:
    """torch's own steps; in the first `still` ones the last scalar stands at zero, and is put back afterwards."""
    param = Parameter(start.clone())
    inner = optimizer([param], **arguments)
    for step, grad in enumerate(grads):
        param.grad = grad.clone()
        if step < still:
            param.detach()[-1] = 0.0
        inner.step()
        if step < still:
            param.detach()[-1] = start[-1]
    return _Trial(param.detach(), dict(inner.state[param]))


def _run_late(make: Make, names: Sequence[str], start: Tensor, grads: Tensor) -> _Trial:
    """The same by `advance`, the last scalar joining after two steps."""
    values, ghost = start.clone(), None
    moments = {name: torch.zeros(3, dtype=torch.float32, device="cpu") for name in names}
    for step, grad in enumerate(grads):
        count = 2 if step < 2 else 3
        if step == 2 and ghost is not None:
            for name in names:
                moments[name][2] = ghost.moments[name]
        views = {name: moment[:count] for name, moment in moments.items()}
        ghost = advance(make, values[:count], grad[:count].clone(), views, ghost)
    return _Trial(values, dict(moments))


def _compare(
    optimizer: type[Optimizer], names: Sequence[str], whole: _Trial, other: _Trial, places: Sequence[int]
) -> None:
    pairs = {"values": (whole.values, other.values)} | {name: (whole.state[name], other.state[name]) for name in names}
    for name, (expected, actual) in pairs.items():
        if not torch.allclose(expected[list(places)].float(), actual.float(), RELATIVE, ABSOLUTE):
            raise ValueError(
                f"optimizer: expected one that updates each scalar by its own gradients, such as {SUITED}, got "
                f"{optimizer.__name__}, whose {name} depend on more than that"
            )
