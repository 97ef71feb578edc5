"""Times a whole `optimizer.step()` on the shapes of real models: `python -m benchmarks step`.

Random parameters and gradients (two sets of gradients take turns), AdamW, ID3 with exp 2 and eps 1, 1,000 steps, a
budget of 0.3 % of the scalars. Ours is timed at three points of the run: after 10 % of the steps, after 50 %, and in
the last ones, each step selecting its share, and in a step that selects nothing. Everything is timed in one process, in
turn; first the results are checked. Rivals: torch's fused and foreach AdamW on everything; dense masking in the obvious
way, at its best, and compiled (the compiler's seconds do not count); and selective-optimizers, the authors' toolkit.

On a GPU this is `benchmarks.gpu_step`, with the larger models, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import gpu_step, pictures, step_rows
from benchmarks.bars import format_bars
from benchmarks.report import describe, environment
from benchmarks.room import available_bytes, lack
from benchmarks.shapes import MODELS
from benchmarks.step_cases import (
    DTYPES,
    FULL,
    IN_16_BITS,
    OURS,
    READ,
    RIVALS,
    SMALL,
    TOOLKIT,
    Case,
    budgets_of,
    case_of,
)
from benchmarks.step_measure import Measured, check_maskings, measure
from benchmarks.suites import CannotRun

LINE = "a whole optimizer step on the shapes of real models, against dense AdamW, dense masking and the toolkit"
ROUNDS = {"small": 7, "full": 20}
ROOM = 15  # times the parameters' bytes: what those who sit together hold at most


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only this suite has."""
    parser.add_argument("--budget", type=int, nargs="+", help="scalars; default: 0.3 %% of a model's")
    parser.add_argument("--no-toolkit", action="store_true", help="leave selective-optimizers out (seconds per step)")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile for the compiled rival")


def _usual_dtypes(model: str) -> tuple[str, ...]:
    return ("float32", "bfloat16") if model in IN_16_BITS else ("float32",)


def cases_of(options: argparse.Namespace, unavailable: Mapping[str, str]) -> list[Case]:
    """The combinations asked for; slow rivals take part at a model's first budget.

    Args:
        options: of the command line.
        unavailable: dtype -> why compiled masking cannot be timed, "" if it can.

    Raises:
        CannotRun: there is no such model, or a budget is out of range.
    """
    small = options.preset == "small"
    models = options.models or (SMALL if small else FULL)
    if unknown := [model for model in models if model not in MODELS]:
        raise CannotRun(f"--models: expected some of {', '.join(MODELS)}, got {', '.join(unknown)}")
    cases = []
    for model in models:
        for dtype in unavailable:
            if dtype not in (options.dtype or _usual_dtypes(model)):
                continue
            budgets = options.budget or budgets_of(model)[: 1 if small else None]
            for number, budget in enumerate(budgets):
                rounds = options.rounds or ROUNDS[options.preset]
                case = case_of(model, dtype, budget, rounds, unavailable[dtype], with_slow=number == 0)
                if not 1 <= budget <= case.scalars:
                    raise CannotRun(f"--budget: expected 1 to {case.scalars} scalars of {model}, got {budget}")
                if options.no_toolkit:
                    case = case.without(TOOLKIT, "left out: --no-toolkit")
                cases.append(case)
    return cases


def run(options: argparse.Namespace) -> list[dict[str, object]]:
    """Checks, measures, prints tables and bars; rows as in `step_rows.rows_of`, on a GPU as in `gpu_rows.rows_of`.

    Raises:
        gate.Mismatch: a result is wrong.
        CannotRun: an option does not fit.
    """
    if options.device == "cuda":
        return gpu_step.run_suite(options)
    stamp = environment()
    print(describe(stamp))
    dtypes = options.dtype or (["float32"] if options.preset == "small" else ["float32", "bfloat16"])
    cases_of(options, dict.fromkeys(dtypes, ""))  # what is asked for, before a compiler takes its time
    checked = {dtype: check_maskings(dtype, options.compiler) for dtype in dtypes}
    for dtype, (unavailable, note) in checked.items():
        print(f"{dtype}: the dense rivals select and compute the same; compiled masking: {unavailable or note}")
    rows: list[dict[str, object]] = []
    for case in cases_of(options, {dtype: unavailable for dtype, (unavailable, _) in checked.items()}):
        print(f"\n{case.title}", flush=True)
        found = _measured(case, checked[case.dtype][1])
        mine = step_rows.rows_of(case, found, stamp)
        print(step_rows.screen(mine), flush=True)
        rows.extend(mine)
    print(f"\n{format_bars(step_rows.bars(rows))}")
    return rows


def _measured(case: Case, compiler_note: str) -> Measured:
    needs = ROOM * case.scalars * DTYPES[case.dtype].itemsize
    if why := lack(needs, available_bytes()):
        return Measured(notes=dict.fromkeys((READ, *OURS, *RIVALS), why))
    return measure(case, compiler_note)


def _speedups(row: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    names = {step_rows.column(rival): rival for rival in RIVALS}
    for key, value in row.items():
        if key.startswith("speedup_over_") and value:
            yield names.get(key, key.removeprefix("speedup_over_").replace("_", " ")), float(value)


def plot(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Speed-up of a step in the middle of a run over each rival, by model; a panel per dtype."""
    middle = [row for row in rows if row.get("what") == "ours, middle" or row.get("step") == "middle"]
    first: dict[tuple[str, str], dict[str, float]] = {}
    for row in middle:
        if found := dict(_speedups(row)):
            first.setdefault((row["dtype"], row["model"]), found)
    dtypes = list(dict.fromkeys(dtype for dtype, _ in first))
    if not dtypes:
        return
    panels = {dtype: {model: bars for (of, model), bars in first.items() if of == dtype} for dtype in dtypes}
    most = max(sum(len(bars) + 1 for bars in groups.values()) for groups in panels.values())
    title = "One optimizer step: how many times faster ours is"
    figure = pictures.new_figure(title, rows, len(dtypes), width=6.0 * len(dtypes), height=1.6 + 0.2 * most)
    colors = {rival: pictures.RIVALS[i % len(pictures.RIVALS)] for i, rival in enumerate(RIVALS)}
    for axes, (dtype, groups) in zip(figure.axes, panels.items(), strict=True):
        pictures.set_title(axes, f"{dtype}, a selecting step in the middle of a run")
        pictures.bars(axes, groups, pictures.times, log=True, limit=1.0, colors=colors)
    pictures.save(figure, path)
