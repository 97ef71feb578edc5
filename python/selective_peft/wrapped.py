"""Any element-wise torch optimizer on the selected scalars: compact vectors, O(B) state, values scattered back."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from selective_kernels import SparseIndex, Table, Update, gather, scatter_
from selective_peft.arguments import Settings, make_settings, refuse_unsupported
from selective_peft.elementwise import Entry, advance, moments_of, probe
from selective_peft.optimizer import SelectiveOptimizer
from selective_peft.schedules import Schedule
from selective_peft.scores import AnyScore
from selective_peft.selection import Selection


def selective(
    optimizer: type[Optimizer],
    params: Any,
    *,
    budget: int | float | None = None,
    total_steps: int | str | None = None,
    method: str | None = None,
    method_kwargs: Mapping[str, Any] | None = None,
    score: AnyScore | None = None,
    strategy: str | None = None,
    scope: str = "global",
    schedule: Schedule = "uniform",
    select_every: int = 1,
    max_grad_norm: float | None = None,
    nonfinite: str = "skip",
    backend: str = "auto",
    **arguments: Any,
) -> SelectiveTorchOptimizer:
    """A torch optimizer that trains only the selected scalars: `selective(torch.optim.RMSprop, params, budget=...)`.

    The result equals the dense optimizer fed masked gradients and restricted to the selected scalars, to rounding. Its
    state is held for the selected scalars alone. It runs on short vectors in plain torch, and on a GPU each step waits
    to know that its gradients are finite; for AdamW, Adam and SGD the classes of those names use compiled updates and
    do not wait.

    Args:
        optimizer: a class whose update of a scalar depends on that scalar's own history only: RMSprop, Adagrad,
            Adadelta, Adamax, NAdam, RAdam, Rprop, Adam and AdamW with amsgrad, ... Others are refused.
        params: as in `SelectiveAdamW`, as are all arguments up to `backend`.
        arguments: the optimizer's own, such as `lr`; read from the groups at each step.

    Raises:
        TypeError, ValueError: an argument is out of range, or the optimizer is not element-wise.
    """
    settings = make_settings(
        budget=budget,
        total_steps=total_steps,
        method=method,
        method_kwargs=method_kwargs,
        score=score,
        strategy=strategy,
        scope=scope,
        schedule=schedule,
        select_every=select_every,
        bias_correction="global",
        max_grad_norm=max_grad_norm,
        nonfinite=nonfinite,
        backend=backend,
    )
    refuse_unsupported({"differentiable": arguments.get("differentiable", False)})
    return SelectiveTorchOptimizer(params, optimizer, arguments, settings)


class SelectiveTorchOptimizer(SelectiveOptimizer):
    """What `selective` makes.

    An entry that is selected late must begin with the state that torch would have given it by then, had its gradient
    been zero all along. So each tensor has a ghost: one scalar at zero, with zero gradients, that is updated along with
    the tensor's entries; new entries take over its state.
    """

    _dense_state = ("original",)
    _can_defer = False  # torch's own updates know no flag: each step waits for its outcome

    def __init__(
        self, params: Any, optimizer: type[Optimizer], arguments: Mapping[str, Any], settings: Settings
    ) -> None:
        self._class, self._arguments = optimizer, dict(arguments)
        defaults = probe(optimizer, arguments)
        self._ghosts: list[Entry | None] = []  # per tensor; None before its first gradient
        self._seen: dict[int, dict[str, Any]] = {}  # per group: options whose state is known
        super().__init__(params, defaults, settings)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        self._make([Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))], group)

    def _make(self, params: Sequence[Tensor], group: Mapping[str, Any]) -> Optimizer:
        """The wrapped optimizer with a group's arguments."""
        options = {name: value for name, value in group.items() if name in self.defaults and name != "selective"}
        options["lr"] = float(options["lr"])  # schedulers may keep it in a tensor
        known = inspect.signature(self._class).parameters
        checked = {name: value for name, value in options.items() if name in known}  # the constructor looks at these
        return self._class([{"params": list(params), **options}], **{**self._arguments, **checked})

    def _moments_of(self, groups: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """What the options of any selective group make torch keep; schedulers may have changed them."""
        kept = [moments_of(partial(self._make, group=group)) for group in groups if group["selective"]]
        return tuple(sorted(set().union(*kept)))

    def _check_moments(self, names: Collection[str]) -> None:
        for number, group in enumerate(self.param_groups):
            options = {name: value for name, value in group.items() if name in self.defaults and name != "lr"}
            if group["selective"] and self._seen.get(number) != options:
                more = moments_of(partial(self._make, group=group)) - set(names)
                if more:
                    raise RuntimeError(
                        f"param_groups[{number}]: expected options that keep the state {sorted(names)}, as in the "
                        f"first step, got ones that keep {sorted(more)} as well"
                    )
                self._seen[number] = options

    def _ghost(self, tensor: int) -> Entry | None:
        return self._ghosts[tensor] if tensor < len(self._ghosts) else None

    def _fresh_state(self, table: Table, new: SparseIndex) -> dict[str, Tensor]:
        assert self._selection is not None
        fresh = {
            name: torch.zeros(new.count, device=table.device, dtype=torch.float32) for name in self._selection.moments
        }
        for i in range(len(table)):
            ghost = self._ghost(i)
            if ghost is not None:
                for name in fresh:
                    fresh[name][new.starts[i] : new.starts[i + 1]] = ghost.moments[name]
        return fresh

    def _step(self, table: Table, selection: Selection) -> None:
        if not self._settings.repeats:
            self._check_moments(selection.moments)
        super()._step(table, selection)

    def _update(self, update: Update) -> None:
        assert self._selection is not None
        table, index, arrays = update.table, update.index, self._selection.arrays
        values = gather(table, index, backend=self._settings.backend)
        self._ghosts += [None] * (len(table) - len(self._ghosts))
        groups = self._groups(selective=True)
        for first, last in self._runs(update):
            entries = slice(index.starts[first], index.starts[last + 1])
            theta = self._true_values(update, values[entries], table.dtypes[first], entries)
            moments = {name: arrays[name][entries] for name in self._selection.moments}
            ghost = advance(
                partial(self._make, group=groups[update.group_of[first]]),
                theta,
                update.grads[entries] * update.clip,
                moments,
                self._ghosts[first],
            )
            for i in range(first, last + 1):
                self._ghosts[i] = ghost
            values[entries] = theta
            if update.master is not None:
                update.master[entries] = theta
        scatter_(table, index, values, backend=self._settings.backend)

    def _runs(self, update: Update) -> list[tuple[int, int]]:
        """Neighbouring tensors that can be updated as one vector, as (first, last): of one group, dtype and history."""
        runs: list[tuple[int, int]] = []
        for i in update.tensors:
            if runs:
                first, last = runs[-1]
                alike = update.group_of[first] == update.group_of[i] and self._ghosts[first] is self._ghosts[i]
                if last + 1 == i and alike and update.table.dtypes[first] == update.table.dtypes[i]:
                    runs[-1] = (first, i)
                    continue
            runs.append((i, i))
        return runs

    @staticmethod
    def _true_values(update: Update, stored: Tensor, dtype: torch.dtype, entries: slice) -> Tensor:
        """What the entries are: of a 16-bit parameter its master copy, unless somebody wrote to the parameter (C6)."""
        if dtype == torch.float32:
            return stored
        assert update.master is not None
        master = update.master[entries]
        return torch.where(master.to(dtype).float() == stored, master, stored)

    def _update_dense(self, params: list[Tensor], group: Mapping[str, Any], skip: Tensor | None = None) -> None:
        inner = self._make(params, group)
        for param in params:
            mine = self.state[param]
            if not mine:
                mine["original"] = param.detach().clone()
            if len(mine) > 1:
                inner.state[param] = {name: value for name, value in mine.items() if name != "original"}
        inner.step()
        for param in params:
            self.state[param].update(inner.state[param])

    # ------------------------------------------------------------------ checkpoints

    def _described(self) -> dict[str, Any]:
        return {**super()._described(), "optimizer": f"selective({self._class.__name__})"}

    def _pack_extra(self) -> dict[str, Any]:
        distinct = {id(ghost): ghost for ghost in self._ghosts if ghost is not None}
        number = {key: place for place, key in enumerate(distinct)}
        return {
            "ghost_of": [number.get(id(ghost), -1) for ghost in self._ghosts],
            "ghosts": [ghost.packed() for ghost in distinct.values()],
        }

    def _check_extra(self, extra: Any, selection: Selection) -> list[Entry | None]:
        try:
            entries = [Entry.unpacked(packed, selection.moments) for packed in extra["ghosts"]]
            return [None if number == -1 else entries[range(len(entries))[number]] for number in extra["ghost_of"]]
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"state_dict: extra: expected the state of {self._class.__name__}, got {error}") from error

    def _use_extra(self, checked: list[Entry | None] | None) -> None:
        self._ghosts = [] if checked is None else list(checked)
        self._seen = {}

    def __getstate__(self) -> dict[str, Any]:
        own = {"_class", "_arguments", "_ghosts", "_seen"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}
