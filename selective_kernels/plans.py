"""What a backend prepares for reads of some tensors of a table, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from selective_kernels.table import Table

MOST_SUBSETS = 16  # of several tensors, such as those that had a gradient: experts without tokens have none
Plan = TypeVar("Plan")


class Plans(Generic[Plan]):
    """Plans by table and numbers of tensors, kept as long as the table: that of all, those of one, and the last ones of
    other sets. One that is dropped may still serve what is enqueued.

    Args:
        make: the plan of some tensors of a table.
    """

    def __init__(self, make: Callable[[Table, Sequence[int]], Plan]) -> None:
        self._make = make
        self._known: WeakKeyDictionary[Table, dict[tuple[int, ...] | None, Plan]] = WeakKeyDictionary()

    def of(self, table: Table, tensors: Sequence[int]) -> Plan:
        """The plan of the tensors with these numbers; raises what `make` raises."""
        known = self._known.setdefault(table, {})
        key = None if len(tensors) == len(table) else tuple(tensors)
        plan = known.pop(key, None)
        if plan is None:
            plan = self._make(table, tensors)
        known[key] = plan  # now the last one to go
        subsets = [key for key in known if key is not None and len(key) > 1]
        for old in subsets[:-MOST_SUBSETS]:
            del known[old]
        return plan
