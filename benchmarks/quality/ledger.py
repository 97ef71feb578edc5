"""The results so far, in a CSV file that is replaced at once after each run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.methods import METHODS
from benchmarks.report import write_csv
from benchmarks.suites import read_csv

NUMBERS = ("validation", "test", "validation_loss", "test_loss")
ORDER = {name: place for place, name in enumerate((NONE, *METHODS))}


class Ledger(dict[Job, dict[str, str]]):
    """Rows by job, kept in a file.

    Args:
        path: of the CSV file; what it holds is read.

    Raises:
        ValueError: the file has no such rows.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        for number, row in enumerate(read_csv(path) if path.exists() else [], 2):
            try:
                if None in row or None in row.values():
                    raise ValueError("as many cells as columns")
                for name in NUMBERS:
                    float(row[name])
                self[Job.of(row)] = row
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: expected a row of this benchmark ({error!r})") from error

    def add(self, job: Job, results: dict[str, str]) -> None:
        """A run's row; the file holds it afterwards, whatever happens then, and what others have added meanwhile."""
        with _alone(self.path.parent):
            for other, row in Ledger(self.path).items():
                self.setdefault(other, row)
            self[job] = {**job.columns(), **results}
            write_csv(self.path, [self[each] for each in sorted(self, key=_place)])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process is within one for the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _place(job: Job) -> tuple[str, int, float, float, float, float, int]:
    return job.data, ORDER.get(job.method, len(ORDER)), job.share, job.exp, job.eps, job.lr, job.seed
