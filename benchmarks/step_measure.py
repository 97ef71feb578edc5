"""Checks ours and the dense rivals, then times them on one case of the step suite.

Ours and the fast rivals sit together for all rounds. Each slow rival then has a sitting of its own with ours and the
read, so that every ratio is one of moments, and the memory of one slow rival at a time is enough.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import rivals
from benchmarks.certificate import certify
from benchmarks.cold import Cold
from benchmarks.device import Clock
from benchmarks.gate import Mismatch
from benchmarks.harness import Contender, Timing, host_seconds, interleave, read_probe
from benchmarks.masking_tuned import CompiledMasking
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, copies, random_tensors
from benchmarks.step_cases import (
    COMPILED,
    DTYPES,
    FOREACH,
    FUSED,
    IDLE,
    MASKINGS,
    OURS,
    READ,
    SLOW_ROUNDS,
    SLOW_SECONDS,
    TOTAL_STEPS,
    WARMUPS,
    Case,
    slow_rival,
    torch_adamw,
)

CHECK_BUDGET, CHECK_STEPS = 700, 20  # of the dense rivals, on the shapes "tiny"


@dataclass
class Measured:
    """What came out for one case.

    Attributes:
        sittings: timings by name, of those who took turns with each other; the first has the most rounds.
        notes: name -> why there is no time, or what to know about it.
    """

    sittings: list[dict[str, Timing]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def timing(self, name: str) -> Timing | None:
        """Of the first sitting in which it took part."""
        return next((each[name] for each in self.sittings if name in each), None)

    def ratio(self, name: str, other: str) -> float | None:
        """How many times as long as the other it took, where both took part first; None: nowhere."""
        both = next((each for each in self.sittings if name in each and other in each), None)
        return both[name].ratio(both[other]) if both else None


@dataclass
class Ours:
    """Our optimizer at one point of a run, and how many steps it has taken."""

    name: str
    optimizer: SelectiveAdamW
    contender: Contender
    taken: int = 0


def check_maskings(dtype: str, compiler: str = "inductor") -> tuple[str, str]:
    """Checks the dense rivals on a small problem without equal scores, and compiles for one dtype.

    Returns:
        Why compiled masking cannot take part, "" if it can; and a note on it.

    Raises:
        Mismatch: a rival does not do what it is compared for.
    """
    base = random_tensors(MODELS["tiny"], PARAM_STD, DTYPES[dtype], 0)
    grads = [random_tensors(MODELS["tiny"], GRAD_STD, DTYPES[dtype], seed) for seed in (1, 2)]
    # In 16 bits they have no float32 copies of what is trained, so that only the first step gives what ours gives.
    targets = [CHECK_BUDGET * step // CHECK_STEPS for step in (10, 11)][: 2 if dtype == "float32" else 1]
    arguments = (CHECK_BUDGET, CHECK_STEPS, 10)
    for name, kind in MASKINGS.items():
        if name != COMPILED:
            certify(base, grads, lambda params, kind=kind: kind(params, *arguments), targets)  # type: ignore[misc]
    began = time.perf_counter()
    try:
        certify(base, grads, lambda params: CompiledMasking(params, *arguments, compiler), targets)
    except RuntimeError as error:
        return f"unavailable: {str(error).strip().splitlines()[0]}", ""
    return "", f"compiled in {time.perf_counter() - began:.0f} s, which do not count"


def check_ours(case: Case, base: Sequence[Tensor], grads: rivals.GradSets) -> int:
    """Checks two selecting steps in the middle of a run; returns how many scalars were selected in the end.

    Raises:
        Mismatch: the kernels select or compute something else than they should.
    """
    done = TOTAL_STEPS // 2
    targets = [case.budget * (done + step) // TOTAL_STEPS for step in range(2)]
    certify(base, grads, lambda params: rivals.at_step(params, case.budget, TOTAL_STEPS, done), targets)
    return targets[-1]


def measure(case: Case, compiler_note: str = "") -> Measured:
    """Checks ours, then times everybody.

    Raises:
        Mismatch: a result is wrong, or what was timed was not the work that it should have been.
    """
    shapes, dtype = MODELS[case.model], DTYPES[case.dtype]
    base = random_tensors(shapes, PARAM_STD, dtype, seed=0)
    grads = [random_tensors(shapes, GRAD_STD, dtype, seed=seed) for seed in (1, 2)]
    print(f"checked: {check_ours(case, base, grads):,} scalars are the best and have the right values", flush=True)
    ours = [_started(case, name, base, grads) for name in OURS]
    found = Measured(notes=dict(case.left_out))
    sit = partial(_sit, case, ours, read_probe(base, grads, READ), found)
    sit([torch_adamw(name, base, grads) for name in (FUSED, FOREACH)], case.rounds, WARMUPS)
    for name in case.slow:
        gc.collect()
        rival = slow_rival(case, name, base, grads)
        rival.prepare(0)
        seconds = host_seconds(rival.run)  # its first step, which is not timed
        least, most = SLOW_ROUNDS
        rounds = rival.rounds or min(most, max(least, int(SLOW_SECONDS / seconds)))
        sit([rival], rounds, 0)
        del rival
    if COMPILED in case.slow and compiler_note:
        found.notes[COMPILED] = compiler_note
    _check_runs(case, ours)
    return found


def _started(case: Case, name: str, base: list[Tensor], grads: rivals.GradSets) -> Ours:
    params = copies(base)
    if name == IDLE:
        optimizer = rivals.all_selected(params, case.budget)
    else:
        optimizer = rivals.at_step(params, case.budget, TOTAL_STEPS, case.begin(name))
    ours = Ours(name, optimizer, rivals.stepping(name, params, grads, optimizer.step))

    def step() -> None:
        optimizer.step()
        ours.taken += 1

    ours.contender = replace(ours.contender, run=step)
    return ours


def _sit(
    case: Case,
    ours: Sequence[Ours],
    read: Contender,
    found: Measured,
    others: Sequence[Contender],
    rounds: int,
    warmups: int,
) -> None:
    everybody = [read, *(each.contender for each in ours), *others]
    label = others[0].name if len(others) == 1 else case.model
    with tqdm(total=rounds + warmups, desc=label, unit="round", leave=False) as bar:
        found.sittings.append(interleave(everybody, rounds, warmups, bar.update, Cold(Clock(torch.device("cpu")))))


def _check_runs(case: Case, ours: Sequence[Ours]) -> None:
    for each in ours:
        wanted, got = case.expected(each.name, each.taken), each.optimizer.num_selected
        if got != wanted or each.optimizer.skipped_steps:
            raise Mismatch(f"{each.name}: expected {wanted} selected scalars after {each.taken} steps, got {got}")
