"""Checkpoints of the selective optimizers (C11)."""

from __future__ import annotations

from typing import Any

from selective_peft import checkpoint
from selective_peft.binding import BoundOptimizer
from selective_peft.dense import check_dense_state, restore_shared_
from selective_peft.selection import Selection
from selective_peft.sharding import CHECKPOINT, DIVIDERS, Built, ParamsState, refuse_caller
from selective_peft.tensor_scores import Spent


class ResumableOptimizer(BoundOptimizer):
    """Packs and restores everything that a run needs to go on bit for bit."""

    def _described(self) -> dict[str, Any]:
        return {"optimizer": type(self).__name__, "total_steps": self.total_steps, **self._settings.describe()}

    def _given_names(self) -> list[str]:
        return [name for group in self._groups(selective=True) for name in group.get("param_names", [])]

    def _pack_extra(self) -> dict[str, Any]:
        """Further state of a subclass: tensors and primitives."""
        return {}

    def _check_extra(self, extra: Any, selection: Selection) -> Any:
        """What `_use_extra` needs, made of what `_pack_extra` gave; raises ValueError if it is damaged."""
        if extra != {}:
            raise ValueError(f"state_dict: extra: expected nothing for {type(self).__name__}, got {extra!r}")
        return None

    def _use_extra(self, checked: Any) -> None:
        """Takes over further state."""

    def _saved_groups(self, saved: Any) -> list[dict[str, Any]]:
        """This optimizer's groups with the options of packed ones, which schedulers may have changed."""
        if len(saved) != len(self.param_groups) or not all(isinstance(theirs, dict) for theirs in saved):
            return self.param_groups  # refused by `check_groups`
        known = [{name: value for name, value in theirs.items() if name in self.defaults} for theirs in saved]
        return [{**mine, **theirs} for mine, theirs in zip(self.param_groups, known, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with everything about the selection in `["state"]["selective"]`: tensors and primitives.

        Raises:
            ShardingError: torch.distributed.checkpoint calls this, or a parameter is sharded.
        """
        refuse_caller("state_dict", CHECKPOINT)
        self._built.check(self.param_groups)
        self._settle()
        packed = super().state_dict()
        packed["state"]["selective"] = checkpoint.pack_nothing()
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
            ShardingError: torch.distributed.checkpoint or .optim calls this, or a parameter is sharded.
        """
        refuse_caller("load_state_dict", CHECKPOINT, *DIVIDERS)
        self._built.check(self.param_groups)
        checkpoint.check_halves(state_dict)
        state = state_dict["state"]
        packed = state.get("selective")
        if checkpoint.is_nothing(packed):
            packed = None
        selection = schedule = table = extra = steps = None
        if packed is not None:
            described = self._described()
            if self._settings.total_steps is None:
                del described["total_steps"]  # the checkpoint says it
            checkpoint.check_items(packed, described)
            steps = checkpoint.total_steps_of(packed)
            table = self._make_table()
            share = isinstance(self._settings.budget, float)  # fixed in the run's first step, so taken from there
            schedule = self._make_schedule(checkpoint.budget_of(packed) if share else None, steps)
            selection = self._make_selection(table, schedule, self._saved_groups(state_dict["param_groups"]))
            dtypes = {name: array.dtype for name, array in selection.arrays.items()}
            checkpoint.check_values(packed, table, self._given_names(), schedule, dtypes)
            extra = self._check_extra(packed["extra"], selection)
            checkpoint.unpack_(packed, selection)
        elif set(state) - {"selective"}:
            raise ValueError("state_dict: expected the item state['selective'], which is missing (truncated?)")
        spent = selection is not None and schedule is not None and selection.count == int(schedule[-1])
        if isinstance(self._settings.score, Spent) and not spent:
            raise ValueError(
                "state_dict: expected one with the whole budget selected, since this optimizer has let go of its "
                "scores (build a new one with them), got an earlier one"
            )
        checkpoint.check_groups(state_dict["param_groups"], self.param_groups, self.defaults)
        warming = selection is not None and selection.warmup < self._settings.warmup_steps
        check_dense_state(
            state_dict, self.param_groups, self._dense_state, everywhere=warming or self._settings.repeats
        )
        rest = {key: value for key, value in state.items() if key != "selective"}
        super().load_state_dict({**state_dict, "state": rest})
        restore_shared_(state_dict, self.param_groups, self.state)
        self._table, self._schedule, self._selection, self._defers = table, schedule, selection, None
        if steps is not None:
            self._horizon.restore(steps)
        self._use_extra(extra)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        own = {"_settings", "_horizon", "_settled", "_pending", "_schedule", "_warned", "_table", "_complete", "_built"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.state = ParamsState(dict, self.state)
        if "_built" in state:  # a copy, with tensors of its own
            self._built = Built()
            for group in self.param_groups:
                self._built.add(group["params"])
