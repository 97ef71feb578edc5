"""Where a step of ours spends its time on a GPU: by part of the step, and by kernel."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from benchmarks.device import Clock, mark
from benchmarks.gpu_measure import Made
from benchmarks.report import format_table
from selective_kernels.ranges import PREFIX, spans

ROUNDS = 5
STEPS = ROUNDS + 1  # that `parts` takes
KERNELS = "selective_kernels._triton"
Row = dict[str, object]


def parts(made: Made, clock: Clock) -> list[Row]:
    """Takes `STEPS` more steps; rows of two kinds, milliseconds.

    "part": median of the time on the device's timeline from the beginning of a part of the step to its end, waiting for
    the host included; "other" is what lies between the parts. "kernel": what the profiler saw run on the device in
    one step, with the number of launches, ours or torch's; none on the CPU.
    """
    return [*_by_part(made, clock), *_by_kernel(made, clock)]


def _row(kind: str, name: str, count: int, milliseconds: float, own: bool) -> Row:
    return {"kind": kind, "name": name, "count": count, "ms": f"{milliseconds:.4f}", "own": own}


def _by_part(made: Made, clock: Clock) -> list[Row]:
    rounds: list[dict[str, float]] = []
    counts: dict[str, int] = {}
    for number in range(ROUNDS):
        made.contender.prepare(number)
        with spans(mark if clock.on_gpu else time.perf_counter) as found:
            whole = 1e3 * clock.queued(made.contender.run)
        clock.synchronize()
        seen: dict[str, float] = {}
        for name, began, ended in found:
            spent = began.elapsed_time(ended) if clock.on_gpu else 1e3 * (ended - began)
            seen[name] = seen.get(name, 0.0) + spent
        counts = {name: sum(each[0] == name for each in found) for name in seen}
        rounds.append({**seen, "other": whole - sum(seen.values()), "whole step": whole})
    names = dict.fromkeys(name for each in rounds for name in each)
    return [
        _row("part", name, counts.get(name, 1), statistics.median(each.get(name, 0.0) for each in rounds), True)
        for name in names
    ]


def _by_kernel(made: Made, clock: Clock) -> list[Row]:
    made.contender.prepare(ROUNDS)
    if not clock.on_gpu:
        made.contender.run()
        return []
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        made.contender.run()
        clock.synchronize()
    counts: dict[str, int] = {}
    times: dict[str, float] = {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.name.startswith(PREFIX):
            counts[event.name] = counts.get(event.name, 0) + 1
            times[event.name] = times.get(event.name, 0.0) + event.time_range.elapsed_us() / 1e3
    own = own_kernels()
    order = sorted(times, key=lambda name: -times[name])
    return [_row("kernel", name, counts[name], times[name], name in own) for name in order]


def own_kernels() -> set[str]:
    """Names of the Triton kernels that were loaded."""
    modules = [module for name, module in sys.modules.items() if name.startswith(KERNELS)]
    return {name for module in modules for name, value in vars(module).items() if type(value).__name__ == "JITFunction"}


def screen(rows: Sequence[Row]) -> str:
    """The rows of one optimizer as a table, and how many launches its step made."""
    shown = [(str(row["name"])[:70], str(row["kind"]), str(row["count"]), str(row["ms"])) for row in rows]
    table = format_table(("", "", "count", "ms"), shown)
    kernels = [row for row in rows if row["kind"] == "kernel"]
    if not kernels:
        return table
    launches = [sum(int(str(row["count"])) for row in kernels if row["own"] is own) for own in (True, False)]
    return f"{table}\nlaunches: {launches[0]} of our own, {launches[1]} others (sort, copies, fills)"
