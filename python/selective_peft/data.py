"""Labelled text from CSV or JSONL files: reading, checking, and splitting off a part for evaluation."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from selective_peft.errors import InputError, first_line

CSV, JSON_LINES = (".csv",), (".jsonl", ".ndjson", ".json")
datasets.disable_progress_bars()


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use; without a pair or group column these are None."""

    text: str
    label: str
    text_pair: str | None = None
    group: str | None = None

    def given(self) -> list[str]:
        """Those that have a name."""
        return [name for name in (self.text, self.text_pair, self.label, self.group) if name is not None]


@dataclass(frozen=True)
class Examples:
    """Texts with labels, one item per row.

    Attributes:
        texts, pairs: inputs; `pairs` is None without a second text.
        labels: class numbers for classification, numbers for regression.
        groups: values of the group column, or None.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]
    groups: list[str] | None

    def __len__(self) -> int:
        return len(self.texts)

    def inputs(self) -> list[tuple[str, str]]:
        """Text and second text ("" without one) of each row."""
        return list(zip(self.texts, self.pairs or [""] * len(self.texts), strict=True))

    def rows(self, numbers: Sequence[int]) -> Examples:
        """These rows, in this order."""
        return Examples(
            [self.texts[i] for i in numbers],
            None if self.pairs is None else [self.pairs[i] for i in numbers],
            [self.labels[i] for i in numbers],
            None if self.groups is None else [self.groups[i] for i in numbers],
        )


def read_columns(path: Path, columns: Columns) -> dict[str, list[str]]:
    """The named columns of a file as text, keyed by column.

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
        cause = error.__cause__ or error.__context__ or error
        raise InputError(f"{path}: cannot be read as {kind[1:].upper()} ({first_line(cause)})") from error
    if not cells[columns.text]:
        raise InputError(f"{path}: expected rows, found none")
    for name, values in cells.items():
        if "" in values:
            raise InputError(
                f"{path}: expected a value in every cell of column {name!r}, found {values.count('')} empty ones, the "
                f"first in row {values.index('') + 1}"
            )
    return cells


def _check_columns(path: Path, columns: Columns, found: Sequence[str]) -> None:
    for name in columns.given():
        if name not in found:
            raise InputError(f"{path}: expected a column {name!r}, found {', '.join(map(repr, found)) or 'none'}")


def _csv_cells(path: Path, columns: Columns) -> dict[str, list[str]]:
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
    return {name: [str(value).strip() for value in table[name]] for name in columns.given()}


def _json_cells(path: Path, columns: Columns) -> dict[str, list[str]]:
    """Read without guessing types: dates and long numbers stay what is written."""
    content = path.read_text(encoding="utf-8-sig")
    if not content.strip():
        raise ValueError("the file is empty")
    read = partial(json.loads, parse_int=str, parse_float=str)
    rows = (
        read(content)
        if content.lstrip().startswith("[")
        else [read(line) for line in content.split("\n") if line.strip()]
    )
    cells: dict[str, list[str]] = {name: [] for name in columns.given()}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is no object with columns")
        _check_columns(path, columns, list(row))
        for name, found in cells.items():
            value = row[name]
            if isinstance(value, list | dict):
                raise ValueError(f"row {number} has a {type(value).__name__} in column {name!r}")
            found.append("" if value is None else str(value).strip())
    return cells


def class_names(path: Path, columns: Columns, labels: Sequence[str]) -> list[str]:
    """The classes of a label column, numbers in numeric order, others by name.

    Raises:
        InputError: one class only, or so many that they can hardly be classes.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        raise InputError(f"{path}: expected two classes or more in column {columns.label!r}, found only {names[0]!r}")
    if len(names) > max(20, len(labels) // 2):
        raise InputError(
            f"{path}: expected classes in column {columns.label!r}, found {len(names)} different values in "
            f"{len(labels)} rows (numbers need --task regression)"
        )
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=int) if whole else names


def numbers(path: Path, columns: Columns, labels: Sequence[str]) -> list[float]:
    """The values of a label column for regression.

    Raises:
        InputError: a cell is no finite number.
    """
    found = []
    for row, label in enumerate(labels, 1):
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(
                f"{path}: expected finite numbers in column {columns.label!r}, found {label!r} in row {row}"
            )
        found.append(value)
    return found


def read_examples(
    path: Path, columns: Columns, classes: Sequence[str] | None = None, ordered: Sequence[str] = ()
) -> tuple[Examples, list[str]]:
    """Examples for classification, and the names of their classes.

    Args:
        path: CSV or JSONL file.
        columns: names of its columns.
        classes: the classes that there may be; None: those that there are.
        ordered: if these are the same classes, their order counts: that of the head of a model.

    Raises:
        InputError: see `read_columns` and `class_names`; or a label that is none of `classes`.
    """
    cells = read_columns(path, columns)
    labels = cells[columns.label]
    known = class_names(path, columns, labels) if classes is None else list(classes)
    if classes is None and sorted(known) == sorted(ordered):
        known = list(ordered)
    number = {name: i for i, name in enumerate(known)}
    for row, label in enumerate(labels, 1):
        if label not in number:
            raise InputError(
                f"{path}: expected the classes of the training file in column {columns.label!r}, found {label!r} in "
                f"row {row}"
            )
    return _examples(cells, columns, [number[label] for label in labels]), known


def read_regression(path: Path, columns: Columns) -> Examples:
    """Examples for regression.

    Raises:
        InputError: see `read_columns` and `numbers`; or all labels are one number.
    """
    cells = read_columns(path, columns)
    labels = numbers(path, columns, cells[columns.label])
    if len(set(labels)) == 1:
        raise InputError(f"{path}: expected different numbers in column {columns.label!r}, found only {labels[0]}")
    return _examples(cells, columns, labels)


def _examples(cells: dict[str, list[str]], columns: Columns, labels: list[int] | list[float]) -> Examples:
    pairs = cells[columns.text_pair] if columns.text_pair else None
    return Examples(cells[columns.text], pairs, labels, cells[columns.group] if columns.group else None)


def split(path: Path, examples: Examples, share: float, seed: int, classification: bool) -> tuple[Examples, Examples]:
    """Training and evaluation rows. With groups whole groups change sides, else classes keep their shares.

    Args:
        path: where the examples come from, for messages.
        examples: all rows.
        share: of the rows, or with groups of the groups, that go to the evaluation side; in (0, 1).
        seed: the same seed gives the same split.
        classification: labels are classes.

    Raises:
        InputError: too few rows, rows of a class, or groups; or a class is missing on the training side.
    """
    everything = list(range(len(examples)))
    counts = Counter(examples.labels)
    if examples.groups is not None:
        if len(set(examples.groups)) < 2:
            raise InputError(f"{path}: expected two groups or more, found only {examples.groups[0]!r}")
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        try:
            train, held_out = next(splitter.split(everything, groups=examples.groups))
        except ValueError as error:
            count = len(set(examples.groups))
            raise InputError(
                f"{path}: {count} groups cannot be split with a share of {share} ({first_line(error)})"
            ) from error
    else:
        if classification and min(counts.values()) < 2:
            rare = min(counts, key=counts.__getitem__)
            raise InputError(f"{path}: expected two rows or more of each class, found one of class number {rare}")
        try:
            train, held_out = train_test_split(
                everything,
                test_size=share,
                random_state=seed,
                stratify=examples.labels if classification else None,
            )
        except ValueError as error:
            raise InputError(
                f"{path}: {len(examples)} rows cannot be split with a share of {share} ({first_line(error)})"
            ) from error
    sides = examples.rows([int(i) for i in train]), examples.rows([int(i) for i in held_out])
    if classification and set(sides[0].labels) != set(counts):
        raise InputError(
            f"{path}: expected every class in the training part, which has only {len(set(sides[0].labels))}"
        )
    return replace(sides[0], groups=None), replace(sides[1], groups=None)
