"""Labelled text from CSV or JSONL files: reading, checking, and splitting off a part for evaluation."""

from __future__ import annotations

import csv
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        table = _load(path, kind)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got other bytes ({first_line(error)})") from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, LookupError, csv.Error) as error:
        cause = error.__cause__ or error.__context__ or error
        raise InputError(f"{path}: cannot be read as {kind[1:].upper()} ({first_line(cause)})") from error
    for name in columns.given():
        if name not in table.column_names:
            raise InputError(f"{path}: expected a column {name!r}, found {', '.join(map(repr, table.column_names))}")
    if len(table) == 0:
        raise InputError(f"{path}: expected rows, found none")
    return {name: _cells(path, name, table[name]) for name in columns.given()}


def _load(path: Path, kind: str) -> datasets.Dataset:
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    with tempfile.TemporaryDirectory() as cache:
        if kind in JSON_LINES:
            return datasets.Dataset.from_json(str(path), keep_in_memory=True, cache_dir=cache)
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file))
            below = sum(1 for _ in file)  # where bytes are no text, Python says which; a parser in C may not
        if not below:
            raise InputError(f"{path}: expected rows, found none")
        if len(set(names)) < len(names):
            raise ValueError("two columns have one name")
        features = datasets.Features({name: datasets.Value("string") for name in names})
        return datasets.Dataset.from_csv(
            str(path), keep_in_memory=True, cache_dir=cache, features=features, keep_default_na=False
        )


def _cells(path: Path, name: str, values: Sequence[object]) -> list[str]:
    cells = ["" if value is None else str(value).strip() for value in values]
    if "" in cells:
        raise InputError(
            f"{path}: expected a value in every cell of column {name!r}, found {cells.count('')} empty ones, the first "
            f"in row {cells.index('') + 1}"
        )
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


def read_examples(path: Path, columns: Columns, classes: Sequence[str] | None = None) -> tuple[Examples, list[str]]:
    """Examples for classification, and the names of their classes.

    Args:
        path: CSV or JSONL file.
        columns: names of its columns.
        classes: the classes that there may be; None: those that there are.

    Raises:
        InputError: see `read_columns` and `class_names`; or a label that is none of `classes`.
    """
    cells = read_columns(path, columns)
    labels = cells[columns.label]
    known = class_names(path, columns, labels) if classes is None else list(classes)
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
        train, held_out = next(splitter.split(everything, groups=examples.groups))
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
