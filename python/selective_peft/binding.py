"""What the selective optimizers know: groups of parameters, the selection over them, and what was selected so far."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from selective_kernels import Table, Update, dispatch
from selective_peft.arguments import Settings, check_group_params, listed
from selective_peft.budgets import apportion, resolve_budget
from selective_peft.gradients import param_names
from selective_peft.horizon import Horizon, Timed
from selective_peft.pending import Pending
from selective_peft.schedules import quota, tabulate
from selective_peft.search import Wanted
from selective_peft.selection import Selection
from selective_peft.sharding import CHECKPOINT, DIVIDERS, Built, ParamsState, check_whole, refuse_caller


class BoundOptimizer(Timed, Optimizer):
    """A torch optimizer whose selective groups are bound to a table of tensors and a selection at the first step."""

    _moments: tuple[str, ...] = ()  # names of the per-entry float32 state
    _dense_state: tuple[str, ...] = ()  # names of what each parameter with dense state must have

    _can_defer = True  # updates look at a flag on the device, see `pending`
    _defers: bool | None = None  # whether steps do not wait; None until it is known for the table

    def __init__(self, params: Any, defaults: dict[str, Any], settings: Settings) -> None:
        refuse_caller(type(self).__name__, *DIVIDERS)
        self._settings = settings
        self._horizon = Horizon(settings.total_steps)
        self._built = Built()
        self._pending: Pending | None = None
        self._selection: Selection | None = None
        self._table: Table | None = None
        self._schedule: Tensor | None = None
        self._warned = False
        self._complete = False  # all groups of the constructor are there
        super().__init__(params, {**defaults, "selective": not settings.whole})
        self._complete = True
        self.state = ParamsState(dict, self.state)
        self._check_params([])
        self._final_budget()

    @property
    def _selection(self) -> Selection | None:
        """What is selected, after it is known whether the last step was made."""
        self._settle()
        return self._settled

    @_selection.setter
    def _selection(self, selection: Selection | None) -> None:
        self._pending, self._settled = None, selection

    def _settle(self) -> None:
        """Waits for the outcome of the last step, if nobody has yet."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        assert self._settled is not None
        if pending.skipped():
            pending.take_back(self._settled, self.state)
            self._report_nonfinite(self._settled)
        else:
            self._finish(self._settled, selected=pending.starts is not None)

    @abstractmethod
    def _report_nonfinite(self, selection: Selection) -> None:
        """Counts a step that was skipped because of inf or NaN, or raises."""

    @abstractmethod
    def _finish(self, selection: Selection, *, selected: bool) -> None:
        """What comes after a step that was made; `selected`: new entries joined in it."""

    @abstractmethod
    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raises for hyper-parameters out of range."""

    @abstractmethod
    def _update(self, update: Update) -> None:
        """Updates the selected entries."""

    @abstractmethod
    def _update_dense(self, params: list[Tensor], group: Mapping[str, Any], skip: Tensor | None = None) -> None:
        """Updates whole parameters, which have a gradient; `skip` as in `selective_kernels.Update`."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; `selective=False` trains the whole group outside the budget.

        Raises:
            TypeError, ValueError: a parameter twice, or one that cannot be selected from; see `checks.check_param`.
            ShardingError: one of which this process holds a part only.
        """
        group = listed(param_group)
        place = f"param_groups[{len(self.param_groups)}]['params']"
        check_whole(group["params"], group.get("param_names"), place)
        with_defaults = {**self.defaults, **group}
        seen = {id(param) for other in self.param_groups for param in other["params"]}
        check_group_params(with_defaults, seen, f"params of group {len(self.param_groups)}")
        if self._settings.whole and with_defaults["selective"]:
            raise ValueError("selective: expected False with method='full', which trains every group whole, got True")
        self._check_group(with_defaults)
        if self._selection is not None and self._settings.budget is None and with_defaults["selective"]:
            raise ValueError(
                "params: expected all groups to select from before the first step of 'bitfit', got another one"
            )
        if self._complete and with_defaults["selective"]:
            items = enumerate(group["params"])
            self._check_params([item if isinstance(item, tuple) else (f"{place}[{i}]", item) for i, item in items])
        super().add_param_group(group)
        self._built.add(self.param_groups[-1]["params"])

    # ------------------------------------------------------------------ what was selected

    @property
    def begun(self) -> bool:
        """Whether there was a first step, here or before a checkpoint that was loaded."""
        return self._settled is not None

    @property
    def num_selected(self) -> int:
        """Number of scalars selected so far; with strategy "repeat", in the last step."""
        return 0 if self._selection is None else self._selection.count

    @property
    def budget(self) -> int | None:
        """The budget in scalars, fixed in the first step; None before, and with method "full"."""
        return None if self._schedule is None or self._settings.whole else int(self._schedule[-1])

    @property
    def threshold(self) -> float | None:
        """The lowest score that was selected in the last step that selected.

        None before, where each tensor has its own (scope "tensor"), and for scores that only order (magnitude, random).
        """
        return None if self._selection is None else self._selection.threshold

    @property
    def skipped_steps(self) -> int:
        """Number of steps skipped because a gradient was inf or NaN."""
        return 0 if self._selection is None else self._selection.skipped

    def state_nbytes(self) -> int:
        """Bytes held for the selected scalars: positions, optimizer state, history and per-tensor tables."""
        return 0 if self._selection is None else self._selection.nbytes()

    def selected_per_step(self) -> Tensor:
        """How many of the selected scalars came in each completed step, int64, shape (steps,), on the CPU.

        With strategy "repeat" all of them came in the last selecting step.
        """
        if self._selection is None:
            return torch.zeros(0, dtype=torch.int64, device="cpu")
        chosen = self._selection.arrays["chosen"][: self._selection.count].cpu().long()
        return torch.bincount(chosen, minlength=self._selection.step)

    def selected_indices(self, param: Tensor) -> Tensor:
        """Sorted flat row-major offsets of the selected scalars of a parameter, int64, on the CPU.

        Raises:
            ValueError: the parameter is not in a selective group.
        """
        for number, mine in enumerate(self._selective_params()):
            if mine is param:
                if self._selection is None or number >= self._selection.index.n_tensors:
                    return torch.empty(0, dtype=torch.int64, device="cpu")
                return self._selection.index.of(number).cpu().long()
        raise ValueError("param: expected a parameter of a selective group of this optimizer, got another tensor")

    # ------------------------------------------------------------------ parameters

    def _groups(self, *, selective: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["selective"] == selective]

    def _selective_params(self) -> list[Tensor]:
        return [param for group in self._groups(selective=True) for param in group["params"]]

    def _selective_names(self) -> list[str]:
        groups = enumerate(self.param_groups)
        return [name for i, group in groups if group["selective"] for name in param_names(group, i)]

    def _named(self) -> list[tuple[str, Tensor]]:
        return list(zip(self._selective_names(), self._selective_params(), strict=True))

    def _is_eligible(self, name: str, param: Tensor) -> bool:
        only = getattr(self._settings.score, "only", None)
        return param.requires_grad and (only is None or bool(only(name)))

    def _eligible(self, table: Table) -> list[int]:
        """Numbers of the tensors that the budget is for."""
        return [i for i, pair in enumerate(zip(table.names, table.params, strict=True)) if self._is_eligible(*pair)]

    def _check_params(self, added: list[tuple[str, Tensor]]) -> None:
        """Raises ValueError if the score cannot score the parameters there are, and those to be added."""
        check = getattr(self._settings.score, "check_params", None)
        if check is not None:
            check([*self._named(), *added])

    def _final_budget(self, fixed: int | None = None) -> int:
        """The budget in scalars; `fixed` replaces the settings' one. Raises ValueError for more than there are."""
        if self._settings.whole:
            return 0
        named = [(name, param) for name, param in self._named() if self._is_eligible(name, param)]
        if self._settings.budget is None:
            return sum(param.numel() for _, param in named)
        return resolve_budget(self._settings.budget if fixed is None else fixed, named)

    def _bind(self) -> tuple[Table, Selection]:
        """The table of the parameters as they are now; sets everything up in the first step (C12)."""
        params = self._selective_params()
        dense = [param for group in self._groups(selective=False) for param in group["params"]]
        self._built.check_once(self.param_groups, dense)  # a table tells whether the others were replaced
        table = self._table
        same = table is not None and len(params) == len(table) and all(map(operator.is_, params, table.params))
        if table is None or not same or not table.unchanged() or self._selection is None:
            table = self._rebind()
        self._group_of = [number for number, group in enumerate(self._groups(selective=True)) for _ in group["params"]]
        assert self._selection is not None
        if self._selection.index.offsets.device != table.device:
            self._selection.adapt(table)
        if self._defers is None:
            self._defers = self._may_defer(table)
        return table, self._selection

    def _may_defer(self, table: Table) -> bool:
        """Whether steps with this table can go on without waiting for their outcome; beside a GPU, the CPU cannot."""
        if not self._can_defer or self._settings.nonfinite == "raise" or self._settings.repeats:
            return False
        if not table.params:  # torch's own kernels do all
            return all(param.is_cuda for group in self.param_groups for param in group["params"])
        kinds = {device.type for device in table.devices}
        return len(kinds) == 1 and dispatch.defers(table.device, self._settings.backend)

    def _rebind(self) -> Table:
        if self._selection is None:
            refuse_caller("step", *DIVIDERS, CHECKPOINT)
        self._built.check(self.param_groups)
        table = self._make_table()
        if table.spread:
            dispatch.resolve_all(table, self._settings.backend)  # raises before anything is changed
        if self._selection is None:
            self._schedule = self._make_schedule()
            self._selection = self._make_selection(table, self._schedule)
        elif self._table is not None:
            places = {id(param): i for i, param in enumerate(self._table.params)}
            moved = any(places.get(id(param), i) != i for i, param in enumerate(table.params))
            before = [(p.numel(), p.dtype) for p in table.params[: len(self._table)]]
            if moved or before != list(zip(self._table.numels, self._table.dtypes, strict=True)):
                raise RuntimeError(
                    "params: expected the tensors of earlier steps (sizes and dtypes), perhaps followed by new ones, "
                    "got others; build a new optimizer for another model"
                )
            self._selection.adapt(table)
        self._table, self._defers = table, None
        return table

    def _make_table(self) -> Table:
        return Table(self._selective_params(), self._selective_names()).apart()

    def _moments_of(self, groups: Sequence[Mapping[str, Any]]) -> Sequence[str]:
        """Names of the per-entry state that groups with these options need."""
        return self._moments

    def _make_selection(
        self, table: Table, schedule: Tensor, groups: Sequence[Mapping[str, Any]] | None = None
    ) -> Selection:
        moments = () if self._settings.repeats else self._moments_of(self.param_groups if groups is None else groups)
        return Selection(table, int(schedule[-1]), moments)

    def _make_schedule(self, budget: int | None = None, total_steps: int | None = None) -> Tensor:
        settings = self._settings
        static = settings.strategy != "increment"
        steps = self._horizon.required() if total_steps is None else total_steps
        return tabulate(settings.schedule, steps, self._final_budget(budget), static=static)

    def _wanted(self, table: Table, selection: Selection) -> Wanted:
        """How many entries this step selects: over all tensors, or of each (C5)."""
        settings = self._settings
        assert self._schedule is not None
        if settings.warmup_steps:
            return 0  # everything was selected at the end of the warm-up
        total = quota(self._schedule, selection.step, selection.count, settings.select_every)
        return self._divided(total, table, selection) if total and settings.scope == "tensor" else total

    def _divided(self, total: int, table: Table, selection: Selection) -> list[int]:
        """`total` more entries as numbers per tensor, so that each has its share of all that are selected then."""
        sizes = [0] * len(table)
        for i in self._eligible(table):
            sizes[i] = table.numels[i]
        starts = selection.index.starts
        shares = apportion(min(selection.count + total, sum(sizes)), sizes)
        missing = [max(0, share - (starts[i + 1] - starts[i])) for i, share in enumerate(shares)]
        return missing if sum(missing) <= total else apportion(total, missing)
