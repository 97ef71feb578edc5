"""`selective-peft profile`: where a step's time and memory go."""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table as Grid

from selective_kernels import Table, dispatch
from selective_kernels.ranges import stopwatch
from selective_kernels.testing import read_once
from selective_peft import D3, SelectiveAdamW, loading
from selective_peft.errors import InputError
from selective_peft.groups import selective_param_groups

WARMUPS = 2
READS = 5
PARTS = ("scan", "finalize", "merge", "gather", "update")


@dataclass(frozen=True)
class Step:
    """Seconds of one step; `ranges` are the optimizer's parts."""

    forward: float
    backward: float
    optimizer: float
    ranges: dict[str, float]


def batch_of(loaded: loading.Loaded, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Random tokens and labels.

    Raises:
        InputError: the model takes no texts of that length.
    """
    longest = loaded.positions
    if options.length > longest:
        raise InputError(f"--length {options.length}: expected at most the model's {longest} positions")
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, options.length)
    tokens = torch.randint(len(loaded.tokenizer), shape, generator=generator)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.randint(2, shape[:1], generator=generator),
    }


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    began = time.perf_counter()
    value = function()
    return value, time.perf_counter() - began


def one_step(model: Any, optimizer: SelectiveAdamW, batch: dict[str, torch.Tensor]) -> Step:
    """Forward, backward, optimizer; gradients stay."""
    optimizer.zero_grad()
    loss, forward = timed(lambda: model(**batch).loss)
    _, backward = timed(loss.backward)
    with stopwatch() as ranges:
        _, seconds = timed(optimizer.step)
    return Step(forward, backward, seconds, ranges)


def run(options: argparse.Namespace, console: Console) -> None:
    """Measures and prints.

    Raises:
        InputError: something that was given cannot be used.
    """
    if options.trace is not None and (options.trace.is_dir() or not options.trace.absolute().parent.is_dir()):
        raise InputError(f"--trace {options.trace}: expected a file in a folder that exists")
    loading.quiet()
    loaded = loading.load(options.model, options.seed, ["0", "1"])
    model = loaded.model.train()
    steps = WARMUPS + options.steps
    try:
        optimizer = SelectiveAdamW(
            selective_param_groups(model, train_fully=sorted(loaded.new)),
            lr=1e-6,
            budget=options.budget,
            total_steps=steps + 1,
            score=D3(options.score_exp, options.score_eps),
            select_every=options.select_every,
        )
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    batch = batch_of(loaded, options)
    every = [
        one_step(model, optimizer, batch) for _ in track(range(steps), "Measuring", console=console, transient=True)
    ]
    params = [param for param in model.parameters() if param.grad is not None]
    tables = [Table([param.detach() for param in params]), Table([param.grad for param in params])]
    reads = [sum(timed(lambda t=t: read_once(t))[1] for t in tables) for _ in range(READS)]  # type: ignore[misc]
    size = 2 * sum(param.numel() * param.element_size() for param in params)
    console.print(time_table(every[WARMUPS:], statistics.median(reads), size))
    console.print(memory_table(model, optimizer))
    console.print(
        f"{options.model}: batch {options.batch_size} x {options.length} tokens, budget {optimizer.num_selected:,} of "
        f"{sum(p.numel() for p in model.parameters()):,} scalars, kernels: {dispatch.resolve('cpu')}, "
        f"{torch.get_num_threads()} threads. Medians of {options.steps} steps; what is read: parameters, gradients.",
        highlight=False,
    )
    if options.trace is not None:
        write_trace(options.trace, model, optimizer, batch)


def write_trace(path: Path, model: Any, optimizer: SelectiveAdamW, batch: dict[str, torch.Tensor]) -> None:
    """One more step under torch.profiler.

    Raises:
        OSError: the file cannot be written.
    """
    with torch.profiler.profile() as profiler:
        one_step(model, optimizer, batch)
    with tempfile.TemporaryDirectory() as folder:  # the profiler itself reports no failure
        written = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(written))
        shutil.copy(written, path)


def time_table(steps: list[Step], read: float, size: int) -> Grid:
    """Milliseconds, shares of the step, multiples of reading parameters and gradients (`size` bytes in `read` s)."""
    rows = {
        "forward": [step.forward for step in steps],
        "backward": [step.backward for step in steps],
        "optimizer": [step.optimizer for step in steps],
    }
    for part in PARTS:
        seconds = [step.ranges.get(part, 0.0) for step in steps]
        if any(seconds):
            rows[f"  {part}"] = seconds
    rows["  rest (Python, new head)"] = [step.optimizer - sum(step.ranges.values()) for step in steps]
    total = statistics.median(step.forward + step.backward + step.optimizer for step in steps)
    grid = Grid(title="Time of a step", title_justify="left")
    for heading in ("", "ms", "% of step", "x read"):
        grid.add_column(heading, justify="right" if heading else "left")
    for name, seconds in rows.items():
        middle = statistics.median(seconds)
        grid.add_row(name, f"{1e3 * middle:.2f}", f"{100 * middle / total:.1f}", f"{middle / read:.2f}")
    grid.add_section()
    grid.add_row("whole step", f"{1e3 * total:.2f}", "100.0", f"{total / read:.2f}")
    label = f"read once: {size / 1e6:.0f} MB at {size / read / 1e9:.1f} GB/s"
    grid.add_row(label, f"{1e3 * read:.2f}", "", "1.00")
    return grid


def memory_table(model: Any, optimizer: SelectiveAdamW) -> Grid:
    """Megabytes between steps, and the largest that the process ever was."""
    params = list(model.parameters())
    dense = sum(
        v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)
    )
    numel = sum(param.numel() for param in params)
    rows = {
        "parameters": sum(param.numel() * param.element_size() for param in params),
        "gradients": sum(p.grad.numel() * p.grad.element_size() for p in params if p.grad is not None),
        "optimizer state, selected scalars": optimizer.state_nbytes(),
        "optimizer state, new head": dense,
        "(dense AdamW's moments would be)": 8 * numel,
        "peak of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }
    grid = Grid(title="Memory", title_justify="left")
    grid.add_column("")
    grid.add_column("MB", justify="right")
    for name, size in rows.items():
        grid.add_row(name, f"{size / 1e6:,.1f}")
    return grid
