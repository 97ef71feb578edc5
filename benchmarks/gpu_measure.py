"""Checks ours on a device, then times it and its rivals there, and notes what they allocate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor

from benchmarks import gate, rivals
from benchmarks.device import Clock, MemoryWatch
from benchmarks.gpu_cases import COMPILED, TOTAL_STEPS, Case, Entry, entries, expected, state_at_capacity, tensors_of
from benchmarks.harness import Contender, Timing, host_seconds, interleave
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, bert_shapes, random_tensors, total
from selective_kernels import dispatch

WARMUPS = 2  # ordinary steps, after the one that brings an optimizer to its place in the run
CHECKED = bert_shapes(2, 96, 384, vocabulary=3000, positions=64)


@dataclass(frozen=True)
class Made:
    """Who takes part: its optimizer, and its step."""

    entry: Entry
    optimizer: Any
    contender: Contender


@dataclass
class Measured:
    """What came out for one case, by name of the entry.

    Attributes:
        queued: times behind other work of the device.
        alone: times from an idle device, host included.
        extra: most bytes beyond state in a timed step; no entries on the CPU.
        first_extra: the same in the step that brings it to its place in the run.
        state: bytes of state.
        notes: why somebody has no time.
        gradient_sets: how many took turns.
    """

    queued: dict[str, Timing] = field(default_factory=dict)
    alone: dict[str, Timing] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    first_extra: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    gradient_sets: int = 0


def check(case: Case, device: torch.device) -> int:
    """Compares all kernels and reference on a small problem of the case's dtype; returns how many scalars it has.

    Raises:
        gate.Mismatch: see `gate.agree`.
    """
    shapes = MODELS["tiny"] if case.model == "tiny" else CHECKED
    base = random_tensors(shapes, PARAM_STD, case.dtype, 3, device)
    grads = [random_tensors(shapes, GRAD_STD, case.dtype, seed, device) for seed in (4, 5)]
    done, steps = TOTAL_STEPS // 2, 3
    budget = total(shapes) // 20

    def in_the_middle(params: list[Tensor], backend: str) -> SelectiveAdamW:
        return rivals.at_step(params, budget, TOTAL_STEPS, done, backend)

    def at_once(params: list[Tensor], backend: str) -> SelectiveAdamW:
        return rivals.all_selected(params, budget, backend)

    for kernels in (dispatch.resolve(device, case.backend), *case.others):
        gate.agree(base, grads, in_the_middle, budget * (done + steps - 1) // TOTAL_STEPS, steps, kernels)
        gate.agree(base, grads, at_once, budget, steps, kernels)
    return total(shapes)


def measure(
    case: Case, clock: Clock, rounds: int, alone: int, after_round: Callable[[], object] = lambda: None
) -> tuple[Measured, list[Entry], list[Made]]:
    """Times everybody: `rounds` times behind other work, then `alone` times on its own.

    Returns:
        What came out, everybody, and those who could take part.

    Raises:
        gate.Mismatch: ours did not select what it should have.
    """
    params, grads = tensors_of(case, clock.device)
    watch, found, made = MemoryWatch(clock.device), Measured(gradient_sets=len(grads)), []
    everybody = entries(case, params, grads)
    for entry in everybody:
        one = _started(entry, watch, found.notes)
        if one is not None:
            made.append(one)
    first = watch.forget_peaks()
    running = [one.contender for one in made]
    found.queued = interleave(running, rounds, WARMUPS, after_round, watch.around(clock.queued))
    found.alone = interleave(running, alone, 0, after_round, clock.alone)
    _check_runs(case, made, 1 + WARMUPS + rounds + alone)
    found.state = {one.entry.name: state_at_capacity(one.optimizer, one.entry.budget) for one in made if one.optimizer}
    found.first_extra = {name: first[name] - size for name, size in found.state.items() if name in first}
    found.extra = {name: watch.peak[name] - size for name, size in found.state.items() if name in watch.peak}
    return found, everybody, made


def _started(entry: Entry, watch: MemoryWatch, notes: dict[str, str]) -> Made | None:
    """Makes an optimizer and takes its first step; None, with a note, if it has no place."""
    if entry.make is None:
        notes[entry.name] = entry.note
        return None
    make, made = entry.make, []
    watch.enter(entry.name)
    timer = watch.around(host_seconds)
    try:
        timer(lambda: made.append(make(entry.name)))
        optimizer, contender = made[0]
        contender.prepare(0)
        timer(contender.run)
    except torch.OutOfMemoryError:
        notes[entry.name] = "left out: out of memory"
        return None
    except RuntimeError as error:
        if entry.method != COMPILED:  # whose compiler may be missing
            raise
        notes[entry.name] = f"unavailable: {str(error).strip().splitlines()[0]}"
        return None

    def prepare(number: int) -> None:
        watch.enter(entry.name)
        contender.prepare(number)

    return Made(entry, optimizer, replace(contender, prepare=prepare))


def _check_runs(case: Case, made: Sequence[Made], taken: int) -> None:
    """That what was timed was the work that it should have been."""
    for one in made:
        if isinstance(one.optimizer, SelectiveAdamW):
            wanted = expected(case, one.entry.budget, one.entry.step, taken)
            if one.optimizer.num_selected != wanted or one.optimizer.skipped_steps:
                raise gate.Mismatch(f"{one.entry.name}: expected {wanted} scalars, got {one.optimizer.num_selected}")
