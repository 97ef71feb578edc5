"""Times a whole `optimizer.step()` on the shapes of a real encoder: `python -m benchmarks.step` (`make bench`).

Random parameters and gradients (two sets of gradients take turns), AdamW, ID3 with exp 2 and eps 1, 1,000 steps. Ours
is timed at three points of the run: after 10 % of the steps, after 50 %, and in the last ones, each step selecting its
share, and in a step that selects nothing. Everything is timed in one process, in turn; first the result is checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import gate, rivals
from benchmarks.harness import Contender, Timing, interleave, read_probe
from benchmarks.report import RESULTS, describe, environment, format_table, write_csv
from benchmarks.shapes import GRAD_STD, MODELS, PARAM_STD, random_tensors, total

TOTAL_STEPS = 1000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARMUPS = 2  # the first step gets an optimizer to its place in the run, the second one is an ordinary step
READ, FUSED, FOREACH, TOOLKIT = "read", "AdamW fused", "AdamW foreach", "selective-optimizers"
IDLE = "no selection"
# Largest ratio of a selecting step to the read, by (dtype, budget), on bert-base.
READ_TARGETS = {("float32", 320_000): 1.2, ("bfloat16", 320_000): 1.4, ("float32", 1_000_000): 1.5}
# Least speed-up over a rival, by (dtype, budget).
SPEEDUP_TARGETS = {("float32", 320_000): {FUSED: 2.0, TOOLKIT: 90.0}}


@dataclass(frozen=True)
class Case:
    """One combination to measure."""

    model: str
    dtype: str
    budget: int
    rounds: int
    toolkit_rounds: int

    @property
    def title(self) -> str:
        """For screens."""
        scalars = total(MODELS[self.model])
        return f"{self.model} ({scalars:,} scalars), {self.dtype}, budget {self.budget:,}"


def measure(case: Case) -> dict[str, Timing]:
    """Checks, then times.

    Raises:
        gate.Mismatch: the kernels do not agree with the reference.
    """
    shapes, dtype = MODELS[case.model], DTYPES[case.dtype]
    base = random_tensors(shapes, PARAM_STD, dtype, seed=0)
    grads = [random_tensors(shapes, GRAD_STD, dtype, seed=seed) for seed in (1, 2)]
    checked = gate.check(base, grads, case.budget, TOTAL_STEPS)
    print(f"checked: the same {checked:,} scalars as the reference, equal values", flush=True)
    contenders: list[Contender] = [read_probe(base, grads, READ)]
    for phase in rivals.PHASES:
        begin = phase.begin(TOTAL_STEPS, case.rounds + WARMUPS - 1)
        make = partial(rivals.at_step, budget=case.budget, total_steps=TOTAL_STEPS, done=begin)
        contenders.append(rivals.contender(phase.name, base, grads, make))
    contenders.append(rivals.contender(IDLE, base, grads, lambda p: rivals.all_selected(p, case.budget)))
    contenders.append(rivals.contender(FUSED, base, grads, lambda p: torch.optim.AdamW(p, lr=rivals.LR, fused=True)))
    contenders.append(
        rivals.contender(FOREACH, base, grads, lambda p: torch.optim.AdamW(p, lr=rivals.LR, foreach=True))
    )
    if case.toolkit_rounds:
        contenders.append(rivals.toolkit_contender(TOOLKIT, base, grads, case.budget, TOTAL_STEPS, case.toolkit_rounds))
    with tqdm(total=case.rounds + WARMUPS, unit="round", leave=False) as bar:
        return interleave(contenders, case.rounds, WARMUPS, bar.update)


def rows_of(case: Case, timings: Mapping[str, Timing], stamp: Mapping[str, str]) -> list[dict[str, object]]:
    """CSV rows; times in milliseconds, ratios are medians of ratios taken within a round."""
    scalars, item = total(MODELS[case.model]), DTYPES[case.dtype].itemsize
    rows = []
    for name, timing in timings.items():
        ours = name in (IDLE, *(phase.name for phase in rivals.PHASES))
        row: dict[str, object] = {
            "model": case.model,
            "scalars": scalars,
            "tensors": len(MODELS[case.model]),
            "dtype": case.dtype,
            "budget": case.budget,
            "total_steps": TOTAL_STEPS,
            "what": f"ours, {name}" if ours else name,
            "rounds": len(timing.seconds),
            "ms_median": f"{1e3 * timing.median:.3f}",
            "ms_min": f"{1e3 * timing.low:.3f}",
            "ms_max": f"{1e3 * timing.high:.3f}",
            "ratio_to_read": f"{timing.ratio(timings[READ]):.3f}",
            "gb_per_s": f"{2 * scalars * item / timing.median / 1e9:.2f}",
        }
        for rival in (FUSED, FOREACH, TOOLKIT):
            known = ours and rival in timings
            row[f"speedup_over_{rival.lower().replace(' ', '_')}"] = (
                f"{timings[rival].ratio(timing):.2f}" if known else ""
            )
        rows.append({**row, **stamp})
    return rows


def screen(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows of one case as a table. Bandwidth counts parameters and gradients once, whatever else is touched."""
    header = ("", "ms", "min - max", "x read", "GB/s", "% of read", "x fused", "x foreach", "x toolkit")
    lines = []
    for row in rows:
        share = 100 / float(str(row["ratio_to_read"]))
        speedups = [str(value) for key, value in row.items() if key.startswith("speedup_")]
        lines.append(
            [
                str(row["what"]),
                f"{float(str(row['ms_median'])):.2f}",
                f"{float(str(row['ms_min'])):.2f} - {float(str(row['ms_max'])):.2f}",
                str(row["ratio_to_read"]),
                str(row["gb_per_s"]) if row["what"] != f"ours, {IDLE}" else "",
                f"{share:.0f}" if row["what"] != f"ours, {IDLE}" else "",
                *speedups,
            ]
        )
    return format_table(header, lines)


def verdicts(case: Case, timings: Mapping[str, Timing]) -> list[str]:
    """One line per target of the case and phase: measured, wanted, met or not."""
    if case.model != "bert-base":
        return []
    key, lines = (case.dtype, case.budget), []
    for phase in (phase.name for phase in rivals.PHASES):
        if key in READ_TARGETS:
            ratio, limit = timings[phase].ratio(timings[READ]), READ_TARGETS[key]
            lines.append(f"{phase}: {ratio:.2f} x read, target <= {limit}: {_met(ratio <= limit)}")
        for rival, least in SPEEDUP_TARGETS.get(key, {}).items():
            if rival in timings:
                speedup = timings[rival].ratio(timings[phase])
                met = _met(speedup >= least)
                lines.append(f"{phase}: {speedup:.1f} x faster than {rival}, target >= {least}: {met}")
    return lines


def _met(good: bool) -> str:
    return "met" if good else "NOT MET"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", choices=("full", "small"), default="full", help="small: MiniLM, few rounds")
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append", help="default: all")
    parser.add_argument("--budget", type=int, action="append", help="default: 320000 and 1000000; small: 113000")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--repeats", type=int, help="timed rounds, default 25; small: 7")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/step.csv; small: none")
    parser.add_argument("--no-toolkit", action="store_true", help="leave selective-optimizers out (seconds per step)")
    return parser.parse_args(given)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The combinations asked for; selective-optimizers is timed in float32 at the first budget only."""
    small = options.preset == "small"
    model = "minilm-l6" if small else "bert-base"
    budgets = options.budget or ([113_000] if small else [320_000, 1_000_000])
    rounds = options.repeats or (7 if small else 25)
    cases = []
    for dtype in options.dtype or DTYPES:
        for budget in budgets:
            with_toolkit = dtype == "float32" and budget == budgets[0] and not options.no_toolkit
            cases.append(Case(model, dtype, budget, rounds, min(5, rounds) if with_toolkit else 0))
    return cases


def main() -> int:
    """Exit code: 0, or 1 if the result is wrong. A missed target is reported, it is not an error."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    stamp = environment()
    print(describe(stamp))
    rows: list[dict[str, object]] = []
    summary: list[str] = []
    for case in cases_of(options):
        print(f"\n{case.title}", flush=True)
        try:
            timings = measure(case)
        except gate.Mismatch as error:
            print(f"WRONG RESULT, nothing is timed: {error}", file=sys.stderr)
            return 1
        mine = rows_of(case, timings, stamp)
        rows.extend(mine)
        print(screen(mine))
        summary.extend(f"{case.dtype}, {case.budget:,}, {line}" for line in verdicts(case, timings))
    if summary:
        print("\nTargets\n" + "\n".join(summary))
    path = options.csv or (None if options.preset == "small" else RESULTS / "step.csv")
    if path is not None:
        write_csv(path, rows)
        print(f"\nwritten: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
