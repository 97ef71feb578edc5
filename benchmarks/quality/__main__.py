"""Makes the runs of a preset that are still missing, then says what came out: `python -m benchmarks.quality --help`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.quality import plan, pool, report
from benchmarks.quality.jobs import Job
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.plan import PRESETS, Preset
from benchmarks.quality.running import CACHE
from benchmarks.report import environment, version
from benchmarks.reviews import MissingData

FOREVER = 1e9  # minutes


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Compares ways to fine-tune by the accuracy they reach. What is in the result file is not run "
        "again, so a comparison can be stopped at any time and goes on when it is started again.",
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="small", help="small: minutes; full: hours (default: small)"
    )
    parser.add_argument("--workers", type=_positive, default=2, help="runs side by side, a thread each (default: 2)")
    parser.add_argument("--minutes", type=float, default=FOREVER, help="begin no run after so many minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--csv", type=Path, help="result file; default: build/quality/small.csv, results/quality.csv")
    parser.add_argument("--only", metavar="TEXT", help='only runs whose name has it, such as "reviews: ID3 0.5%%"')
    parser.add_argument("--again", action="store_true", help="make the runs of --only once more, and compare")
    parser.add_argument("--report", action="store_true", help="make no runs, only say what came out so far")
    options = parser.parse_args(given)
    if options.again and not options.only:
        parser.error("--again: expected --only beside it, or a whole comparison would be made once more")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return value


def result_file(options: argparse.Namespace) -> Path:
    """Where results are kept."""
    if options.csv:
        return Path(options.csv)
    return RESULTS / "quality.csv" if options.preset == "full" else CACHE / "small.csv"


def make(preset: Preset, ledger: Ledger, options: argparse.Namespace) -> int:
    """Makes the missing runs, or those of --only once more.

    Returns:
        How many runs that were made once more gave something else.

    Raises:
        MissingData: a package or its file is not there.
        ValueError: --only fits no run that there is or could be made now.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    until = time.monotonic() + 60 * options.minutes
    again = [job for job in ledger if options.only in str(job)] if options.again else []
    known = [*ledger, *([] if options.again else plan.pending(preset, ledger))]
    if options.only is not None and not any(options.only in str(job) for job in known):
        raise ValueError(f"--only: expected a part of a run's name, got {options.only!r}")
    different = 0

    def ready() -> list[Job]:
        if options.again:
            return again
        found = plan.pending(preset, ledger)
        return found if options.only is None else [job for job in found if options.only in str(job)]

    stamp = {**environment(), "threads": "1", "device": options.device}
    stamp |= {name: version(name) for name in ("transformers", "peft")}
    total = len(again) or plan.expected(preset, ledger)
    with tqdm(total=total, initial=0 if again else len(ledger), unit="run", smoothing=0.1) as bar:
        for job, results in pool.work_off(
            ready, lambda job: preset.tasks[job.data], options.workers, options.device, until
        ):
            if options.again:
                again.remove(job)
                before = {name: ledger[job][name] for name in ("validation", "test", "validation_loss", "test_loss")}
                same = all(results[name] == value for name, value in before.items())
                different += not same
                bar.write(f"{job}: {'the same' if same else f'expected {before}, got {results}'}")
            else:
                bar.write(f"{job}: validation {float(results['validation']):.3f}, test {float(results['test']):.3f}")
                bar.total = plan.expected(preset, ledger)
            ledger.add(job, {**results, **stamp, "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
            bar.update()
    return different


def main(given: list[str] | None = None) -> int:
    """Exit code: 0, 1 if a run made once more gave something else, or 2 after a sentence about what is missing."""
    options, different = arguments(given), 0
    try:
        ledger = Ledger(result_file(options))
        plan.check(PRESETS[options.preset], ledger, None if options.report else options.device)
        if not options.report:
            different = make(PRESETS[options.preset], ledger, options)
        print(report.table(PRESETS[options.preset], ledger) or "No method has all its runs yet.")
        print(f"{len(ledger)} of about {plan.expected(PRESETS[options.preset], ledger)} runs are in {ledger.path}")
    except (MissingData, ValueError) as error:
        print(f"python -m benchmarks.quality: {error}", file=sys.stderr)
        return 2
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
