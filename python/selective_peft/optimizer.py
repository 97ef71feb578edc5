"""The common part of the selective optimizers: groups, the flow of one step, and checkpoints.

One step: a scan reads every gradient and parameter once; if all gradients are finite, the best new entries join the
index list and all selected entries are updated. Nothing is changed before the scan has seen every gradient.
"""

from __future__ import annotations

import math
import operator
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from selective_kernels import SparseIndex, Table, Update, gather_grads, scan, square_sum
from selective_kernels.optim import Ages
from selective_peft import checkpoint
from selective_peft.arguments import Settings, check_group_params, listed, resolve_budget
from selective_peft.dense import check_dense_state
from selective_peft.gradients import check_dense_grads, nonfinite_names, param_names
from selective_peft.schedules import quota, tabulate
from selective_peft.selection import Selection

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class SelectiveOptimizer(Optimizer):
    """A torch optimizer that selects scalars step by step and updates only those; see `SelectiveAdamW`."""

    _moments: tuple[str, ...] = ()  # names of the per-entry float32 state
    _dense_state: tuple[str, ...] = ()  # names of what each parameter of a group with selective=False must have

    def __init__(self, params: Any, defaults: dict[str, Any], settings: Settings) -> None:
        self._settings = settings
        self._selection: Selection | None = None
        self._table: Table | None = None
        self._schedule: Tensor | None = None
        self._warned = False
        super().__init__(params, {**defaults, "selective": True})
        resolve_budget(settings.budget, self._selective_scalars())

    @abstractmethod
    def _check_group(self, group: Mapping[str, Any]) -> None:
        """Raises for hyper-parameters out of range."""

    @abstractmethod
    def _update(self, update: Update) -> None:
        """Updates the selected entries."""

    @abstractmethod
    def _update_dense(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        """Updates whole parameters of a group with selective=False."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; `selective=False` trains the whole group outside the budget.

        Raises:
            TypeError, ValueError: a parameter twice, or one that cannot be selected from; see `checks.check_param`.
        """
        group = listed(param_group)
        with_defaults = {**self.defaults, **group}
        seen = {id(param) for other in self.param_groups for param in other["params"]}
        check_group_params(with_defaults, seen, f"params of group {len(self.param_groups)}")
        self._check_group(with_defaults)
        super().add_param_group(group)

    # ------------------------------------------------------------------ what was selected

    @property
    def num_selected(self) -> int:
        """Number of scalars selected so far."""
        return 0 if self._selection is None else self._selection.count

    @property
    def skipped_steps(self) -> int:
        """Number of steps skipped because a gradient was inf or NaN."""
        return 0 if self._selection is None else self._selection.skipped

    def state_nbytes(self) -> int:
        """Bytes held for the selected scalars: positions, optimizer state, history and per-tensor tables."""
        return 0 if self._selection is None else self._selection.nbytes()

    def selected_per_step(self) -> Tensor:
        """How many scalars each completed step selected, int64, shape (steps,), on the CPU."""
        if self._selection is None:
            return torch.zeros(0, dtype=torch.int64)
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
                    return torch.empty(0, dtype=torch.int64)
                return self._selection.index.of(number).cpu().long()
        raise ValueError("param: expected a parameter of a selective group of this optimizer, got another tensor")

    # ------------------------------------------------------------------ one step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Selects this step's scalars and updates all selected ones; returns the closure's value.

        Raises:
            TypeError, ValueError: a gradient of another dtype, size, layout or device than its parameter.
            FloatingPointError: a gradient is inf or NaN and `nonfinite="raise"`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        table, selection = self._bind()
        with table.pinned():
            self._step(table, selection)
        return loss

    def _step(self, table: Table, selection: Selection) -> None:
        dense = [[p for p in group["params"] if p.grad is not None] for group in self._groups(selective=False)]
        grads = [param.grad for param in table.params]
        tensors = [i for i, grad in enumerate(grads) if grad is not None]
        if not tensors and not any(dense):
            return
        selected_grads = self._select(table, selection, tensors, [grad for grad in grads if grad is not None])
        if selected_grads is None:
            return
        per_entry = self._settings.bias_correction == "per_entry"
        selection.count_updates(tensors, keep_missed=per_entry)
        ages = Ages(selection.arrays["chosen"], selection.missed, selection.step) if per_entry else None
        if selection.count:
            clip = self._clip_factor(table, selection.index, tensors, selected_grads)
            self._update(
                Update(
                    table,
                    selection.index,
                    tensors,
                    selected_grads,
                    selection.master,
                    self._group_of,
                    selection.tensor_steps,
                    ages,
                    clip,
                )
            )
        for params, group in zip(dense, self._groups(selective=False), strict=True):
            if params:
                self._update_dense(params, group)
        selection.step += 1

    def _select(
        self, table: Table, selection: Selection, tensors: Sequence[int], grads: Sequence[Tensor]
    ) -> Tensor | None:
        """Reads the gradients, adds this step's entries; returns the selected gradients, None to skip the step."""
        assert self._schedule is not None
        settings = self._settings
        wanted = quota(self._schedule, selection.step, selection.count, settings.select_every)
        selected_grads = torch.empty(selection.count + wanted, device=table.device)
        finite = check_dense_grads(self.param_groups)
        if wanted and tensors:
            running = scan(table, selection.index, wanted, settings.score.kernel_score(), backend=settings.backend)
            running.add(tensors, grads, selected_grads)
            if finite and not running.nonfinite:
                new = running.finalize()
                if new.count:
                    selection.insert(new, table, running, selected_grads, settings.backend)
                return selected_grads
        elif gather_grads(table, selection.index, tensors, grads, selected_grads, backend=settings.backend) and finite:
            return selected_grads
        self._report_nonfinite(selection)
        return None

    def _report_nonfinite(self, selection: Selection) -> None:
        if self._settings.nonfinite == "raise":
            bad = nonfinite_names(self.param_groups)
            raise FloatingPointError(f"gradients: expected finite values, got inf or NaN in {bad}")
        selection.skipped += 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"step {selection.step}: skipped, a gradient is inf or NaN; later ones are counted in `skipped_steps`",
                stacklevel=4,
            )

    def _clip_factor(self, table: Table, index: SparseIndex, tensors: Sequence[int], grads: Tensor) -> float:
        limit = self._settings.max_grad_norm
        if limit is None:
            return 1.0
        norm = math.sqrt(square_sum(table, index, tensors, grads, backend=self._settings.backend))
        return min(1.0, limit / (norm + CLIP_EPS))

    # ------------------------------------------------------------------ parameters

    def _groups(self, *, selective: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["selective"] == selective]

    def _selective_params(self) -> list[Tensor]:
        return [param for group in self._groups(selective=True) for param in group["params"]]

    def _selective_scalars(self) -> int:
        return sum(param.numel() for param in self._selective_params() if param.requires_grad)

    def _make_table(self) -> Table:
        groups = enumerate(self.param_groups)
        names = [name for i, group in groups if group["selective"] for name in param_names(group, i)]
        return Table(self._selective_params(), names)

    def _bind(self) -> tuple[Table, Selection]:
        """The table of the parameters as they are now; sets everything up in the first step (C12)."""
        params = self._selective_params()
        table = self._table
        same = table is not None and len(params) == len(table) and all(map(operator.is_, params, table.params))
        if table is None or not same or not table.unchanged() or self._selection is None:
            table = self._rebind()
        groups = self._groups(selective=True)
        self._group_of = [number for number, group in enumerate(groups) for _ in group["params"]]
        assert self._selection is not None
        if self._selection.index.offsets.device != table.device:
            self._selection.adapt(table)
        return table, self._selection

    def _rebind(self) -> Table:
        table = self._make_table()
        if self._selection is None:
            self._schedule = self._make_schedule()
            self._selection = Selection(table, int(self._schedule[-1]), self._moments)
        elif self._table is not None:
            before = [(p.numel(), p.dtype) for p in table.params[: len(self._table)]]
            if before != list(zip(self._table.numels, self._table.dtypes, strict=True)):
                raise RuntimeError(
                    "params: expected the tensors of earlier steps (sizes and dtypes), perhaps followed by new ones, "
                    "got others; build a new optimizer for another model"
                )
            self._selection.adapt(table)
        self._table = table
        return table

    def _make_schedule(self, budget: int | None = None) -> Tensor:
        settings = self._settings
        budget = resolve_budget(settings.budget if budget is None else budget, self._selective_scalars())
        return tabulate(settings.schedule, settings.total_steps, budget, static=settings.strategy == "static")

    # ------------------------------------------------------------------ checkpoints

    def _described(self) -> dict[str, Any]:
        return {"optimizer": type(self).__name__, **self._settings.describe()}

    def _given_names(self) -> list[str]:
        return [name for group in self._groups(selective=True) for name in group.get("param_names", [])]

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with everything about the selection in `["state"]["selective"]`: tensors and primitives."""
        packed = super().state_dict()
        if self._selection is not None and self._table is not None and self._schedule is not None:
            if len(self._selective_params()) > len(self._table):  # groups were added since the last step
                self._rebind()
            packed["state"]["selective"] = checkpoint.pack(
                self._selection, self._table, self._given_names(), self._described(), self._schedule
            )
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state dict bit for bit, on any device.

        Raises:
            ValueError: it is of another model, budget, setting or version, or damaged; nothing is changed then.
        """
        checkpoint.check_halves(state_dict)
        state = state_dict["state"]
        packed = state.get("selective")
        selection = schedule = table = None
        if packed is not None:
            checkpoint.check_items(packed, self._described())
            table = self._make_table()
            share = isinstance(self._settings.budget, float)  # fixed in the run's first step, so taken from there
            schedule = self._make_schedule(checkpoint.budget_of(packed) if share else None)
            selection = Selection(table, int(schedule[-1]), self._moments)
            dtypes = {name: array.dtype for name, array in selection.arrays.items()}
            checkpoint.check_values(packed, table, self._given_names(), schedule, dtypes)
            checkpoint.unpack_(packed, selection)
        elif state:
            raise ValueError("state_dict: expected the item state['selective'], which is missing (truncated?)")
        checkpoint.check_groups(state_dict["param_groups"], self.param_groups, self.defaults)
        check_dense_state(state_dict, self.param_groups, self._dense_state)
        rest = {key: value for key, value in state.items() if key != "selective"}
        super().load_state_dict({**state_dict, "state": rest})
        self._table, self._schedule, self._selection = table, schedule, selection

    def __getstate__(self) -> dict[str, Any]:
        own = {"_settings", "_selection", "_schedule", "_warned", "_table"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}
