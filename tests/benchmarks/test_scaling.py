"""The scaling suite: problems, who fits into memory, rows worked out by hand, and a whole small run."""

import pytest
import torch
from matplotlib.image import imread

from benchmarks import __main__ as entry
from benchmarks import scaling, scaling_measure, scaling_rows, suites
from benchmarks.device import Clock
from benchmarks.gate import Mismatch
from benchmarks.harness import Timing
from benchmarks.scaling_cases import AXES, FUSED, IDLE, LAWS, PRESETS, READ, SELECTING, Point, points_of
from benchmarks.scaling_measure import Timed, who_fits

STAMP = {"cpu": "a machine", "threads": "2", "commit": "abc"}
EVERYBODY = (READ, SELECTING, IDLE, FUSED)


def point(axis="scalars", scalars=1_000_000, whats=EVERYBODY, **more):
    given = {"tensors": 64, "selected": 1500, "k": 3, "threads": 0} | more
    return Point(axis, scalars, given["tensors"], given["selected"], given["k"], given["threads"], whats)


def timing(*milliseconds):
    return Timing(tuple(each / 1e3 for each in milliseconds))


def test_lengths_of_the_tensors_add_up():
    for tensors in (1, 3, 64):
        sizes = point(scalars=1_000_003, tensors=tensors).sizes()
        assert (len(sizes), sum(sizes)) == (tensors, 1_000_003)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_axis_has_problems_that_can_be_made(preset):
    points = points_of(PRESETS[preset], 2)
    assert {each.axis for each in points} == set(AXES)
    assert {each.threads for each in points if each.axis == "threads"} == {1, 2}
    for each in points:
        assert 0 < each.selected + 20 * each.k <= each.scalars, each
        assert each.tensors <= each.scalars
    assert "threads" not in {each.axis for each in points_of(PRESETS[preset], 0)}  # on a GPU


def test_who_has_no_room_is_left_out_with_a_reason():
    one = point()  # 8 MB of parameters and gradients, 8 MB of dense moments
    assert who_fits(one, 4, 10**9) == (one, {})
    fits, notes = who_fits(one, 4, 12_000_000)
    assert fits.whats == (READ, SELECTING, IDLE)
    assert list(notes) == [FUSED]
    assert notes[FUSED].startswith("left out: needs 0.0 GB")
    nobody, notes = who_fits(one, 4, 1_000_000)
    assert nobody.whats == ()
    assert list(notes) == list(EVERYBODY)


def test_rows_by_hand():
    found = Timed({READ: timing(4, 5), SELECTING: timing(2, 5), IDLE: timing(1, 1), FUSED: timing(8, 10)}, {}, True)
    rows = {row["what"]: row for row in scaling_rows.time_rows(point(), "float32", 4, found, STAMP)}
    mine = rows[SELECTING]
    assert (mine["ms_median"], mine["ms_min"], mine["ms_max"], mine["rounds"]) == ("3.5000", "2.0000", "5.0000", 2)
    assert mine["ratio_to_read"] == "0.750"  # the median of 2 / 4 and 5 / 5
    assert mine["bytes_moved"] == 4_000_000  # gradients
    assert mine["percent_of_read_bandwidth"] == f"{50 / 0.75:.1f}"
    assert mine["speedup_over_adamw_fused"] == "3.00"
    assert rows[READ]["bytes_moved"] == 8_000_000
    assert rows[IDLE]["bytes_moved"] == ""
    assert rows[FUSED]["bytes_moved"] == 28_000_000
    assert {row["checked"] for row in rows.values()} == {"values"}
    on_gpu = scaling_rows.time_rows(point(), "float32", 4, found, STAMP, "cuda")[1]
    assert on_gpu["bytes_moved"] == 8_000_000
    threads = scaling_rows.time_rows(point("threads", threads=1), "float32", 4, found, STAMP)
    assert {row["threads"] for row in threads} == {"1"}


def test_exponents_come_from_the_range_of_their_law():
    rows = []
    for scalars, middle in ((10**6, 7.0), (10**7, 3.0), (10**8, 30.0), (10**9, 300.0)):  # proportional from 1e7 on
        found = Timed({SELECTING: timing(middle, middle, middle)})
        rows += scaling_rows.time_rows(point(scalars=scalars, whats=(SELECTING,)), "float32", 4, found, STAMP)
    (law,) = scaling_rows.law_rows(rows, "float32", STAMP)
    assert (law["axis"], law["what"], law["points"]) == ("scalars", SELECTING, 3)
    assert (law["exponent"], law["exponent_error"], law["expected"]) == ("1.000", "0.000", "1")
    assert (law["x_from"], law["x_to"]) == (10**7, 10**9)
    assert len({tuple(row) for row in (*rows, law)}) == 1  # one table
    assert "1.000 ± 0.000" in scaling_rows.screen([*rows, law])


def test_laws_name_axes_and_contenders_that_exist():
    for law in LAWS:
        assert law.axis in AXES
        assert law.what in EVERYBODY
        assert law.low < law.high


def test_a_step_that_selects_too_few_stops_the_run(monkeypatch):
    after = scaling_measure.rivals.after
    monkeypatch.setattr(
        scaling_measure.rivals, "after", lambda params, first, share, steps: after(params, first, share + 1, steps)
    )
    monkeypatch.setattr(scaling_measure, "CHECKED", 0)
    with pytest.raises(Mismatch, match="selecting: expected 1506 selected scalars, got 1508"):
        scaling_measure.measure(
            point(scalars=20_000, whats=(SELECTING,)), torch.float32, Clock(torch.device("cpu")), rounds=1
        )


def test_a_whole_run(tmp_path, capsys):
    paths = ["--csv", str(tmp_path / "s.csv"), "--plot", str(tmp_path / "s.png")]
    given = ["--preset", "small", "--largest", "1000000", "--rounds", "1", "--axes", "scalars", "tensors", "threads"]
    assert entry.main(["scaling", *given, *paths]) == 0
    rows = suites.read_csv(tmp_path / "s.csv")
    times = [row for row in rows if row["kind"] == "time"]
    assert {row["axis"] for row in times} == {"scalars", "tensors", "threads"}
    assert all(float(row["ms_median"]) > 0 and row["checked"] == "values" for row in times)
    laws = {(row["axis"], row["what"]) for row in rows if row["kind"] == "exponent"}
    assert ("tensors", SELECTING) in laws
    assert "Time goes as x^p" in capsys.readouterr().out
    assert len(imread(tmp_path / "s.png").shape) == 3


def test_models_are_refused(capsys):
    assert entry.main(["scaling", "--preset", "small", "--models", "bert-base"]) == 2
    assert "--models: expected none" in capsys.readouterr().err


def test_nothing_to_draw_is_no_picture(tmp_path):
    scaling.plot([{"dtype": "float32", "axis": "k", "ms_median": ""}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
