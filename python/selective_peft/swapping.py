"""A live model changes its task: one delta out, another one in."""

from __future__ import annotations

from torch import nn

from selective_peft.composing import check_one_base
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import state_of
from selective_peft.patching import Targets, check_applied, originals_of, values_of

NONE = SparseDelta({})


def swap_(model: nn.Module, old: SparseDelta | None, new: SparseDelta | None, *, check: bool = True) -> None:
    """Takes one delta out of a model and puts another one in, in place: no tensor is replaced or grows, so a compiled
    model is not compiled again. Time and memory are those of the changed scalars.

    Whoever runs the model meanwhile may see some scalars of each. Deltas of one base, whose places are trusted to be
    the only ones that differ: unlike `SparseDelta.apply_`, no tensor is read whole.

    Args:
        model: with `old` applied; possibly wrapped or compiled.
        old: what to take out; None for nothing.
        new: what to put in; None for nothing.
        check: the model has `old`'s values, and the base's at the places that only `new` changes (as far as it kept
            them).

    Raises:
        DeltaError: `old` has no originals, the two are of different bases, or the model does not fit; nothing is
            changed then.
    """
    old, new = old or NONE, new or NONE
    before = originals_of(old.changes)
    for name in old.changes.keys() & new.changes.keys():
        check_one_base(name, old.changes[name], new.changes[name])
    state = state_of(model)
    leaving, coming = Targets(state, old.changes), Targets(state, new.changes)
    known = {
        name: change
        for name, change in new.changes.items()
        if change.originals is not None and change.indices is not None
    }
    expected = coming if len(known) == len(coming.sparse) else Targets(state, known)
    if check:
        check_applied(leaving, old.changes)
    leaving.write(before)
    if check:
        other = expected.differing(originals_of(known))
        if other is not None:
            leaving.write(values_of(old.changes))
            raise DeltaError(f"{other}: expected the base's values at the places of `new`, got others")
    coming.write(values_of(new.changes))
