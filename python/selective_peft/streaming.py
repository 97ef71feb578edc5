"""Tensors that pass by in pieces: what they hold, and other values put in, in memory that does not grow with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selective_peft.changes import Change
from selective_peft.container import CHUNK
from selective_peft.rawbytes import DIGEST, raw, same_bits

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is being done


@dataclass
class Meter:
    """Counts bytes for whoever wants to show them."""

    total: int
    tell: Progress | None = None
    done: int = 0

    def add(self, size: int, what: str) -> None:
        """So many more bytes are done."""
        self.done += size
        if self.tell is not None:
            self.tell(self.done, self.total, what)

    def counting(self, pieces: Iterable[memoryview], what: str) -> Iterator[memoryview]:
        """The same pieces; each counts when the next one is asked for."""
        for piece in pieces:
            yield piece
            self.add(len(piece), what)


def swapped(
    pieces: Iterable[memoryview], change: Change, values: Tensor, before: Tensor | None = None
) -> Iterator[tuple[memoryview, bool]]:
    """Puts values into a tensor's bytes as they pass by, in place.

    Args:
        pieces: the bytes, cut between scalars.
        change: says where; of some of the scalars, or of all.
        values: one for each.
        before: what is expected there.

    Yields:
        The pieces, and whether `before` stood in this one.
    """
    at, flat = 0, values.reshape(-1)
    expected = None if before is None else before.reshape(-1)
    for piece in pieces:
        scalars = torch.frombuffer(piece, dtype=change.dtype)
        end = at + len(scalars)
        places: slice | Tensor
        if change.indices is None:
            entries, places = slice(at, end), slice(0, len(scalars))
        else:
            first, last = torch.searchsorted(change.indices, torch.tensor([at, end], device="cpu")).tolist()
            entries, places = slice(first, last), change.indices[first:last].long() - at
        same = expected is None or same_bits(scalars[places], expected[entries])
        scalars[places] = flat[entries]
        yield piece, same
        at = end


def digest_of(pieces: Iterable[memoryview]) -> str:
    """As `rawbytes.digest`, of a tensor in pieces."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()[:DIGEST]


def undone(pieces: Iterable[memoryview], change: Change) -> tuple[bool, str]:
    """Whether the delta's values stand at its places; and the digest of the tensor without the change.

    The second is "" if the originals were not kept.
    """
    originals = change.values if change.originals is None else change.originals
    total, everywhere = hashlib.sha256(), True
    for piece, same in swapped(pieces, change, originals, change.values):
        total.update(piece)
        everywhere &= same
    return everywhere, "" if change.originals is None else total.hexdigest()[:DIGEST]


def is_constant(pieces: Iterable[memoryview], size: int) -> bool:
    """Whether all scalars of a tensor, of `size` bytes each, are equal."""
    first = b""
    for piece in pieces:
        first = first or bytes(piece[:size])
        if piece != first * (len(piece) // size):
            return False
    return True


def pieces_of(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous CPU tensor."""
    data = raw(tensor)
    for begin in range(0, len(data), CHUNK):
        yield data[begin : begin + CHUNK]
