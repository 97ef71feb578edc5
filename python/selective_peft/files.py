"""Columns of CSV and JSONL files: what is written is what is read, or it is refused."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from selective_peft.errors import InputError, first_line

CSV, JSON_LINES = (".csv",), (".jsonl", ".ndjson", ".json")
datasets.disable_progress_bars()


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use; those that are not used are None.

    Attributes:
        words: text and label cells are lists: JSON lists of strings, or in CSV files words with spaces between them.
    """

    text: str | None
    label: str
    text_pair: str | None = None
    group: str | None = None
    words: bool = False

    def given(self) -> list[str]:
        """Those that have a name."""
        return [name for name in (self.text, self.text_pair, self.label, self.group) if name is not None]

    def lists(self) -> set[str]:
        """Those whose cells are lists."""
        return {name for name in (self.text, self.label) if name is not None} if self.words else set()


def read_columns(path: Path, columns: Columns) -> dict[str, list[Any]]:
    """The named columns of a file, keyed by column: text, or lists of words for `columns.lists()`.

    Raises:
        InputError: no such file, another kind of file, not decodable, no rows, a missing column, or an empty cell.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a CSV or JSONL file, found none there")
    kind = path.suffix.lower()
    if kind not in CSV + JSON_LINES:
        raise InputError(f"{path}: expected a name that ends in {', '.join(CSV + JSON_LINES)}, got {kind or 'none'!r}")
    try:
        cells = _json_cells(path, columns) if kind in JSON_LINES else _csv_cells(path, columns)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got other bytes ({first_line(error)})") from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, LookupError, csv.Error) as error:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
        raise InputError(f"{path}: cannot be read as {kind[1:].upper()} ({first_line(cause)})") from error
    if not cells[columns.label]:
        raise InputError(f"{path}: expected rows, found none")
    for name, values in cells.items():
        empty = [row for row, value in enumerate(values, 1) if not value]
        if empty:
            raise InputError(
                f"{path}: expected a value in every cell of column {name!r}, found {len(empty)} empty ones, the "
                f"first in row {empty[0]}"
            )
    return cells


def _check_columns(path: Path, columns: Columns, found: Sequence[str]) -> None:
    for name in columns.given():
        if name not in found:
            raise InputError(f"{path}: expected a column {name!r}, found {', '.join(map(repr, found)) or 'none'}")


def _csv_cells(path: Path, columns: Columns) -> dict[str, list[Any]]:
    csv.field_size_limit(2**31 - 1)  # of characters; texts can be long
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file) if row)
        header = next(rows, None)
        if header is None:
            raise ValueError("the file is empty")
        names = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
        if len(set(names)) < len(names):
            raise ValueError("two columns have one name")
        _check_columns(path, columns, names)
        count = 0
        for count, row in enumerate(rows, 1):
            if len(row) != len(names):  # pandas would move the cells to other columns, or invent some
                raise ValueError(f"row {count} has {len(row)} cells, the header {len(names)}")
    if not count:
        raise InputError(f"{path}: expected rows, found none")
    with tempfile.TemporaryDirectory() as cache:
        table = datasets.Dataset.from_csv(
            str(path),
            keep_in_memory=True,
            cache_dir=cache,
            features=datasets.Features({name: datasets.Value("string") for name in names}),
            keep_default_na=False,
            index_col=False,
        )
    if len(table) != count:
        raise ValueError(f"{count} rows by one way to read it, {len(table)} by another")
    cells: dict[str, list[Any]] = {name: [str(value).strip() for value in table[name]] for name in columns.given()}
    return {name: [v.split() for v in found] if name in columns.lists() else found for name, found in cells.items()}


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: {error.msg}, column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{place}: brackets within brackets, too many of them") from None


def _json_cells(path: Path, columns: Columns) -> dict[str, list[Any]]:
    """Read without guessing types: dates and long numbers stay what is written."""
    content = path.read_text(encoding="utf-8-sig")
    if not content.strip():
        raise ValueError("the file is empty")
    if content.lstrip().startswith("["):
        rows = _parsed(content, "the list")
    else:
        lines = enumerate(content.split("\n"), 1)
        rows = [_parsed(line, f"line {number}") for number, line in lines if line.strip()]
    cells: dict[str, list[Any]] = {name: [] for name in columns.given()}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is no object with columns")
        _check_columns(path, columns, list(row))
        for name, found in cells.items():
            found.append((_words if name in columns.lists() else _text)(number, name, row[name]))
    return cells


def _text(row: int, name: str, value: Any) -> str:
    if isinstance(value, list | dict):
        raise ValueError(f"row {row} has a {type(value).__name__} in column {name!r}")
    return "" if value is None else str(value).strip()


def _words(row: int, name: str, value: Any) -> list[str]:
    """JSON's numbers come as strings here."""
    if not isinstance(value, list):
        raise ValueError(f"row {row} has no list of words in column {name!r}")
    words = [_text(row, name, word) for word in value]
    if "" in words:
        raise ValueError(f"row {row} has an empty word in column {name!r}")
    return words
