"""A live model changes its task: one delta out, another one in."""

from __future__ import annotations

from torch import nn

from selective_peft.composing import check_one_base
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import state_of
from selective_peft.patching import Targets, check_applied, in_model, originals_of, values_of

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
    state = state_of(model)
    leaves, comes = (in_model(delta.changes, state) for delta in (old or NONE, new or NONE))
    before = originals_of(leaves)
    for name in leaves.keys() & comes.keys():
        check_one_base(name, leaves[name], comes[name])
    leaving, coming = Targets(state, leaves), Targets(state, comes)
    known = {
        name: change for name, change in comes.items() if change.originals is not None and change.indices is not None
    }
    expected = coming if len(known) == len(coming.sparse) else Targets(state, known)
    if check:
        check_applied(leaving, leaves)
    leaving.write(before)
    try:
        other = expected.differing(originals_of(known)) if check else None
        if other is not None:
            raise DeltaError(f"{other}: expected the base's values at the places of `new`, got others")
        coming.write(values_of(comes))
    except BaseException:
        leaving.write(values_of(leaves))
        raise
