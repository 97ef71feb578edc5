"""The memory of an optimizer's step beyond what is held between steps; a part of the suite `memory`.

Each case runs in a process of its own (`apart`), on BERT-base shapes. The peak is Linux's own record (VmHWM), set back
just before a step; what was resident before and the growth of the optimizer state are subtracted. "Held" is by how much
anonymous resident memory (RssAnon) has grown since the optimizer was made, state and reserves together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from selective_peft import SelectiveAdamW
from torch import Tensor
from torch.optim import Optimizer

from benchmarks import rivals
from benchmarks.report import format_bytes, format_table
from benchmarks.resident import resident, settle, state_bytes, warm_threads
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, copies, random_tensors, total

TOTAL_STEPS = 1000
MEASURED_STEPS = 3
PARAM_SHARE, PER_SELECTED = 0.01, 40  # extra memory: at most this share of the parameters' bytes + bytes per selected
STATE_PER_SELECTED, STATE_PER_TENSOR, STATE_PER_TILE = 24, 32, 8  # bytes; a tile is 4,096 scalars of a parameter


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
    return torch.optim.AdamW(params, lr=rivals.LR, weight_decay=0.0, fused=True)


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


def prepare() -> None:
    """All that is needed is imported with this module."""


def measured(number: int, model: str, threads: int) -> dict[str, int]:
    """Extra bytes of the worst of the measured steps; state, held bytes and selected scalars after the last.

    Args:
        number: of the case.
        model: a name of MODELS, whose shapes are taken.
        threads: of torch and the kernels.
    """
    torch.set_num_threads(threads)
    case, shapes = CASES[number], MODELS[model]
    params = copies(random_tensors(shapes, PARAM_STD, case.dtype, seed=0))
    grads = random_tensors(shapes, GRAD_STD, case.dtype, seed=1)
    warm_threads()
    settle()
    first = resident("RssAnon")
    optimizer = case.make(params, case.budget)
    extra = 0
    for step in range(case.warmups + (MEASURED_STEPS if case.warmups else 1)):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        held = state_bytes(optimizer)
        before = settle()
        optimizer.step()
        peak = resident("VmHWM")
        if step >= case.warmups:
            extra = max(extra, peak - before - (state_bytes(optimizer) - held))
    selected = optimizer.num_selected if isinstance(optimizer, SelectiveAdamW) else 0
    settle()
    return {
        "extra": extra,
        "state": state_bytes(optimizer),
        "held": resident("RssAnon") - first,
        "selected": selected,
    }


def row_of(case: Case, model: str, found: Mapping[str, int]) -> dict[str, object]:
    """One CSV row; bytes.

    Args:
        case: what was measured.
        model: on the shapes of which.
        found: what `measured` returned.
    """
    scalars, selected = total(MODELS[model]), found["selected"]
    ours = selected > 0
    limit = int(PARAM_SHARE * scalars * case.dtype.itemsize + PER_SELECTED * selected)
    tables = STATE_PER_TENSOR * len(MODELS[model]) + STATE_PER_TILE * scalars // 4096
    state_limit = STATE_PER_SELECTED * selected + tables
    return {
        "model": model,
        "scalars": scalars,
        "dtype": str(case.dtype).removeprefix("torch."),
        "budget": case.budget,
        "what": case.name,
        "selected": selected if ours else "",
        "extra_bytes": found["extra"],
        "extra_limit_bytes": limit if ours else "",
        "state_bytes": found["state"],
        "state_limit_bytes": state_limit if ours else "",
        "state_bytes_per_selected": f"{found['state'] / selected:.3f}" if ours else "",
        "held_bytes": found["held"],
        "within_limits": found["extra"] <= limit and found["state"] <= state_limit if ours else "",
    }


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a table."""

    def size(row: Mapping[str, object], column: str) -> str:
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
