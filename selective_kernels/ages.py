"""Bias corrections by age, for "per_entry": computed in double once, kept on each device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selective_kernels.hostcopy import to_device

NOTHING = 1e-12  # a power of beta below this no longer changes a float32 correction
LEAST_AGES = 1024
MOST_TABLES = 16  # a schedule may give other betas in every step
Betas = tuple[float, float]
_known: dict[tuple[tuple[Betas, ...], torch.device, int], Corrections] = {}


class Corrections(NamedTuple):
    """Corrections of some pairs of betas, one after the other.

    Attributes:
        first, second: float32, on the device, by place: 1 - beta1^age and sqrt(1 - beta2^age).
        places: of each pair of betas: the place of age 0, and the last age that it has.
    """

    first: Tensor
    second: Tensor
    places: dict[Betas, tuple[int, int]]


def _of_one(beta: float, ages: Tensor) -> Tensor:
    return 1.0 - torch.pow(torch.tensor(beta, dtype=torch.float64, device="cpu"), ages)


def _ages_that_matter(betas: Betas, most: int) -> int:
    """The age from which on both corrections stay one, `most` at most."""
    age = 2
    while age < most:
        if max(betas[0] ** age, betas[1] ** age) < NOTHING:
            return age
        age *= 2
    return most


def corrections_of(betas: Sequence[Betas], most: int, device: torch.device) -> Corrections:
    """The corrections of pairs of betas for ages up to `most`; from the last age that is there they stay the same.

    They are for the device's current stream: nobody waits for the copy that brings them.
    """
    pairs = tuple(dict.fromkeys(betas))
    key = (pairs, device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    known = _known.pop(key, None)
    if known is not None and all(known.places[pair][1] >= _ages_that_matter(pair, most) for pair in pairs):
        _known[key] = known  # now the last one to go
        return known
    while len(_known) >= MOST_TABLES:
        del _known[next(iter(_known))]
    room = max(LEAST_AGES, 2 * most)
    first, second, places, length = [], [], {}, 0
    for pair in pairs:
        last = _ages_that_matter(pair, room)
        ages = torch.arange(last + 1, dtype=torch.float64, device="cpu")
        first.append(_of_one(pair[0], ages).float())
        second.append(_of_one(pair[1], ages).sqrt().float())
        places[pair] = (length, last)
        length += last + 1
    _known[key] = Corrections(to_device(torch.cat(first), device), to_device(torch.cat(second), device), places)
    return _known[key]
