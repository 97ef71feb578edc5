"""The demo's data: what counts as a review, and a split that leaks neither films nor texts."""

import csv
import io

import pytest

from benchmarks import reviews
from benchmarks.reviews import MissingData, Review, package_file, parse, split_by_movie

# 40 films of 1 to 7 reviews; one text stands in all of them, as short reviews do in the real file.
REVIEWS = [
    Review("the same words" if i == 0 else f"review {i} of film {film}", (film + i) % 2, f"film {film:02d}")
    for film in range(40)
    for i in range(1 + film % 7)
]


def test_plots_and_empty_texts_are_no_reviews():
    file = io.StringIO(
        'category,text,movie_name,has_plot_and_reviews\nplot,A plot,a,True\nfresh,"Two\nlines, ""quoted""",a,True\n'
        "rotten,  Bad ,b,False\nrotten,   ,b,False\n"
    )
    assert parse(file) == [Review('Two\nlines, "quoted"', 1, "a"), Review("Bad", 0, "b")]


@pytest.mark.parametrize("test_size", [1, 30, 100, len(REVIEWS) - 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_film_and_no_text_on_both_sides(test_size, seed):
    train, test = split_by_movie(REVIEWS, test_size, seed)
    assert len(test) == test_size
    assert not {review.movie for review in train} & {review.movie for review in test}
    assert not {review.text for review in train} & {review.text for review in test}
    assert set(train) | set(test) <= set(REVIEWS)


def test_split_drops_only_the_rest_of_one_film_and_repeated_texts():
    train, test = split_by_movie(REVIEWS, 50)
    dropped = set(REVIEWS) - set(train) - set(test)
    texts = {review.text for review in test}
    assert len({review.movie for review in dropped if review.text not in texts}) <= 1


def test_split_does_not_depend_on_the_order_of_the_file_for_its_films():
    films = {review.movie for review in split_by_movie(REVIEWS, 50, 3)[1]}
    assert {review.movie for review in split_by_movie(REVIEWS[::-1], 50, 3)[1]} == films
    assert {review.movie for review in split_by_movie(REVIEWS, 50, 4)[1]} != films


@pytest.mark.parametrize("test_size", [0, -1, len(REVIEWS)])
def test_impossible_test_sizes_are_refused(test_size):
    with pytest.raises(ValueError, match=f"test_size: expected 1 to {len(REVIEWS) - 1} reviews, got {test_size}"):
        split_by_movie(REVIEWS, test_size)


def test_a_missing_package_or_file_is_one_sentence_with_the_remedy():
    with pytest.raises(MissingData, match=r"'no_such_package' is not installed; .* pip install --no-deps nothing==1"):
        package_file("no_such_package", "nothing==1", "file")
    with pytest.raises(MissingData, match=r"'torch' has no no/such/file; .* pip install"):
        package_file("torch", "torch", "no/such/file")


def test_the_demo_gets_a_file_of_reviews_and_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(reviews, "load", lambda: REVIEWS)
    for _ in range(2):  # again over what is there
        reviews.prepare(tmp_path)
    with (tmp_path / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], reviews.LABELS[row["category"]], row["film"]) for row in rows] == [
        (each.text, each.label, each.movie) for each in REVIEWS
    ]
    assert (tmp_path / "model" / "config.json").is_file()
