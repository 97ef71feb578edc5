"""Where two tensors differ, found piece by piece: the pieces stay in the cache, and little memory is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selective_peft.rawbytes import DIGEST, bits, raw

PIECE = 1 << 19  # scalars
ALONE = 1 << 14  # scalars, too few for torch to start threads, which cost more than they bring here


@dataclass(frozen=True)
class Differing:
    """The places at which two tensors have different bits.

    Attributes:
        indices: int32, ascending.
        values, originals: what the second and the first tensor have there.
        digest: of the first tensor, as `rawbytes.digest`.
    """

    indices: Tensor
    values: Tensor
    originals: Tensor
    digest: str


def differing(pairs: Iterable[tuple[Tensor, Tensor]], most: float) -> Differing | None:
    """Compares two tensors of less than 2^31 scalars that differ; None if they do so in more than `most`.

    Args:
        pairs: their pieces, flat and of one dtype, each of them needed until the next is taken.
        most: a number of scalars.
    """
    total, at, count = hashlib.sha256(), 0, 0
    indices, values, originals = [], [], []
    for before, after in pairs:
        total.update(raw(before))
        for old, new in pieces(before, after, ALONE):
            places = (bits(old) != bits(new)).nonzero().view(-1)
            if len(places):
                indices.append((places + at).to(torch.int32))
                values.append(new[places])
                originals.append(old[places])
                count += len(places)
            at += len(old)
        if count > most:
            return None
    return Differing(torch.cat(indices), torch.cat(values), torch.cat(originals), total.hexdigest()[:DIGEST])


def pieces(before: Tensor, after: Tensor, size: int = PIECE) -> Iterator[tuple[Tensor, Tensor]]:
    """Two flat contiguous tensors in pieces, as `differing` takes them."""
    for begin in range(0, len(before), size):
        yield before[begin : begin + size], after[begin : begin + size]
