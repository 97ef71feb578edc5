"""Tables, CSV files and shapes of the benchmarks."""

import csv
import math
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.bars import Bar, format_bars
from benchmarks.report import environment, format_bytes, format_table, write_csv
from benchmarks.shapes import MODELS, total


def test_table_is_aligned():
    table = format_table(("name", "ms"), [("a", "1.25"), ("longer", "10.00")], title="Title")
    assert table.split("\n") == [
        "Title",
        "name       ms",
        "-------------",
        "a        1.25",
        "longer  10.00",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (2_270_000, "2.27 MB"),
        (875_870_000, "875.87 MB"),
        (4e9, "4.00 GB"),
    ],
)
def test_bytes_are_shown_in_decimal_units(count, text):
    assert format_bytes(count) == text


def test_csv_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "results" / "step.csv"
    write_csv(path, [{"what": "a, b", "ms": 1}, {"what": "c", "ms": 2}])
    write_csv(path, [{"what": "d", "ms": 3}])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"what": "d", "ms": "3"}]
    assert [each.name for each in path.parent.iterdir()] == ["step.csv"]


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}], [{"a": 1, "b": 1}, {"b": 1, "a": 1}]])
def test_csv_rows_must_have_the_same_columns(tmp_path, rows):
    with pytest.raises(ValueError, match="rows: expected one row or more, all with the same columns"):
        write_csv(tmp_path / "x.csv", rows)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    class Unprintable:
        def __str__(self):
            raise RuntimeError("unprintable")

    path = tmp_path / "x.csv"
    write_csv(path, [{"a": 1}])
    with pytest.raises(RuntimeError, match="unprintable"):
        write_csv(path, [{"a": Unprintable()}])
    assert path.read_text() == "a\n1\n"
    assert [each.name for each in tmp_path.iterdir()] == ["x.csv"]


def test_environment_says_where_a_number_comes_from():
    stamp = environment()
    assert all(stamp[key] for key in ("cpu", "cores", "threads", "isa", "torch", "selective_kernels", "commit", "utc"))


def test_shapes_are_those_of_the_published_models():
    """BERT-base's and MiniLM-L6's encoders with pooler have 109,482,240 and 22,713,216 scalars; add two labels.

    The others are what transformers makes of the published configurations; DeBERTa has two labels, too.
    """
    assert (len(MODELS["bert-base"]), total(MODELS["bert-base"])) == (201, 109_482_240 + 2 * 768 + 2)
    assert (len(MODELS["minilm-l6"]), total(MODELS["minilm-l6"])) == (105, 22_713_216 + 2 * 384 + 2)
    assert (len(MODELS["deberta-v3-base"]), total(MODELS["deberta-v3-base"])) == (202, 184_423_682)
    assert (len(MODELS["qwen2.5-1.5b"]), total(MODELS["qwen2.5-1.5b"])) == (338, 1_543_714_304)
    assert (len(MODELS["qwen2.5-7b"]), total(MODELS["qwen2.5-7b"])) == (339, 7_615_616_512)


def test_a_copy_without_a_repository_says_what_it_is_told(monkeypatch):
    monkeypatch.setattr(report, "ROOT", Path("/"))
    monkeypatch.delenv("SELECTIVE_KERNELS_COMMIT", raising=False)
    assert report.commit() == "unknown"
    monkeypatch.setenv("SELECTIVE_KERNELS_COMMIT", "0123abc")
    assert report.commit() == "0123abc"


@pytest.mark.parametrize(
    ("measured", "limit", "least", "text"),
    [
        (1.0014, 1.0, False, "x: 1.0014 ms, bar <= 1 ms: NOT MET"),  # not "1, bar <= 1"
        (0.9967, 1.0, False, "x: 0.997 ms, bar <= 1 ms: met"),
        (19.961, 20.0, True, "x: 19.961 ms, bar >= 20 ms: NOT MET"),
        (2431.0, 90.0, True, "x: 2,431 ms, bar >= 90 ms: met"),
        (math.nan, 1.0, False, "x: nan ms, bar <= 1 ms: NOT MET"),
    ],
)
def test_bars_show_on_which_side_of_the_limit_a_number_lies(measured, limit, least, text):
    assert str(Bar("x", measured, limit, least, " ms")) == text


def test_a_bar_without_a_number_says_why():
    left_out = Bar("x", math.nan, 2.0, least=True, unit=" x", missing="no compiler")
    assert not left_out.met
    assert str(left_out) == "x: bar >= 2 x: NOT MEASURED, no compiler"
    assert format_bars([Bar("y", 1.0, 2.0), left_out]).splitlines()[0] == "Bars: 1 of 2 met"
