"""Checks, then times one problem of the scaling suite.

All contenders share parameters and one set of gradients, never state, so that a billion scalars fit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks import bandwidth, rivals
from benchmarks.certificate import certify
from benchmarks.cold import Cold
from benchmarks.device import Clock, free_bytes
from benchmarks.gate import Mismatch
from benchmarks.harness import Contender, Timing, interleave, read_probe
from benchmarks.room import available_bytes, lack
from benchmarks.scaling_cases import FUSED, IDLE, READ, SELECTING, Point
from benchmarks.shapes import GRAD_STD, PARAM_STD, random_tensors

WARMUPS = 2  # the first step selects what counts as selected so far, the second one is an ordinary step
CHECKED = 100_000_000  # scalars; larger problems are only counted, they need the memory for themselves
PER_SELECTED = 64  # bytes of state and reserves, at most
SPARE = 0.9  # of the memory that is free


@dataclass
class Timed:
    """What came out for a problem: timings by name, and why somebody has none."""

    timings: dict[str, Timing] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    checked: bool = False


def room(device: torch.device) -> int:
    """Bytes that may be taken."""
    return int(SPARE * (free_bytes(device) if device.type == "cuda" else available_bytes()))


def who_fits(point: Point, item: int, free: int) -> tuple[Point, dict[str, str]]:
    """The problem with those contenders for whom there is memory, and why the others are left out.

    Args:
        point: with all contenders.
        item: bytes of a scalar.
        free: bytes that may be taken.
    """
    needs = 2 * item * point.scalars + 2 * PER_SELECTED * (point.selected + point.k * 20)
    if why := lack(needs, free):
        return replace(point, whats=()), dict.fromkeys(point.whats, why)
    why = lack(needs + 2 * item * point.scalars, free)
    if not why or FUSED not in point.whats:
        return point, {}
    return replace(point, whats=tuple(what for what in point.whats if what != FUSED)), {FUSED: why}


def measure(point: Point, dtype: torch.dtype, clock: Clock, rounds: int) -> Timed:
    """Checks and times a problem with the threads that it asks for.

    Raises:
        Mismatch: the kernels select or compute something else than they should.
    """
    gc.collect()
    point, notes = who_fits(point, dtype.itemsize, room(clock.device))
    found = Timed(notes=notes)
    if not point.whats:
        return found
    with _threads(point.threads):
        names = {str(i): (size,) for i, size in enumerate(point.sizes())}
        params = random_tensors(names, PARAM_STD, dtype, 0, clock.device)
        grads = [random_tensors(names, GRAD_STD, dtype, 1, clock.device)]
        found.checked = point.scalars <= CHECKED
        if found.checked:
            make = partial(rivals.after, first=point.selected, share=point.k, steps=2)
            certify(params, grads, make, [point.selected, point.selected + point.k])
        params = [param.requires_grad_() for param in params]
        found.timings = _time(point, params, grads, clock, rounds)
    return found


def _time(point: Point, params: list[Tensor], grads: rivals.GradSets, clock: Clock, rounds: int) -> dict[str, Timing]:
    steps = WARMUPS + rounds
    ours: dict[str, SelectiveAdamW] = {}

    def own(name: str, share: int) -> Contender:
        ours[name] = rivals.after(params, point.selected, share, steps)
        return rivals.stepping(name, params, grads, ours[name].step)

    def fused() -> Contender:
        optimizer = torch.optim.AdamW(params, lr=rivals.LR, weight_decay=0.0, fused=True)
        return rivals.stepping(FUSED, params, grads, optimizer.step)

    makers: dict[str, Callable[[], Contender]] = {
        SELECTING: lambda: own(SELECTING, point.k),
        IDLE: lambda: own(IDLE, 0),
        FUSED: fused,
    }
    if not clock.on_gpu:
        makers[READ] = lambda: read_probe(params, grads, READ)
    contenders = [makers[what]() for what in point.whats if what in makers]
    timings = interleave(contenders, rounds, WARMUPS, timer=Cold(clock))
    for name, share in ((SELECTING, point.k), (IDLE, 0)):
        wanted = point.selected + share * (steps - 1)
        if name in ours and (ours[name].num_selected != wanted or ours[name].skipped_steps):
            raise Mismatch(f"{name}: expected {wanted} selected scalars, got {ours[name].num_selected}")
    if clock.on_gpu and READ in point.whats:
        count = sum(tensor.numel() * tensor.element_size() for tensor in (*params, *grads[0]))
        timings[READ] = Timing((count / bandwidth.measure(clock).read,) * rounds)
    return {what: timings[what] for what in point.whats}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads, which the kernels follow; 0 leaves it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
