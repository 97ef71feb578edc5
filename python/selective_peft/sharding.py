"""Training that divides a model among processes: found and refused.

A selection is made over whole tensors, and each process must make the same one. What holds a part of each tensor only
(FSDP, tensor parallelism, DeepSpeed ZeRO), or of the tensors (torch.distributed.optim), would select something else
in each process, and checkpoints by torch.distributed.checkpoint would mix that up. Nothing here imports any of them:
they are known by what they leave on parameters, and by the names of the modules that call.
"""

from __future__ import annotations

import inspect
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

CHECKPOINT = "torch.distributed.checkpoint"
DIVIDERS = ("torch.distributed.optim", "deepspeed.runtime.zero")  # give an optimizer a part of the model
TRAIN = (
    "sharded training is not supported: train in one process, with DistributedDataParallel, or with Accelerate or "
    "Trainer without FSDP, DeepSpeed and tensor parallelism"
)
SAVE = (
    "that is not supported: save with torch.save(optimizer.state_dict(), path) in one process, and load with "
    "optimizer.load_state_dict in all of them"
)
# Attributes by which a parameter is known: FSDP 1 marks both its flat parameters and the original ones.
MARKS = {"_fsdp_flattened": "one that FSDP has flattened", "ds_id": "one that DeepSpeed ZeRO-3 has partitioned"}


class ShardingError(NotImplementedError):
    """What a selective optimizer was given, or called for, belongs to sharded training."""


class ParamsState(defaultdict[Tensor, dict[str, Any]]):
    """An optimizer's `state`, which does not let torch.distributed.checkpoint ask whether it is empty.

    `get_optimizer_state_dict` and the like begin with that question, and where the answer is yes (a selection is not
    kept here) they make a step with zero gradients and lr = 0 and leave both behind if it raises.
    """

    def __bool__(self) -> bool:
        refuse_caller("state", CHECKPOINT)
        return len(self) > 0


class Built:
    """Which tensors the groups of an optimizer were built with: identities and shapes, which keep none alive."""

    def __init__(self) -> None:
        self._groups: list[list[tuple[int, torch.Size | None]]] = []
        self._checked: Sequence[Tensor] = ()

    def add(self, params: Sequence[Tensor]) -> None:
        """Takes note of another group."""
        self._groups.append([(id(param), _shape(param)) for param in params])

    def check_once(self, groups: Sequence[Mapping[str, Any]], params: Sequence[Tensor]) -> None:
        """`check`, unless it was done with these very tensors in the groups."""
        if len(params) != len(self._checked) or not all(map(operator.is_, params, self._checked)):
            self.check(groups)
            self._checked = params

    def check(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Refuses sharded tensors in an optimizer's groups, and those that a part of the model was put in place of.

        Tensors may have been replaced by others of the same shapes, followed by further ones, or left out.

        Raises:
            ShardingError: see above.
        """
        for number, group in enumerate(groups):
            check_whole(group["params"], group.get("param_names"), f"param_groups[{number}]['params']")
        known = {identity for built in self._groups for identity, _ in built}
        for number, (group, built) in enumerate(zip(groups, self._groups, strict=False)):
            params = group["params"]
            shapes = [_shape(param) for param in params]
            expected = [shape for _, shape in built]
            if shapes[: len(expected)] != expected and any(id(param) not in known for param in params):
                _refuse(
                    f"param_groups[{number}]['params']",
                    f"the {len(expected)} tensors that the optimizer was built with, or others of their shapes",
                    f"{len(shapes)} other tensors, as DeepSpeed ZeRO puts there",
                    TRAIN,
                )


def check_whole(params: Sequence[Any], names: Sequence[str] | None, place: str) -> None:
    """Refuses parameters of which this process holds a part only.

    Args:
        params: parameters, or pairs (name, parameter).
        names: of the parameters, if they have names.
        place: how to name the list.

    Raises:
        ShardingError: a DTensor, or a parameter that bears a mark of FSDP or DeepSpeed.
    """
    for i, item in enumerate(params):
        name, param = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
        found = _sharded(param)
        if found is not None:
            if names is not None and len(names) == len(params):
                name = names[i]
            _refuse(name or f"{place}[{i}]", "a parameter that is whole in each process", found, TRAIN)


def refuse_caller(what: str, *modules: str) -> None:
    """Refuses a call that comes from one of these modules, or those within them; looks at the whole stack.

    Raises:
        ShardingError: it does.
    """
    frame = inspect.currentframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        for module in modules:
            if name == module or name.startswith(f"{module}."):
                instead = SAVE if module == CHECKPOINT else TRAIN
                _refuse(what, "a call by the training itself", f"one by {name}", instead)
        frame = frame.f_back


def _shape(param: Tensor) -> torch.Size | None:
    return None if is_lazy(param) else param.shape


def _sharded(param: Any) -> str | None:
    """What kind of part a parameter is; None for a whole one."""
    if any(kind.__name__ == "DTensor" and kind.__module__.startswith("torch.") for kind in type(param).__mro__):
        return "a DTensor (FSDP2 or tensor parallelism)"
    return next((found for mark, found in MARKS.items() if getattr(param, mark, False) is not False), None)


def _refuse(what: str, expected: str, given: str, instead: str) -> NoReturn:
    raise ShardingError(f"{what}: expected {expected}, got {given}; {instead}")
