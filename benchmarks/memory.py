"""Measures the memory of a step beyond what is held between steps: `python -m benchmarks.memory` (`make bench`).

Each case runs in a process of its own, on BERT-base shapes. The peak is Linux's own record of the largest resident set
(VmHWM), set back just before a step; what was resident before and the growth of the optimizer state are subtracted.
"Held" is by how much anonymous resident memory (RssAnon) has grown since the optimizer was made, state and reserves
together. The C allocator is told to return freed memory at once, or buffers of earlier steps would hide new ones.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor
from torch.optim import Optimizer

from benchmarks import ROOT, rivals
from benchmarks.report import RESULTS, describe, environment, format_bytes, format_table, write_csv
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, copies, random_tensors, total

TOTAL_STEPS = 1000
MEASURED_STEPS = 3
PARAM_SHARE, PER_SELECTED = 0.01, 40  # extra memory: at most this share of the parameters' bytes + bytes per selected
STATE_PER_SELECTED, STATE_PER_TENSOR, STATE_PER_TILE = 24, 32, 8  # bytes; a tile is 4,096 scalars of a parameter
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


@dataclass(frozen=True)
class Case:
    """An optimizer, where in its run it is measured, and whether its first steps are left out as a warm-up."""

    name: str
    dtype: torch.dtype
    budget: int
    make: Callable[[Sequence[Tensor], int], Optimizer]
    warmups: int = 2


def _increment(done: int) -> Callable[[Sequence[Tensor], int], Optimizer]:
    return lambda params, budget: rivals.at_step(params, budget, TOTAL_STEPS, done)


def _fused(params: Sequence[Tensor], _: int) -> Optimizer:
    return torch.optim.AdamW(params, lr=rivals.LR, fused=True)


def _toolkit(params: Sequence[Tensor], budget: int) -> Optimizer:
    return rivals.toolkit(params, budget, TOTAL_STEPS)


F32, BF16 = torch.float32, torch.bfloat16
LAST = TOTAL_STEPS - MEASURED_STEPS - 1
CASES = (
    Case("ours, early", F32, 320_000, _increment(TOTAL_STEPS // 10)),
    Case("ours, middle", F32, 320_000, _increment(TOTAL_STEPS // 2)),
    Case("ours, last", F32, 320_000, _increment(LAST)),
    Case("ours, static, first step", F32, 320_000, rivals.all_selected, warmups=0),
    Case("ours, last", F32, 1_000_000, _increment(LAST)),
    Case("ours, last", BF16, 320_000, _increment(LAST)),
    Case("ours, static, first step", BF16, 320_000, rivals.all_selected, warmups=0),
    Case("AdamW fused", F32, 320_000, _fused),
    Case("selective-optimizers", F32, 320_000, _toolkit),
)


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status, such as VmRSS or VmHWM."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def settle() -> int:
    """Returns freed memory to the system and sets the peak back; the resident bytes then."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return resident("VmRSS")


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that the optimizer holds for its parameters, masks of selective-optimizers included."""
    if isinstance(optimizer, SelectiveAdamW):
        return optimizer.state_nbytes()
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    for group in optimizer.param_groups:
        tensors.extend(group.get("chosen_masks", ()))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def warm_threads() -> None:
    """Starts the thread pools, whose stacks are no memory of a step."""
    torch.ones(1 << 20).sum()
    tiny = torch.ones(1 << 16, requires_grad=True)
    tiny.grad = torch.ones(1 << 16)
    rivals.all_selected([tiny], 1).step()


def measure(case: Case) -> dict[str, int]:
    """Extra bytes of the worst of the measured steps; state, held bytes and selected scalars after the last."""
    shapes = MODELS["bert-base"]
    params = copies(random_tensors(shapes, PARAM_STD, case.dtype, seed=0))
    grads = random_tensors(shapes, GRAD_STD, case.dtype, seed=1)
    warm_threads()
    settle()
    first = resident("RssAnon")
    optimizer = case.make(params, case.budget)
    extra = 0
    for number in range(case.warmups + (MEASURED_STEPS if case.warmups else 1)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        held = state_bytes(optimizer)
        before = settle()
        optimizer.step()
        peak = resident("VmHWM")
        if number >= case.warmups:
            extra = max(extra, peak - before - (state_bytes(optimizer) - held))
    selected = optimizer.num_selected if isinstance(optimizer, SelectiveAdamW) else 0
    settle()
    return {
        "extra": extra,
        "state": state_bytes(optimizer),
        "held": resident("RssAnon") - first,
        "selected": selected,
    }


def measure_apart(number: int) -> dict[str, int]:
    """`measure` in a new process."""
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.memory", "--case", str(number)),
        cwd=ROOT,
        env={**os.environ, **RETURN_FREED_MEMORY},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, int] = json.loads(done.stdout)
    return result


def row_of(case: Case, measured: dict[str, int]) -> dict[str, object]:
    """One CSV row; bytes."""
    scalars, selected = total(MODELS["bert-base"]), measured["selected"]
    ours = selected > 0
    limit = int(PARAM_SHARE * scalars * case.dtype.itemsize + PER_SELECTED * selected)
    tables = STATE_PER_TENSOR * len(MODELS["bert-base"]) + STATE_PER_TILE * scalars // 4096
    state_limit = STATE_PER_SELECTED * selected + tables
    return {
        "model": "bert-base",
        "scalars": scalars,
        "dtype": str(case.dtype).removeprefix("torch."),
        "budget": case.budget,
        "what": case.name,
        "selected": selected if ours else "",
        "extra_bytes": measured["extra"],
        "extra_limit_bytes": limit if ours else "",
        "state_bytes": measured["state"],
        "state_limit_bytes": state_limit if ours else "",
        "state_bytes_per_selected": f"{measured['state'] / selected:.3f}" if ours else "",
        "held_bytes": measured["held"],
        "within_limits": measured["extra"] <= limit and measured["state"] <= state_limit if ours else "",
    }


def screen(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table."""

    def size(row: dict[str, object], column: str) -> str:
        return format_bytes(float(str(row[column]))) if row[column] != "" else ""

    header = ("", "dtype", "budget", "selected", "extra", "limit", "state", "limit", "per selected", "held", "within")
    lines = [
        (
            str(row["what"]),
            str(row["dtype"]),
            f"{row['budget']:,}",
            f"{row['selected']:,}" if row["selected"] else "",
            size(row, "extra_bytes"),
            size(row, "extra_limit_bytes"),
            size(row, "state_bytes"),
            size(row, "state_limit_bytes"),
            f"{row['state_bytes_per_selected']} B" if row["selected"] else "",
            size(row, "held_bytes"),
            {"True": "yes", "False": "NO"}.get(str(row["within_limits"]), ""),
        )
        for row in rows
    ]
    return format_table(header, lines)


def main() -> int:
    """Exit code 0; a missed limit is reported, it is not an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--csv", type=Path, default=RESULTS / "memory.csv")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="measure one case here and print JSON")
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case])))
        return 0
    if not os.access("/proc/self/clear_refs", os.W_OK):
        print("The peak cannot be measured here: /proc/self/clear_refs is not writable (Linux only)", file=sys.stderr)
        return 2
    stamp = environment()
    print(describe(stamp), flush=True)
    rows = [row_of(case, measure_apart(number)) for number, case in enumerate(CASES)]
    print(screen(rows))
    write_csv(options.csv, [{**row, **stamp} for row in rows])
    print(f"\nwritten: {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
