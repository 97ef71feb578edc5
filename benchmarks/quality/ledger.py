"""The results so far, in a CSV file that is replaced at once after each run."""

from __future__ import annotations

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
        """A run's row; the file holds it afterwards, whatever happens then."""
        self[job] = {**job.columns(), **results}
        rows = [self[each] for each in sorted(self, key=_place)]
        write_csv(self.path, rows)


def _place(job: Job) -> tuple[str, int, float, float, float, float, int]:
    return job.data, ORDER.get(job.method, len(ORDER)), job.share, job.exp, job.eps, job.lr, job.seed
