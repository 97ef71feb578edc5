"""Several deltas of one base as one, and how far two of them agree."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selective_peft.about import About
from selective_peft.analysis import Overlap, shared_places
from selective_peft.changes import Change
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.naming import places
from selective_peft.rawbytes import bits

CONFLICTS = ("error", "first", "last")


def compose(deltas: Sequence[SparseDelta], on_conflict: str = "error") -> SparseDelta:
    """One delta that changes what any of these change; all must be of one base.

    Args:
        deltas: at least one.
        on_conflict: what happens where two give a scalar different values: "error", or the "first" or the "last" one
            that changes it decides.

    Raises:
        ValueError: no deltas, or an unknown `on_conflict`.
        DeltaError: the deltas are of different bases, or conflict with "error".
    """
    if on_conflict not in CONFLICTS:
        raise ValueError(f"on_conflict: expected one of {list(CONFLICTS)}, got {on_conflict!r}")
    if not deltas:
        raise ValueError("deltas: expected at least one, got none")
    changes, conflicts = dict(deltas[0].changes), dict[str, int]()
    for delta in deltas[1:]:
        for name, change in delta.changes.items():
            if name not in changes:
                changes[name] = change
                continue
            check_one_base(name, changes[name], change)
            changes[name], found = _join(changes[name], change, last=on_conflict == "last")
            if found:
                conflicts[name] = conflicts.get(name, 0) + found
    if conflicts and on_conflict == "error":
        name = next(iter(conflicts))
        raise DeltaError(
            f"deltas: expected no scalar with two values, got {sum(conflicts.values()):,} of them in {len(conflicts)} "
            f"tensors, such as {conflicts[name]:,} in {name}; on_conflict='first' or 'last' decides"
        )
    about = replace(_about(deltas, on_conflict), model_config=_config(deltas, changes, last=on_conflict == "last"))
    return SparseDelta(changes, about)


def check_one_base(name: str, a: Change, b: Change) -> None:
    """Raises DeltaError unless two changes are of one and the same tensor of a base."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        kinds = [f"{change.dtype} {list(change.shape)}" for change in (a, b)]
        raise DeltaError(f"{name}: expected deltas of one base, got {kinds[0]} and {kinds[1]}")
    if a.digest != b.digest and not (a.is_whole and b.is_whole):  # of whole ones, two drawn heads may be replaced
        raise DeltaError(f"{name}: expected deltas of one base, got ones with different values there")


def _join(a: Change, b: Change, *, last: bool) -> tuple[Change, int]:
    """Both changes of a tensor as one, and how many scalars they give different values."""
    if a.indices is not None and b.indices is not None:
        return _join_sparse(a, b, last=last)
    winner, loser = (b, a) if last else (a, b)
    if winner.indices is None:
        return winner, _differing(winner, loser)
    values = loser.values.clone()  # the whole one, in which the winner's few scalars go
    values.view(-1)[winner.indices.long()] = winner.values
    return replace(loser, values=values), _differing(loser, winner)


def _differing(whole: Change, other: Change) -> int:
    """Scalars that a whole change and another one give different values."""
    mine = whole.values if other.indices is None else whole.values.view(-1)[other.indices.long()]
    return int((bits(mine) != bits(other.values)).sum())


def _join_sparse(a: Change, b: Change, *, last: bool) -> tuple[Change, int]:
    assert a.indices is not None
    assert b.indices is not None
    mine, theirs = shared_places(a.indices, b.indices)
    conflicts = int((bits(a.values)[mine] != bits(b.values)[theirs]).sum())
    keep = torch.ones(len(a.indices) + len(b.indices), dtype=torch.bool, device="cpu")
    keep[mine if last else len(a.indices) + theirs] = False
    joined = torch.cat([a.indices, b.indices])[keep]
    order = joined.argsort()

    def take(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y])[keep][order]

    originals = None
    if a.originals is not None and b.originals is not None:
        originals = take(a.originals, b.originals)
    values = take(a.values, b.values)
    tied = a.tied if a.tied == b.tied else None
    return Change(a.shape, a.dtype, joined[order], values, originals, a.digest, tied), conflicts


def _about(deltas: Sequence[SparseDelta], on_conflict: str) -> About:
    first = deltas[0].about
    parts = [{"method": delta.about.method, **delta.about.hyperparameters} for delta in deltas]
    return replace(first, method="compose", hyperparameters={"on_conflict": on_conflict, "parts": parts})


def _config(deltas: Sequence[SparseDelta], changes: Mapping[str, Change], *, last: bool) -> Mapping[str, Any] | None:
    """The configuration of the delta whose tensors are there whole, such as a head, since labels are those of the head;
    that of the first delta if there are none, and none if they are of several.
    """
    suppliers = []
    for name, change in changes.items():
        having = [delta for delta in deltas if name in delta.changes and delta.changes[name].is_whole]
        if change.is_whole and having:
            suppliers.append(having[-1 if last else 0])
    configs = [delta.about.model_config for delta in suppliers or deltas[:1]]
    if all(config == configs[0] for config in configs):
        return configs[0]
    warnings.warn(
        "deltas: expected whole tensors of one model, got them from deltas with different configurations: the composed "
        "delta has none, and merging it keeps the base's",
        stacklevel=3,
    )
    return None


@dataclass(frozen=True)
class Agreement(Overlap):
    """How far two deltas agree.

    Attributes:
        conflicts: shared scalars that they give different values.
    """

    conflicts: int = 0


def agreement(a: SparseDelta, b: SparseDelta) -> dict[str, Agreement]:
    """The overlap of two deltas of one base, module by module; "all" is the sum. Whole tensors count with all scalars.

    Raises:
        DeltaError: the deltas are of different bases.
    """
    names = list(dict.fromkeys((*a.changes, *b.changes)))
    found = {"all": Agreement(0, 0, 0)}
    for name, place in zip(names, places(names), strict=True):
        counts = _compare(name, a.changes.get(name), b.changes.get(name))
        for key in dict.fromkeys(("all", place.module)):  # a module may have this very name
            before = found.get(key, Agreement(0, 0, 0))
            found[key] = Agreement(
                before.first + counts.first,
                before.second + counts.second,
                before.shared + counts.shared,
                before.conflicts + counts.conflicts,
            )
    return found


def _compare(name: str, a: Change | None, b: Change | None) -> Agreement:
    first, second = (0 if change is None else change.scalars for change in (a, b))
    if a is None or b is None:
        return Agreement(first, second, 0)
    check_one_base(name, a, b)
    if a.indices is None or b.indices is None:
        whole, other = (a, b) if a.indices is None else (b, a)
        return Agreement(first, second, other.scalars, _differing(whole, other))
    mine, theirs = shared_places(a.indices, b.indices)
    return Agreement(first, second, len(mine), int((bits(a.values)[mine] != bits(b.values)[theirs]).sum()))


def as_json(found: Mapping[str, Agreement]) -> dict[str, Any]:
    """The numbers of an agreement."""
    return {
        key: {
            "first": each.first,
            "second": each.second,
            "shared": each.shared,
            "jaccard": each.jaccard,
            "conflicts": each.conflicts,
        }
        for key, each in found.items()
    }
