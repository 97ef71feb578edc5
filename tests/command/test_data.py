"""Reading labelled text: what files say is what is read, and what cannot be used is refused in one sentence."""

import re

import pytest
from reviewfiles import reviews, write_csv, write_jsonl
from selective_peft import data, files
from selective_peft.errors import InputError

COLUMNS = files.Columns("text", "label")
HEADER = b"text,label\n"

# name and bytes of a file, message after its path; "..." stands for anything
REFUSED = {
    "empty": ("a.csv", b"", "cannot be read as CSV (the file is empty)"),
    "empty lines": ("a.jsonl", b"", "cannot be read as JSONL (the file is empty)"),
    "header only": ("a.csv", HEADER, "expected rows, found none"),
    "no label column": ("a.csv", b"text,stars\na,1\nb,2\n", "expected a column 'label', found 'text', 'stars'"),
    "no text column": ("a.jsonl", b'{"label": 1}\n', "expected a column 'text', found 'label'"),
    "one class": ("a.csv", HEADER + b"a,x\nb,x\n", "expected two classes or more in column 'label', found only 'x'"),
    "not UTF-8": ("a.csv", HEADER + b"caf\xe9,x\nb,y\n", "expected UTF-8 text, got other bytes (...)"),
    "not UTF-8 far down": ("a.csv", HEADER + b"a,x\n" * 9999 + b"\xff\xfe,y\n", "expected UTF-8 text, got ..."),
    "binary": ("a.jsonl", bytes(range(256)), "..."),
    "broken line": ("a.jsonl", b'{"text": "a", "label": 0}\n{"text": \n', "cannot be read as JSONL (...)"),
    "empty text": ("a.csv", HEADER + b"a,x\n,y\n ,y\n", "expected a value in every cell of column 'text', found 2 ..."),
    "null label": (
        "a.jsonl",
        b'{"text": "a", "label": null}\n{"text": "b", "label": "y"}\n',
        "...'label', found 1 ...",
    ),
    "one cell too many": (
        "a.csv",
        HEADER + b"Great, loved it,x\n",
        "...(row 1 has 3 cells, the header 2)",
    ),
    "one cell too few": ("a.csv", HEADER + b"a,x\nb\n", "cannot be read as CSV (row 2 has 1 cells, the header 2)"),
    "byte order mark only": ("a.csv", b"\xef\xbb\xbf", "cannot be read as CSV (the file is empty)"),
    "not UTF-8 lines": ("a.jsonl", b'{"text": "caf\xe9", "label": 0}\n', "expected UTF-8 text, got other bytes (...)"),
    "list of words": ("a.jsonl", b'{"text": ["a"], "label": 0}\n', "...(row 1 has a list in column 'text')"),
    "no objects": ("a.jsonl", b"1\n2\n", "cannot be read as JSONL (row 1 is no object with columns)"),
    "other suffix": ("a.xlsx", b"x", "expected a name that ends in .csv, .jsonl, .ndjson, .json, got '.xlsx'"),
    "same column twice": ("a.csv", b"text,text,label\na,b,x\nc,d,y\n", "cannot be read as CSV (two columns ...)"),
    "numbers": (
        "a.csv",
        HEADER + b"".join(b"t,%d.5\n" % i for i in range(60)),
        "expected classes in column 'label', found 60 different values in 60 rows (numbers need --task regression)",
    ),
}


def refuses(message):
    return pytest.raises(InputError, match="^" + ".*".join(map(re.escape, message.split("..."))) + "$")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(name, tmp_path):
    file, content, message = REFUSED[name]
    path = tmp_path / file
    path.write_bytes(content)
    with refuses(f"{path}: {message}") as caught:
        data.read_examples(path, COLUMNS)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with refuses(f"{path}: expected a CSV or JSONL file, found none there"):
            data.read_examples(path, COLUMNS)


@pytest.mark.parametrize(("write", "name"), [(write_csv, "a.csv"), (write_jsonl, "a.jsonl"), (write_jsonl, "a.json")])
def test_csv_and_json_lines_give_the_same(write, name, tmp_path):
    rows = reviews(40)
    columns = files.Columns("text", "label", "other", "film")
    examples, classes = data.read_examples(write(tmp_path / name, rows), columns)
    assert classes == ["fresh", "rotten"]
    assert examples.texts == [row["text"] for row in rows]
    assert examples.pairs == [row["other"] for row in rows]
    assert examples.groups == [row["film"] for row in rows]
    assert [classes[label] for label in examples.labels] == [row["label"] for row in rows]


def test_texts_are_not_taken_for_something_else(tmp_path):
    """Numbers, "NA", quotes, line breaks and commas are text like any other; a byte order mark is none."""
    rows = [
        {"text": text, "label": str(i % 2)} for i, text in enumerate(["NA", "null", "007", "1e5", 'a "b", c\nd', "é"])
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    examples, _ = data.read_examples(path, COLUMNS)
    assert examples.texts == [row["text"] for row in rows]


def test_an_unnamed_column_and_a_blank_line(tmp_path):
    """As pandas writes its index."""
    (tmp_path / "a.csv").write_text("\n,text,label\n0,one,a\n1,two,b\n")
    assert data.read_examples(tmp_path / "a.csv", COLUMNS)[0].texts == ["one", "two"]


def test_json_values_stay_what_is_written(tmp_path):
    rows = '[{"text": "2021-01-01", "label": 12345678901234567890123},\n{"text": 1.50, "label": true}]'
    (tmp_path / "a.json").write_text(rows)
    examples, classes = data.read_examples(tmp_path / "a.json", COLUMNS)
    assert examples.texts == ["2021-01-01", "1.50"]
    assert classes == ["12345678901234567890123", "True"]


def test_types_that_change_far_down(tmp_path):
    """A reader that guesses types from the first rows fails here."""
    rows = [{"text": str(i), "label": "0" if i < 15_000 else "b"} for i in range(20_000)]
    examples, classes = data.read_examples(write_csv(tmp_path / "a.csv", rows), COLUMNS)
    assert classes == ["0", "b"]
    assert examples.texts[-1] == "19999"


def test_classes_are_in_order(tmp_path):
    rows = [{"text": "t", "label": label} for label in ["10", "9", "-1", "10"]]
    assert data.read_examples(write_csv(tmp_path / "a.csv", rows), COLUMNS)[1] == ["-1", "9", "10"]
    booleans = [{"text": "t", "label": label} for label in [True, False]]
    assert data.read_examples(write_jsonl(tmp_path / "b.jsonl", booleans), COLUMNS)[1] == ["False", "True"]


def test_a_class_that_only_the_evaluation_file_has(tmp_path):
    path = write_csv(tmp_path / "e.csv", [{"text": "t", "label": "a"}, {"text": "t", "label": "zzz"}])
    with refuses(f"{path}: expected the classes of the training file in column 'label', found 'zzz' in row 2"):
        data.read_examples(path, COLUMNS, ["a", "b"])


def test_regression(tmp_path):
    columns = files.Columns("text", "stars")
    rows = reviews(30)
    assert data.read_regression(write_csv(tmp_path / "a.csv", rows), columns).labels == [
        float(r["stars"]) for r in rows
    ]
    for bad in ("many", "nan", "inf"):
        path = write_csv(tmp_path / "b.csv", [*rows, {**rows[0], "stars": bad}])
        with refuses(f"{path}: expected finite numbers in column 'stars', found '{bad}' in row 31"):
            data.read_regression(path, columns)
    path = write_csv(tmp_path / "c.csv", [{**row, "stars": "2"} for row in rows])
    with refuses(f"{path}: expected different numbers in column 'stars', found only 2.0"):
        data.read_regression(path, columns)


def examples_of(rows, groups=False):
    labels = [int(row["label"] == "fresh") for row in rows]
    return data.Examples([row["text"] for row in rows], None, labels, [row["film"] for row in rows] if groups else None)


def test_split_by_share_keeps_the_classes_shares_and_every_row(tmp_path):
    examples = examples_of(reviews(200)).rows(range(0, 150))
    numbered = data.Examples([str(i) for i in range(150)], None, examples.labels, None)
    train, held_out = data.split(tmp_path, numbered, 0.2, 0, True)
    assert sorted(train.texts + held_out.texts) == sorted(numbered.texts)
    assert len(held_out) == 30
    assert sum(held_out.labels) == 15
    assert data.split(tmp_path, numbered, 0.2, 0, True)[1] == held_out
    assert data.split(tmp_path, numbered, 0.2, 1, True)[1] != held_out


def test_split_by_group_parts_no_group(tmp_path):
    rows = [{**row, "text": str(i)} for i, row in enumerate(reviews(200))]
    film = {row["text"]: row["film"] for row in rows}
    train, held_out = data.split(tmp_path, examples_of(rows, groups=True), 0.25, 3, True)
    assert len(train) + len(held_out) == 200
    assert len({film[text] for text in held_out.texts}) == 10
    assert not {film[text] for text in train.texts} & {film[text] for text in held_out.texts}


def test_splits_that_cannot_be(tmp_path):
    few = data.Examples(["a", "b", "c"], None, [0, 0, 1], None)
    with refuses(f"{tmp_path}: expected two rows or more of each class, found one of class number 1"):
        data.split(tmp_path, few, 0.5, 0, True)
    with refuses(f"{tmp_path}: 1 rows cannot be split with a share of 0.5 (...)"):
        data.split(tmp_path, data.Examples(["a"], None, [0.5], None), 0.5, 0, False)
    with refuses(f"{tmp_path}: expected two groups or more, found only 'g'"):
        data.split(tmp_path, data.Examples(["a", "b"], None, [0, 1], ["g", "g"]), 0.5, 0, True)
    groups = data.Examples(list("abcd"), None, [0, 1, 0, 1], list("ghij"))
    with refuses(f"{tmp_path}: 4 groups cannot be split with a share of 0.9 (...)"):
        data.split(tmp_path, groups, 0.9, 0, True)
    with refuses(f"{tmp_path}: expected every class in the training part, which has only 1"):
        data.split(tmp_path, data.Examples(["a", "b"], None, [0, 1], ["g", "h"]), 0.5, 0, True)
