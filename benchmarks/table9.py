"""The paper's Table 9 (DeBERTa-v3 on a GPU) and the same columns measured here, all relative to full fine-tuning.

"Paper" is what the table says; "authors' code" is selective-optimizers 0.4, run here; "here" is this package.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import RESULTS, suites
from benchmarks.finetuning import BITFIT, FULL, OURS, OURS_RARELY, PAFI, TOOLKIT
from benchmarks.report import format_table

Row = Mapping[str, object]
HEADER = (
    "", "whole step: paper", "authors' code", "here", "peak memory: paper", "authors' code", "here",
    "mask init: paper", "authors' code", "here", "mask update: paper", "authors' code", "here",
)  # fmt: skip


@dataclass(frozen=True)
class Printed:
    """A line of the paper's table: gigabytes of peak memory; seconds of mask init, mask update and a whole step."""

    memory: float
    init: float
    update: float
    step: float


PAPER = {
    "full fine-tuning": Printed(10.10, 0.0, 0.0, 0.23),
    "BitFit": Printed(10.29, 0.05, 0.0, 0.24),
    "PaFi": Printed(10.29, 4.58, 0.0, 0.24),
    "ID3": Printed(12.92, 2.30, 0.10, 0.33),
}
WHOLE = "full fine-tuning"
LINES = {  # line: (line of the paper, the authors' method, ours)
    WHOLE: (WHOLE, FULL, FULL),
    "BitFit": ("BitFit", None, BITFIT),
    "PaFi": ("PaFi", None, PAFI),
    "ID3": ("ID3", TOOLKIT, OURS),
    "ID3, select_every=15": (None, None, OURS_RARELY),
}


def add_option(parser: argparse.ArgumentParser, other: str) -> None:
    """`--with PATH`: rows of the suite that measures the other half of the table."""
    parser.add_argument(
        "--with",
        dest="other_rows",
        type=Path,
        metavar="PATH",
        help=f"CSV of {other}, for the paper's Table 9; default: the one in benchmarks/results; small: none",
    )


def other(options: argparse.Namespace, suite: str) -> list[dict[str, str]]:
    """Rows of the other suite; none if there is no file of them.

    Raises:
        CannotRun: a file was named that is not there.
    """
    device = "" if options.device == "cpu" else f"-{options.device}"
    given: Path | None = options.other_rows
    path = given or (None if options.preset == "small" else RESULTS / f"{suite}{device}.csv")
    if path is None or (given is None and not path.exists()):
        return []
    if not path.exists():
        raise suites.CannotRun(f"--with: expected a CSV file, got {path}, which is not there")
    return suites.read_csv(path)


def lines(times: Sequence[Row], peaks: Sequence[Row]) -> list[list[str]]:
    """The table's lines, below HEADER; a cell is empty where nothing was measured.

    Memory is divided by the peak of full fine-tuning, all times by its whole step: the paper's numbers by the paper's,
    those measured here by those measured here.

    Args:
        times: rows of `end2end` of one model, dtype and device.
        peaks: rows of `memory` of the same.
    """
    found, sizes = {str(row["method"]): row for row in times}, {str(row["what"]): row for row in peaks}

    def here(name: str | None, column: str) -> str:
        row, whole = found.get(name or ""), found.get(FULL)
        if row is None or whole is None or row[column] == "":
            return ""
        if column == "ms_median":
            return f"{float(str(row['of_full'])):.2f}"
        return f"{float(str(row[column])) / float(str(whole['ms_median'])):.3f}"

    def size(name: str | None) -> str:
        row, whole = sizes.get(name or ""), sizes.get(FULL)
        if row is None or whole is None or not row.get("peak_bytes"):
            return ""
        return f"{float(str(row['peak_bytes'])) / float(str(whole['peak_bytes'])):.2f}"

    made = []
    for label, (printed, theirs, mine) in LINES.items():
        paper, whole = PAPER.get(printed or ""), PAPER[WHOLE]
        cells = [f"{paper.step / whole.step:.2f}" if paper else "", here(theirs, "ms_median"), here(mine, "ms_median")]
        cells += [f"{paper.memory / whole.memory:.2f}" if paper else "", size(theirs), size(mine)]
        for column, name in (("init_ms", "init"), ("selection_ms", "update")):
            cells.append(f"{getattr(paper, name) / whole.step:.3f}" if paper else "")
            cells += [here(theirs, column), here(mine, column)]
        made.append([label, *cells])
    return made


def screen(times: Sequence[Row], peaks: Sequence[Row]) -> str:
    """A table for each model and dtype of the rows; "" if there is nothing to compare."""
    keys = list(dict.fromkeys((row["model"], row["dtype"]) for row in times))
    tables = []
    for key in keys:
        mine = [row for row in times if (row["model"], row["dtype"]) == key]
        sizes = [row for row in peaks if (row["model"], row["dtype"]) == key]
        title = f"\nTable 9 of the paper, and {key[0]}, {key[1]}, here; full fine-tuning is 1"
        tables.append(format_table(HEADER, lines(mine, sizes), title))
    return "\n".join(tables)
