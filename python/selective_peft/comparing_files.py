"""The difference of two checkpoint folders, one pair of tensors at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selective_peft.changes import Change
from selective_peft.checkpoint_files import Checkpoint, Reader, modern
from selective_peft.container import CODES, DTYPES, Stored
from selective_peft.differing import ALONE, differing, pieces
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import check_none_lost, check_whole_above, sparse_change
from selective_peft.naming import is_count
from selective_peft.rawbytes import BITS
from selective_peft.stored_names import Naming, prefixes
from selective_peft.streaming import Meter, Progress

FLOATS = frozenset(CODES[dtype] for dtype in BITS)


def difference_of_files(
    base: Checkpoint, tuned: Checkpoint, whole_above: float, allow_missing: bool, progress: Progress | None
) -> tuple[dict[str, Change], Mapping[str, Any] | None]:
    """Changes by the tuned checkpoint's names, in its order, and its configuration; see `patch_files.diff_files`."""
    check_whole_above(whole_above)
    old = {modern(name): (name, stored) for name, stored in base.tensors.items()}
    new = {modern(name): (name, stored) for name, stored in tuned.tensors.items()}
    naming = _naming(old, new)
    partners = {name: naming.stored(name) for name in new}
    lost = sorted(set(old) - set(partners.values()))
    if not allow_missing:
        check_none_lost(lost)
    tied = None if lost else ()  # each name that the base has is looked at here, whatever else it may mean
    meter = Meter(sum(stored.nbytes for _, stored in new.values()), progress)
    changes = {}
    with Reader(base) as before, Reader(tuned) as after:
        for name, (key, stored) in new.items():
            first = old.get(partners[name])
            change = _compare(name, before, first, after, key, stored, whole_above)
            if change is not None:
                changes[name] = replace(change, tied=tied)
            meter.add(stored.nbytes, f"comparing {name}")
    return changes, tuned.config


def _compare(
    name: str, before: Reader, first: tuple[str, Stored] | None, after: Reader, key: str, stored: Stored, share: float
) -> Change | None:
    if first is not None:
        old = first[1]
        if old.code != stored.code or old.shape != stored.shape:
            raise DeltaError(
                f"{name}: tuned: expected {old.code} {list(old.shape)}, got {stored.code} {list(stored.shape)}"
            )
        if _same(before.pieces(first[0]), after.pieces(key)):
            return None
    if stored.code not in FLOATS and is_count(name) and first is not None:
        return None
    if stored.code not in FLOATS:
        given = "another one" if first is None else "different ones"
        raise DeltaError(
            f"{name}: tuned: expected equal tensors unless they are float32, bfloat16 or float16, got {given} of "
            f"{stored.code} {list(stored.shape)}"
        )
    try:
        found = None
        if first is not None:
            pairs = zip(_flat(before, first[0], stored), _flat(after, key, stored), strict=True)
            found = differing(pairs, share * math.prod(stored.shape))
        if found is not None:
            return sparse_change(stored.shape, found)
        tensor = None if first is None else before.container(first[0]).read(first[0])
        return Change.whole(after.container(key).read(key), tensor)
    except DeltaError as error:
        raise DeltaError(f"{name}: {error}") from error


def _flat(reader: Reader, key: str, stored: Stored) -> Iterator[Tensor]:
    """A tensor's scalars, piece by piece."""
    return (torch.frombuffer(piece, dtype=DTYPES[stored.code]) for piece in reader.pieces(key))


def _same(a: Iterator[memoryview], b: Iterator[memoryview]) -> bool:
    pairs = (pair for one, other in zip(a, b, strict=True) for pair in pieces(_bytes(one), _bytes(other), ALONE))
    return all(torch.equal(one, other) for one, other in pairs)


def _bytes(piece: memoryview) -> Tensor:
    return torch.frombuffer(piece, dtype=torch.uint8)


def _naming(old: Mapping[str, tuple[str, Stored]], new: Mapping[str, tuple[str, Stored]]) -> Naming:
    """The naming under which most tensors have a partner; none at all if that is as good.

    Raises:
        DeltaError: there is no pair, or two prefixes are as good.
    """
    less = {Naming(less=prefix) for name in new for prefix in prefixes(name)}
    more = {Naming(more=prefix) for name in old for prefix in prefixes(name)}
    scores = {naming: _pairs(naming, old, new) for naming in (Naming(), *sorted(less | more, key=repr))}
    most = max(scores.values())
    if not most:
        raise DeltaError("tuned: expected tensors of the base, there is none of any of its names")
    best = [naming for naming, score in scores.items() if score == most]
    if best[0] != Naming() and len(best) > 1:
        both = " and ".join(repr(naming.less or naming.more) for naming in best)
        raise DeltaError(f"tuned: expected names with one prefix more or less than the base's, got {both}")
    return best[0]


def _pairs(naming: Naming, old: Mapping[str, tuple[str, Stored]], new: Mapping[str, tuple[str, Stored]]) -> int:
    found = (old.get(naming.stored(name)) for name in new)
    return sum(
        pair is not None and pair[1].shape == stored.shape
        for pair, (_, stored) in zip(found, new.values(), strict=True)
    )
