"""Checkpoints of the selective optimizers (C11)."""

from __future__ import annotations

from typing import Any

from selective_kernels import Table
from selective_peft import checkpoint
from selective_peft.binding import BoundOptimizer
from selective_peft.dense import check_dense_state, restore_shared_


class ResumableOptimizer(BoundOptimizer):
    """Packs and restores everything that a run needs to go on bit for bit."""

    def _described(self) -> dict[str, Any]:
        return {"optimizer": type(self).__name__, **self._settings.describe()}

    def _given_names(self) -> list[str]:
        return [name for group in self._groups(selective=True) for name in group.get("param_names", [])]

    def _pack_extra(self) -> dict[str, Any]:
        """Further state of a subclass: tensors and primitives."""
        return {}

    def _check_extra(self, extra: Any, table: Table) -> Any:
        """What `_use_extra` needs, made of what `_pack_extra` gave; raises ValueError if it is damaged."""
        if extra != {}:
            raise ValueError(f"state_dict: extra: expected nothing for {type(self).__name__}, got {extra!r}")
        return None

    def _use_extra(self, checked: Any) -> None:
        """Takes over further state."""

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with everything about the selection in `["state"]["selective"]`: tensors and primitives."""
        packed = super().state_dict()
        if self._selection is not None and self._table is not None and self._schedule is not None:
            if len(self._selective_params()) > len(self._table):  # groups were added since the last step
                self._rebind()
            packed["state"]["selective"] = checkpoint.pack(
                self._selection, self._table, self._given_names(), self._described(), self._schedule, self._pack_extra()
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
        selection = schedule = table = extra = None
        if packed is not None:
            checkpoint.check_items(packed, self._described())
            table = self._make_table()
            share = isinstance(self._settings.budget, float)  # fixed in the run's first step, so taken from there
            schedule = self._make_schedule(checkpoint.budget_of(packed) if share else None)
            selection = self._make_selection(table, schedule)
            dtypes = {name: array.dtype for name, array in selection.arrays.items()}
            checkpoint.check_values(packed, table, self._given_names(), schedule, dtypes)
            extra = self._check_extra(packed["extra"], table)
            checkpoint.unpack_(packed, selection)
        elif state:
            raise ValueError("state_dict: expected the item state['selective'], which is missing (truncated?)")
        checkpoint.check_groups(state_dict["param_groups"], self.param_groups, self.defaults)
        warming = selection is not None and selection.warmup < self._settings.warmup_steps
        check_dense_state(
            state_dict, self.param_groups, self._dense_state, everywhere=warming or self._settings.repeats
        )
        rest = {key: value for key, value in state.items() if key != "selective"}
        super().load_state_dict({**state_dict, "state": rest})
        restore_shared_(state_dict, self.param_groups, self.state)
        self._table, self._schedule, self._selection = table, schedule, selection
        self._use_extra(extra)

    def __getstate__(self) -> dict[str, Any]:
        own = {"_settings", "_selection", "_schedule", "_warned", "_table", "_complete"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}
