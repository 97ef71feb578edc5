"""Labelled text for each task from CSV or JSONL files, and splitting off a part for evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sklearn.model_selection import GroupShuffleSplit, train_test_split

from selective_peft.errors import InputError, first_line
from selective_peft.files import Columns, read_columns


@dataclass(frozen=True)
class Examples:
    """Texts with labels, one item per row.

    Attributes:
        texts: inputs, for tagging lists of words; None if labels are all there is.
        pairs: second texts, or None.
        labels: class numbers, for tagging lists of them; numbers for regression; else texts.
        groups: values of the group column, or None.
    """

    texts: list[Any] | None
    pairs: list[str] | None
    labels: list[Any]
    groups: list[str] | None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self) -> list[Hashable]:
        """What a model is given of each row; the label if that is all there is."""
        texts = self.labels if self.texts is None else self.texts
        return [(str(text), pair) for text, pair in zip(texts, self.pairs or [""] * len(texts), strict=True)]

    def rows(self, numbers: Sequence[int]) -> Examples:
        """These rows, in this order."""
        columns = (self.texts, self.pairs, self.labels, self.groups)
        return Examples(*(column if column is None else [column[i] for i in numbers] for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Parts:
    """Training and evaluation examples.

    Attributes:
        classes: their names; None where labels are no classes.
        tests: name -> examples for more evaluations, beside those during training.
        left_out: rows without any words, which are in none of these.
    """

    training: Examples
    evaluation: Examples
    classes: list[str] | None
    tests: Mapping[str, Examples] = field(default_factory=dict)
    left_out: int = 0

    def seen(self, examples: Examples) -> int:
        """How many of these stand among the training rows, too, word for word."""
        known = set(self.training.inputs())
        return sum(each in known for each in examples.inputs())


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
            f"{len(labels)} {'words' if columns.words else 'rows (numbers need --task regression)'}"
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
    """Examples for classification, or with `columns.words` for tagging, and the names of their classes.

    Args:
        path: CSV or JSONL file.
        columns: names of its columns.
        classes: the classes that there may be; None: those that there are.
        ordered: if these are the same classes, their order counts: that of the head of a model.

    Raises:
        InputError: see `read_columns` and `class_names`; or a label that is none of `classes`; or a row with another
            number of tags than words.
    """
    cells = read_columns(path, columns)
    labels: list[Any] = cells[columns.label]
    if columns.words:
        _check_lengths(path, columns, cells)
    flat = [tag for tags in labels for tag in tags] if columns.words else labels
    known = class_names(path, columns, flat) if classes is None else list(classes)
    if classes is None and sorted(known) == sorted(ordered):
        known = list(ordered)
    number = {name: i for i, name in enumerate(known)}
    for row, label in enumerate(labels, 1):
        for tag in label if columns.words else [label]:
            if tag not in number:
                raise InputError(
                    f"{path}: expected the classes of the training file in column {columns.label!r}, found {tag!r} in "
                    f"row {row}"
                )
    counted = [[number[tag] for tag in label] if columns.words else number[label] for label in labels]
    return _examples(cells, columns, counted), known


def _check_lengths(path: Path, columns: Columns, cells: dict[str, list[Any]]) -> None:
    assert columns.text is not None
    for row, (words, tags) in enumerate(zip(cells[columns.text], cells[columns.label], strict=True), 1):
        if len(words) != len(tags):
            raise InputError(
                f"{path}: expected a tag in column {columns.label!r} for each word in column {columns.text!r}, found "
                f"{len(words)} words and {len(tags)} tags in row {row}"
            )


def read_targets(path: Path, columns: Columns) -> Examples:
    """Examples whose labels are texts to write.

    Raises:
        InputError: see `read_columns`.
    """
    cells = read_columns(path, columns)
    return _examples(cells, columns, cells[columns.label])


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


def _examples(cells: dict[str, list[Any]], columns: Columns, labels: list[Any]) -> Examples:
    texts, pairs, groups = (cells[name] if name else None for name in (columns.text, columns.text_pair, columns.group))
    return Examples(texts, pairs, labels, groups)


def split(
    path: Path | str, examples: Examples, share: float, seed: int, classification: bool
) -> tuple[Examples, Examples]:
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
    counts = Counter(examples.labels if classification else ())
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
