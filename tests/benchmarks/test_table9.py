"""The paper's Table 9 beside what was measured: arithmetic on made-up rows."""

import argparse

import pytest

from benchmarks import table9
from benchmarks.finetuning import BITFIT, FULL, OURS, TOOLKIT
from benchmarks.suites import CannotRun

TIMES = [
    {"model": "m", "dtype": "float32", "method": FULL, "ms_median": "200.0", "of_full": "1.0", "init_ms": "0.0",
     "selection_ms": "0.0"},
    {"model": "m", "dtype": "float32", "method": TOOLKIT, "ms_median": "700.0", "of_full": "3.5", "init_ms": "900.0",
     "selection_ms": "300.0"},
    {"model": "m", "dtype": "float32", "method": OURS, "ms_median": "190.0", "of_full": "0.951", "init_ms": "10.0",
     "selection_ms": "5.0"},
    {"model": "m", "dtype": "float32", "method": BITFIT, "ms_median": "", "of_full": "", "init_ms": "",
     "selection_ms": ""},
]  # fmt: skip
PEAKS = [
    {"model": "m", "dtype": "float32", "what": FULL, "peak_bytes": "1000"},
    {"model": "m", "dtype": "float32", "what": TOOLKIT, "peak_bytes": "1500"},
    {"model": "m", "dtype": "float32", "what": OURS, "peak_bytes": "600"},
]


def row(label, peaks=PEAKS):
    found = {cells[0]: dict(zip(table9.HEADER[1:4], cells[1:4], strict=True)) for cells in table9.lines(TIMES, peaks)}
    cells = next(cells for cells in table9.lines(TIMES, peaks) if cells[0] == label)
    assert found[label]["whole step: paper"] == cells[1]
    return [cells[i : i + 3] for i in range(1, 13, 3)]


def test_the_papers_numbers_are_divided_by_its_full_fine_tuning():
    """43 % slower, 28 % more memory; the masks take 10 steps at first and 0.43 of one in each."""
    assert [part[0] for part in row("ID3")] == ["1.43", "1.28", "10.000", "0.435"]
    assert [part[0] for part in row("PaFi")] == ["1.04", "1.02", "19.913", "0.000"]
    assert [part[0] for part in row("full fine-tuning")] == ["1.00", "1.00", "0.000", "0.000"]


def test_measured_numbers_are_divided_by_the_measured_full_fine_tuning():
    assert [part[1] for part in row("ID3")] == ["3.50", "1.50", "4.500", "1.500"]  # the authors' code
    assert [part[2] for part in row("ID3")] == ["0.95", "0.60", "0.050", "0.025"]
    assert [part[2] for part in row("full fine-tuning")] == ["1.00", "1.00", "0.000", "0.000"]


def test_what_was_not_measured_is_empty():
    assert [part[1:] for part in row("BitFit")] == [["", ""]] * 4
    assert [part[0] for part in row("ID3, select_every=15")] == [""] * 4
    assert [part[2] for part in row("ID3", peaks=[])] == ["0.95", "", "0.050", "0.025"]


def test_one_table_for_each_model_and_dtype():
    other = [{**each, "model": "n"} for each in TIMES]
    text = table9.screen([*TIMES, *other], PEAKS)
    assert text.count("full fine-tuning is 1") == 2
    assert text.count("0.60") == 1  # peaks are known of the first only
    assert table9.screen([], PEAKS) == ""


def given(*words, preset="full", device="cpu"):
    parser = argparse.ArgumentParser()
    table9.add_option(parser, "memory")
    return argparse.Namespace(**vars(parser.parse_args(words)), preset=preset, device=device)


def test_the_other_half_comes_from_the_result_file(tmp_path, monkeypatch):
    monkeypatch.setattr(table9, "RESULTS", tmp_path)
    assert table9.other(given(), "memory") == []
    (tmp_path / "memory.csv").write_text("what,peak_bytes\nours,5\n")
    (tmp_path / "memory-cuda.csv").write_text("what,peak_bytes\nours,6\n")
    assert table9.other(given(), "memory") == [{"what": "ours", "peak_bytes": "5"}]
    assert table9.other(given(device="cuda"), "memory") == [{"what": "ours", "peak_bytes": "6"}]
    assert table9.other(given(preset="small"), "memory") == []
    assert table9.other(given("--with", str(tmp_path / "memory-cuda.csv"), preset="small"), "memory")
    with pytest.raises(CannotRun, match="expected a CSV file"):
        table9.other(given("--with", str(tmp_path / "none.csv")), "memory")


def test_rows_of_before_there_were_peaks_are_no_peaks():
    """The committed memory.csv may be older than the column."""
    old = [{"model": "m", "dtype": "float32", "what": FULL}]
    assert row("ID3", peaks=old)[1][2] == ""
