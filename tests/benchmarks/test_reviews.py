"""The demo's data: what counts as a review, and a split that leaks neither films nor texts."""

import csv
import io

import pytest
import torch

from benchmarks import reviews
from benchmarks.reviews import Batches, MissingData, Review, majority, package_file, parse, split_by_movie

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


def test_majority_is_the_share_of_the_more_frequent_label():
    assert majority([Review("", label, "") for label in (0, 0, 0, 1)]) == 0.75
    assert majority([Review("", label, "") for label in (1, 1, 0, 1)]) == 0.75


def test_a_missing_package_or_file_is_one_sentence_with_the_remedy():
    with pytest.raises(MissingData, match=r"'no_such_package' is not installed; .* pip install --no-deps nothing==1"):
        package_file("no_such_package", "nothing==1", "file")
    with pytest.raises(MissingData, match=r"'torch' has no no/such/file; .* pip install"):
        package_file("torch", "torch", "no/such/file")


class WordTokenizer:
    """Stands for one of transformers: as many tokens as words, token ids that name the review."""

    def __call__(self, texts, truncation, max_length):
        assert truncation
        return {"input_ids": [[i + 1] * min(max_length, len(text.split())) for i, text in enumerate(texts)]}

    def pad(self, encoded, return_tensors):
        assert return_tensors == "pt"
        rows = [torch.tensor(each) for each in encoded["input_ids"]]
        return {"input_ids": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


@pytest.fixture
def batches():
    reviews = [Review("word " * (1 + 5 * i % 12), i % 2, "film") for i in range(10)]
    return Batches(reviews, WordTokenizer(), max_length=6, batch_size=4)


def test_random_batches_bring_each_review_once_before_any_comes_again(batches):
    stream = batches.random(seed=0)
    drawn = [next(stream) for _ in range(10)]
    numbers = torch.cat([batch["input_ids"][:, 0] - 1 for batch in drawn])
    for epoch in numbers.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert numbers[:10].tolist() != numbers[10:20].tolist()
    assert torch.equal(torch.cat([batch["labels"] for batch in drawn]), numbers % 2)
    again = batches.random(seed=0)
    assert all(torch.equal(next(again)["input_ids"], batch["input_ids"]) for batch in drawn)


def test_batches_by_length_hold_every_review_once_and_pad_little(batches):
    drawn = list(batches.by_length())
    numbers = torch.cat([batch["input_ids"][:, 0] - 1 for batch in drawn])
    assert sorted(numbers.tolist()) == list(range(10))
    widths = [batch["input_ids"].shape[1] for batch in drawn]
    assert widths == sorted(widths)
    assert max(widths) == 6  # cut at max_length


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
