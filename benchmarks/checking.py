"""Steps of a check, one after the other within a time limit, and the summary that they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import ROOT
from benchmarks.report import format_table, write_text

PASSED, FAILED, UNAVAILABLE, SKIPPED = "passed", "FAILED", "unavailable", "skipped"
KEPT_LINES = 400  # of a step's output


@dataclass(frozen=True)
class Result:
    """How a step ended.

    Attributes:
        outcome: PASSED, FAILED, UNAVAILABLE (cannot run here) or SKIPPED (not begun).
        note: one line for the table.
        output: for the details below it.
    """

    outcome: str
    note: str = ""
    output: str = ""


@dataclass(frozen=True)
class Step:
    """Something to check or to measure.

    Attributes:
        name: for the summary.
        seconds: at most so long.
        run: called with the seconds it may take; says how it ended.
        timing: measures, and is skipped once a check has failed.
        required: without it there is no success, even if it cannot run here.
    """

    name: str
    seconds: float
    run: Callable[[float], Result]
    timing: bool = False
    required: bool = False


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status, None if it ran out of time, and the end of its output."""

    status: int | None
    output: str

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        lines = [line.strip(" =") for line in self.output.splitlines() if line.strip(" =")]
        return lines[-1] if lines else ""


def run_command(command: Sequence[str], environment: Mapping[str, str], seconds: float, folder: Path = ROOT) -> Done:
    """Runs a command and shows its output as it comes; ends it, with all that it started, when its time is over."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=KEPT_LINES)

    def show() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(10)
    return Done(status, "".join(lines))


def judged(done: Done, seconds: float) -> Result:
    """Passed if the command said so in time."""
    if done.status is None:
        return Result(FAILED, f"ran out of its {seconds:.0f} s", done.output)
    if done.status:
        return Result(FAILED, f"exit status {done.status}: {done.last_line}", done.output)
    return Result(PASSED, done.last_line, done.output)


@dataclass
class Summary:
    """The steps so far, in a text file that is replaced after each.

    Args:
        path: of the file.
        title: its first lines.
    """

    path: Path
    title: str
    rows: list[tuple[Step, Result, float]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(result.outcome == FAILED for _, result, _ in self.rows)

    @property
    def succeeded(self) -> bool:
        """Whether nothing failed and all that is required passed."""
        missing = any(step.required and result.outcome != PASSED for step, result, _ in self.rows)
        return not self.failed and not missing

    def add(self, step: Step, result: Result, seconds: float) -> None:
        """Notes a step and writes the file."""
        self.rows.append((step, result, seconds))
        self.write("unfinished")

    def write(self, verdict: str) -> None:
        """Replaces the file."""
        write_text(self.path, self.text(verdict))

    def text(self, verdict: str) -> str:
        """A table of the steps, then the end of each one's output."""
        lines = [(step.name, result.outcome, f"{seconds:.1f}") for step, result, seconds in self.rows]
        notes = [f"{step.name}: {result.note}" for step, result, _ in self.rows if result.note]
        details = [f"--- {step.name}\n{result.output.rstrip()}" for step, result, _ in self.rows if result.output]
        table = format_table(("step", "outcome", "seconds"), lines)
        return "\n\n".join([f"{self.title}\n{verdict}", table, "\n".join(notes), *details]) + "\n"


def run_steps(steps: Sequence[Step], summary: Summary, limit: float, kept: float = 0.0) -> bool:
    """Runs the steps; True on success.

    Args:
        steps: in order. A failed one does not stop further checks, only timings.
        summary: receives the results; its file is there however this ends.
        limit: seconds for all steps together.
        kept: seconds of these that checks leave to what is timed.
    """
    began = time.monotonic()
    verdict = "GPU CHECK INTERRUPTED"
    try:
        for step in steps:
            left = limit - (time.monotonic() - began) - (0.0 if step.timing else kept)
            print(f"\n=== {step.name} (at most {min(step.seconds, max(left, 0)):.0f} s)", flush=True)
            start = time.monotonic()
            result = _result(step, summary, left)
            summary.add(step, result, time.monotonic() - start)
            print(f"=== {step.name}: {result.outcome} {result.note}", flush=True)
        verdict = "GPU CHECK PASSED" if summary.succeeded else "GPU CHECK FAILED"
    finally:
        summary.write(verdict)
    print(f"\n{verdict}; written: {summary.path}")
    return summary.succeeded


def _result(step: Step, summary: Summary, left: float) -> Result:
    if step.timing and summary.failed:
        return Result(SKIPPED, "a check failed: nothing is timed")
    if left < 1:
        return Result(FAILED if step.required else UNAVAILABLE, "no time left")
    return step.run(min(step.seconds, left))
