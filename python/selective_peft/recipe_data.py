"""The rows of a recipe: cells of its columns as texts and labels, checked one by one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from selective_peft.data import Examples, Parts, split
from selective_peft.errors import InputError
from selective_peft.recipe_files import Split
from selective_peft.recipes import Recipe

HIDDEN = -1  # what stands for labels that nobody may see


@dataclass(frozen=True)
class Cells:
    """A column of a split, whose cells become what a recipe needs; each method raises InputError for one that cannot.

    Attributes:
        split: for messages.
        column: its name.
        classes: names of the classes, if cells are these or their numbers.
    """

    split: Split
    column: str
    classes: tuple[str, ...] = ()

    def each(self, convert: Callable[[int, Any], Any], cells: list[Any]) -> list[Any]:
        """Converted cells; rows are counted from 1."""
        return [convert(row, cell) for row, cell in enumerate(cells, 1)]

    def text(self, row: int, cell: Any) -> str:
        """A string, without spaces around it."""
        if not isinstance(cell, str):
            raise self._wrong("text", row, cell)
        return cell.strip()

    def words(self, row: int, cell: Any) -> list[str]:
        """A list of strings."""
        if not isinstance(cell, list) or not all(isinstance(word, str) and word.strip() for word in cell):
            raise self._wrong("a list of words", row, cell)
        return cell

    def tags(self, row: int, cell: Any) -> list[int]:
        """A list of classes."""
        if not isinstance(cell, list):
            raise self._wrong("a list of tags", row, cell)
        return [self.label(row, tag) for tag in cell]

    def label(self, row: int, cell: Any) -> int:
        """A class, by its name or number."""
        if isinstance(cell, str) and cell in self.classes:
            return self.classes.index(cell)
        value = _number(cell)
        self._check_hidden(row, value)
        if not value.is_integer() or not 0 <= value < len(self.classes):
            names = ", ".join(f"{name} ({number})" for number, name in enumerate(self.classes))
            raise self._wrong(f"one of {names}", row, cell)
        return int(value)

    def number(self, row: int, cell: Any) -> float:
        """A finite number."""
        value = _number(cell)
        self._check_hidden(row, value)
        if not math.isfinite(value):
            raise self._wrong("a finite number", row, cell)
        return value

    def answer(self, row: int, cell: Any) -> str:
        """What is right: a text or a number, or the last one of a list."""
        last = cell[-1] if isinstance(cell, list) and cell else cell
        return self.text(row, str(last) if type(last) in (int, float) else last)

    def _wrong(self, expected: str, row: int, cell: Any) -> InputError:
        return InputError(f"{self.split}: expected {expected} in column {self.column!r}, found {cell!r} in row {row}")

    def _check_hidden(self, row: int, value: float) -> None:
        if value == HIDDEN:
            raise InputError(
                f"{self.split}: expected labels in column {self.column!r}, found {HIDDEN} in row {row}, which marks "
                "hidden ones; this split can be neither trained nor evaluated on"
            )


def read(recipe: Recipe, where: Split, answer: str | None = None) -> Examples:
    """The rows of a split.

    Args:
        recipe: with the columns to use.
        where: the rows are.
        answer: a column of texts to take as labels instead of the recipe's.

    Raises:
        InputError: no such split or column, or a cell that is not what the recipe needs.
    """
    target = answer or recipe.label
    cells, classes = where.columns([name for name in (recipe.text, recipe.pair, target) if name is not None])
    known = classes[target]
    if answer is None and recipe.classes and known is not None and tuple(known) != recipe.classes:
        raise InputError(
            f"{where}: expected the classes {', '.join(recipe.classes)} in this order in column {target!r}, found "
            f"{', '.join(known)}"
        )
    text, label = Cells(where, recipe.text), Cells(where, target, recipe.classes)
    tagged = recipe.task == "token"
    texts = text.each(text.words if tagged else text.text, cells[recipe.text])
    convert = {"token": label.tags, "classification": label.label, "regression": label.number}.get(
        recipe.task, label.text
    )
    labels = label.each(label.answer if answer else convert, cells[target])
    if tagged:
        _check_lengths(text, label, texts, labels)
        return Examples(texts, None, labels, None)
    pair = None if recipe.pair is None else Cells(where, recipe.pair)
    pairs = None if pair is None else pair.each(pair.text, cells[pair.column])
    return Examples([recipe.template.format(each) for each in texts], pairs, labels, None)


def read_parts(recipe: Recipe, options: argparse.Namespace) -> Parts:
    """All splits that a run needs, without rows of no words, which tagged data have between documents.

    Args:
        recipe: whose columns the options may change.
        options: with the columns, the folder, and which split or share to evaluate on.

    Raises:
        InputError: see `read` and `selective_peft.data.split`.
    """
    columns = {"text": options.text_column, "pair": options.text_pair_column, "label": options.label_column}
    recipe = replace(recipe, **columns)
    left_out = 0

    def rows(name: str, answer: str | None = None) -> Examples:
        nonlocal left_out
        where = Split(name, recipe.source, options.data_folder)
        examples = read(recipe, where, answer)
        kept = [row for row, text in enumerate(examples.texts or []) if text != []]
        if not kept:
            raise InputError(f"{where}: expected rows with words in column {recipe.text!r}, found none")
        left_out += len(examples) - len(kept)
        return examples.rows(kept)

    training = rows(recipe.train)
    if recipe.evaluation is None:
        place = str(Split(recipe.train, recipe.source, options.data_folder))
        training, evaluation = split(place, training, options.eval_share, options.seed, False)
    else:
        evaluation = rows(options.eval_split or recipe.evaluation)
    tests = {name: rows(name, recipe.answer) for name in recipe.tests}
    return Parts(training, evaluation, list(recipe.classes) or None, tests, left_out)


def _check_lengths(text: Cells, label: Cells, texts: list[list[str]], labels: list[list[int]]) -> None:
    for row, (words, tags) in enumerate(zip(texts, labels, strict=True), 1):
        if len(words) != len(tags):
            raise InputError(
                f"{text.split}: expected a tag in column {label.column!r} for each word in column {text.column!r}, "
                f"found {len(words)} words and {len(tags)} tags in row {row}"
            )


def _number(cell: Any) -> float:
    """NaN for what is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
