"""The benchmark of deltas on files: no time on a wrong result, and all cases are in the table."""

import csv

import pytest
from probing import needs_peak_counter

from benchmarks import delta_files


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(delta_files, "HIDDEN", 64)
    monkeypatch.setattr(delta_files, "WIDE", 96)
    monkeypatch.setattr(delta_files, "measure_apart", delta_files.measure)


@needs_peak_counter
def test_a_small_run(small, tmp_path):
    rows = delta_files.rows_of("bfloat16", 3e5, tmp_path)
    assert [row["what"] for row in rows] == list(delta_files.CASES)
    assert all(float(str(row["seconds"])) >= 0 for row in rows)
    assert {row["files"] for row in rows} == {delta_files.FILES}
    assert 3e5 < float(str(rows[0]["bytes"])) < 4e5
    assert not list(tmp_path.iterdir())
    assert "load, patch, save" in delta_files.screen(rows)
    delta_files.write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_a_wrong_result_is_not_timed(small, tmp_path, monkeypatch):
    monkeypatch.setattr(delta_files, "load_patch_save", lambda folder, _: delta_files.cp(folder))
    with pytest.raises(AssertionError, match="apply gives other values than its rival"):
        delta_files.rows_of("float32", 3e5, tmp_path)
