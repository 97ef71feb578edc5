"""Times a whole `optimizer.step()` on a GPU: `python -m benchmarks.gpu_step` (`make gpu-check` runs it, too).

Random parameters and gradients of real shapes, AdamW, ID3 with exp 2 and eps 1, uniform schedule over 1,000 steps.
Ours is timed at three points of the run, each step selecting its share, and with its budget spent. First a small
problem on the same device must give what the PyTorch reference gives. Then all take turns in one process, on the same
parameters and gradients, with a flushed cache; what a step must read is compared with the bandwidth measured before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import bandwidth, gate, gpu_parts, rivals
from benchmarks.bandwidth import Bandwidth
from benchmarks.device import Clock, free_bytes, gpu_environment
from benchmarks.gpu_cases import DTYPES, OURS, SHAPES, SPENT, Case, Entry, parse_budget
from benchmarks.gpu_measure import WARMUPS, Measured, check, measure
from benchmarks.gpu_rows import Row, rows_of, screen, verdicts
from benchmarks.report import RESULTS, describe, environment, write_csv
from benchmarks.shapes import MODELS, total
from benchmarks.suites import CannotRun
from selective_kernels import dispatch

STEPS = (*(phase.name for phase in rivals.PHASES), SPENT)
LEAST_ROOM = 2.2  # times the parameters' bytes: parameters, gradients, and what ours needs


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cpu: to try this program")
    parser.add_argument("--backend", choices=("auto", *dispatch.BACKENDS), default="auto", help="of ours")
    parser.add_argument(
        "--shapes", type=_names(SHAPES), default=["deberta", "minilm", "qwen7b", "qwen1.5b"], help=_list(SHAPES)
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), action="append", help="default: the shapes' usual one")
    parser.add_argument("--budgets", type=_names(()), default=["320000", "1000000", "0.1%"], help="scalars, or shares")
    parser.add_argument("--steps", type=_names(STEPS), default=list(STEPS), help=_list(STEPS))
    parser.add_argument("--rounds", type=int, default=20, help="timed behind other work of the device")
    parser.add_argument("--alone", type=int, default=5, help="timed from an idle device")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile for the compiled rival")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further shapes after that")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/gpu.csv; on a CPU: none")
    parser.add_argument("--parts", type=Path, help="default: benchmarks/results/gpu_parts.csv; on a CPU: none")
    parser.set_defaults(files=True)
    return parser.parse_args(given)


def _list(names: Collection[str]) -> str:
    return "comma-separated: " + ", ".join(names)


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if known and name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected names of {list(known)}, got {unknown}")
        return names

    return parse


def others_beside(backend: str, device: torch.device) -> tuple[str, ...]:
    """Further backends with kernels for a device's tensors; says of the others why they take no part."""
    found = []
    for other in dispatch.ON_GPUS:
        reason = dispatch.unavailable(other, device)
        if other != backend and not reason:
            found.append(other)
        elif other != backend:
            print(f"backend {other} takes no part: {reason}", flush=True)
    return tuple(found)


def cases_of(options: argparse.Namespace, backend: str) -> list[Case]:
    """What to measure on each model's shapes; where "auto" is asked for, ours on all backends for GPUs.

    Raises:
        ValueError: a budget is out of range.
    """
    cases = []
    others = others_beside(backend, options.device) if options.backend == "auto" and backend in dispatch.ON_GPUS else ()
    for name in options.shapes:
        model, usual = SHAPES[name]
        scalars = total(MODELS[model])
        budgets = tuple(dict.fromkeys(parse_budget(each, scalars) for each in options.budgets))
        measured = WARMUPS + options.rounds + options.alone + gpu_parts.STEPS
        for dtype in [DTYPES[each] for each in options.dtype or ()] or [usual]:
            cases.append(Case(model, dtype, budgets, tuple(options.steps), backend, measured, options.compiler, others))
    return cases


class Report:
    """What has been measured so far, in files that are replaced after each case.

    Args:
        options: of the command line.
        speed: of the device.
        stamp: for each row.
    """

    def __init__(self, options: argparse.Namespace, speed: Bandwidth, stamp: Mapping[str, str]) -> None:
        usual = options.device.type == "cuda" and options.files
        self._paths = (
            options.csv or (RESULTS / "gpu.csv" if usual else None),
            options.parts or (RESULTS / "gpu_parts.csv" if usual else None),
        )
        self._speed, self._stamp = speed, stamp
        self.rows: list[Row] = []
        self.parts: list[Row] = []

    def leave_out(self, case: Case, why: str) -> None:
        """A row that says why a case was not measured."""
        entry = Entry(OURS, 0, "", 0, None)
        self.add(case, [entry], Measured(notes={entry.name: f"left out: {why}"}))

    def add(self, case: Case, everybody: Sequence[Entry], found: Measured) -> None:
        """Rows of a case."""
        mine = rows_of(case, everybody, found, self._speed, self._stamp)
        self.rows.extend(mine)
        print(screen(mine), flush=True)
        self.write()

    def add_parts(self, case: Case, entry: Entry, rows: Sequence[Row]) -> None:
        """Parts of a step."""
        title: Row = {"model": case.model, "budget": entry.budget, "step": entry.step}
        self.parts.extend({**title, **row, **self._stamp} for row in rows)
        print(f"\nOne step, {entry.step}, budget {entry.budget:,}\n{gpu_parts.screen(rows)}", flush=True)
        self.write()

    def write(self) -> None:
        """Replaces the files."""
        for path, rows in zip(self._paths, (self.rows, self.parts), strict=True):
            if path is not None and rows:
                write_csv(path, rows)


def run_case(case: Case, clock: Clock, options: argparse.Namespace, report: Report) -> None:
    """Checks, times, and looks into the parts of a step of ours at the first budget.

    Raises:
        gate.Mismatch: a result is wrong.
    """
    checked = check(case, clock.device)
    print(f"checked on {checked:,} scalars: the same selection as the reference, equal values", flush=True)
    if free_bytes(clock.device) < LEAST_ROOM * case.nbytes:
        report.leave_out(case, f"needs {LEAST_ROOM * case.nbytes / 1e9:.0f} GB of the device's memory")
        return
    found, everybody, made = measure(case, clock, options.rounds, options.alone)
    report.add(case, everybody, found)
    for one in made:
        if one.entry.method == OURS and one.entry.budget == case.budgets[0]:
            report.add_parts(case, one.entry, gpu_parts.parts(one, clock))


def measure_all(options: argparse.Namespace) -> list[Row]:
    """Measures what is asked for and prints it; rows as in `gpu_rows.rows_of`.

    Raises:
        gate.Mismatch: a result is wrong.
        CannotRun: there is nothing to measure with, or an option is wrong.
    """
    began, device = time.monotonic(), options.device
    try:
        backend = dispatch.resolve(device, options.backend)
        cases = cases_of(options, backend)
    except (RuntimeError, ValueError) as error:
        raise CannotRun(str(error)) from error
    if backend == "reference" != options.backend:
        raise CannotRun(f"no kernels for {device} here, nothing is timed:\n{dispatch.available()}")
    stamp = {**environment(), **gpu_environment(device)}
    print(f"{stamp['gpu'] or 'no GPU'}, triton {stamp['triton']}, backend {backend}; {describe(stamp)}", flush=True)
    clock = Clock(device)
    speed = bandwidth.measure(clock)
    clock.forget()
    print(f"read {speed.read / 1e9:.0f} GB/s ({speed.reader}), copy {speed.copy / 1e9:.0f} GB/s", flush=True)
    report = Report(options, speed, stamp)
    for case in cases:
        print(f"\n{case.title}", flush=True)
        if time.monotonic() - began > options.seconds:
            report.leave_out(case, "no time left")
            continue
        run_case(case, clock, options, report)
        clock.forget()
    if lines := verdicts(report.rows):
        print("\nTargets\n" + "\n".join(lines))
    missed = sum(line.endswith("NOT MET") for line in lines)
    print(f"\n{len(report.rows)} rows, {len(lines) - missed} of {len(lines)} targets met")
    return report.rows


def run_suite(options: argparse.Namespace) -> list[Row]:
    """The step suite on a GPU, from its own options; no other file is written than those of the suite.

    Raises:
        gate.Mismatch: a result is wrong.
        CannotRun: a model is unknown, or as in `measure_all`.
    """
    small = options.preset == "small"
    short = {model: name for name, (model, _) in SHAPES.items()}
    models = options.models or (["minilm-l6"] if small else [model for model in short if model != "tiny"])
    if unknown := [model for model in models if model not in short]:
        raise CannotRun(f"--models: expected some of {', '.join(short)}, got {', '.join(unknown)}")
    given = arguments(["--device", options.device, "--compiler", options.compiler])
    given.shapes, given.dtype = [short[model] for model in models], options.dtype
    given.budgets = [str(budget) for budget in options.budget or ()] or ["0.3%"]
    given.rounds = options.rounds or (7 if small else given.rounds)
    given.csv = given.parts = None
    given.files = False
    return measure_all(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 if a result is wrong; 2 if there is nothing to measure. A missed target is no error."""
    options = arguments(given)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA GPU here", file=sys.stderr)
        return 2
    try:
        measure_all(options)
    except gate.Mismatch as error:
        print(f"WRONG RESULT, nothing is timed: {error}", file=sys.stderr)
        return 1
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
