"""The suite of operations: what its rows, tables and bars say."""

import csv
from dataclasses import replace

import pytest
import torch
from opcases import BASE, RIVALS

from benchmarks import __main__ as entry
from benchmarks import cold, op_grid, op_probes, op_problem, op_report, op_topk, op_update, ops
from benchmarks.op_grid import AXES, takes
from benchmarks.op_problem import ALL, NONE, QUICK, line_bytes, make
from benchmarks.ops import MAKERS
from selective_kernels import SparseIndex, _native
from selective_kernels.testing import num_threads


@pytest.fixture(autouse=True)
def one_thread():
    with num_threads(1):
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Of a whole small run, through the command; the picture is drawn, too."""
    folder = tmp_path_factory.mktemp("ops")
    given = ["ops", "--preset", "small", "--models", "64k", "tiny", "--rounds", "2", "--dtype", "float32", "float16"]
    before = torch.get_num_threads()
    try:
        files = ["--csv", str(folder / "ops.csv"), "--plot", str(folder / "ops.png")]
        assert entry.main([*given, "--threads", "2", *files]) == 0
    finally:
        torch.set_num_threads(before)
    assert (folder / "ops.png").stat().st_size > 10_000
    with (folder / "ops.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("op", MAKERS)
def test_rows_of_an_operation(rows, op):
    mine = [row for row in rows if row["op"] == op]
    assert {row["axis"] for row in mine} == set(AXES[op]) - {"backend"}
    assert [row["what"] for row in mine if row["axis"] == "base"] == ["ours", *RIVALS[op]]
    assert {row["what"] for row in mine if row["axis"] == "isa"} <= {"ours"}
    for row in mine:
        low, middle, high = (float(row[f"ms_{which}"]) for which in ("min", "median", "max"))
        assert 0 < low <= middle <= high
        assert float(row["gb_per_s"]) == pytest.approx(int(row["bytes"]) / middle / 1e6, rel=0.01, abs=0.001)
        assert float(row["bound_gb_per_s"]) > 0
        assert all(row[key] for key in ("cpu", "torch", "commit", "utc", "isa", "scalars", "selected", "k"))
        if row["what"] == "ours":
            assert row["speedup"] == ""
        else:
            speedups = [float(row[key]) for key in ("speedup_min", "speedup", "speedup_max")]
            assert speedups == sorted(speedups)
            assert speedups[0] > 0


def test_rows_say_at_which_point_they_were_measured(rows):
    mine = [row for row in rows if row["op"] == "scan+topk" and row["what"] == "ours"]
    by_axis = {axis: [row for row in mine if row["axis"] == axis] for axis in AXES["scan+topk"]}
    assert [row["model"] for row in by_axis["N"]] == ["tiny"]
    assert [row["selected"] for row in by_axis["selected"]] == ["0", "1966"]
    assert [row["k"] for row in by_axis["k"]] == ["2", "197"]
    assert [row["dtype"] for row in by_axis["dtype"]] == ["float16"]
    assert [row["threads"] for row in by_axis["threads"]] == ["1"]
    assert {row["threads"] for row in by_axis["base"]} == {"2"}
    assert {row["isa"] for row in by_axis["isa"]} == set(_native.cpu().available_isas()) - {_native.cpu().isa()}
    assert int(by_axis["base"][0]["bytes"]) == 4 * 65536 + 4 * 197
    assert int(by_axis["dtype"][0]["bytes"]) == 2 * 65536 + 4 * 197


def test_rivals_that_take_seconds_sit_out_most_points(rows):
    for name, rounds in ((op_topk.SORT, "1"), (op_update.FOREACH, "2")):
        found = [row for row in rows if row["what"] == name]
        assert [(row["axis"], row["rounds"]) for row in found] == [("base", rounds), ("N", rounds)]


def test_bytes_count_cache_lines_once():
    """16 scalars of float32 share a line of 64 bytes, 32 of bfloat16; where lines begin is a matter of addresses."""
    index = SparseIndex.from_lists([[0, 3, 15], [], [0, 16, 40]])
    memory = torch.zeros(200)
    begin = -memory.data_ptr() % 64 // 4
    aligned, later = memory[begin : begin + 64], memory[begin + 1 : begin + 65]
    halves = memory[begin : begin + 32].view(torch.bfloat16)
    assert line_bytes([aligned, aligned, aligned], index) == (1 + 3) * 64
    assert line_bytes([later, aligned, aligned], index) == (2 + 3) * 64
    assert line_bytes([halves, halves, halves], index) == (1 + 2) * 64


def test_positions_are_those_in_tensors_end_to_end():
    index = SparseIndex.from_lists([[1], [], [0, 2]])
    tensors = [torch.empty(3), torch.empty(5), torch.empty(4)]
    assert op_problem.flat_positions(index, tensors).tolist() == [1, 8, 10]


def test_rivals_can_be_left_out():
    for rivals, names in ((QUICK, RIVALS["scan+topk"][:3]), (NONE, [])):
        made = op_topk.made(make(BASE, rivals))
        assert [each.name for each in made.contenders] == ["ours", *names]
    assert len(op_update.made(make(BASE, NONE)).contenders) == 1
    assert make(BASE).rivals == ALL


def test_nothing_is_measured_without_kernels(monkeypatch, capsys):
    monkeypatch.setattr(op_grid.dispatch, "resolve", lambda device: "reference")
    assert entry.main(["ops", "--preset", "small"]) == 2
    assert "no kernels for cpu here, nothing is timed" in capsys.readouterr().err


def test_an_unknown_model_is_refused(capsys):
    assert entry.main(["ops", "--preset", "small", "--models", "64k", "gpt-9"]) == 2
    assert "--models: expected some of 1m, 64k" in capsys.readouterr().err


def test_only_a_scan_is_measured_where_nothing_is_selected():
    nothing = replace(BASE, axis="selected", selected=0.0)
    assert [op for op in MAKERS if takes(op, nothing)] == ["scan+topk"]


def test_probes_move_what_they_say():
    clock = ops.Clock(torch.device("cpu"))
    contenders, moved = op_probes.probes(clock, 1 << 20)
    assert moved == {"read": 1 << 20, "copy": 2 << 20}
    assert [each.name for each in contenders] == ["read", "copy"]
    for each in contenders:
        assert cold.Cold(clock)(each.run) > 0


def bar_row(op, what, speedup, percent="90.00", scalars=22_713_986, axis="base"):
    return {
        "op": op, "axis": axis, "model": "m", "dtype": "float32", "what": what, "speedup": speedup,
        "percent_of_bound": percent, "scalars": scalars, "bytes": 4 * scalars,
    }  # fmt: skip


def test_bars_are_held_against_the_fastest_rival_and_one_read():
    given = [
        bar_row("scan+topk", "ours", "", "40.00"),
        bar_row("scan+topk", "a", "25.0"),
        bar_row("scan+topk", "b", "19.0"),
        bar_row("gather", "ours", ""),
        bar_row("gather", "c", "1.1"),
    ]
    found = op_report.bars(given)
    assert [(round(bar.measured, 2), bar.met) for bar in found] == [(1.25, False), (19.0, False), (1.1, True)]
    assert "speed-up over b" in str(found[1])
    assert not op_report.bars([{**row, "scalars": 1_048_576} for row in given])
    assert not op_report.bars([{**row, "axis": "k"} for row in given])


def test_the_table_has_a_line_per_point_and_a_column_per_rival(rows):
    lines = op_report.screen(rows, "gather").split("\n")
    assert all(f"x {rival}" in lines[0] for rival in RIVALS["gather"])
    assert lines[2].startswith("base: 64k, float32, 197 selected, k 1 ")
    assert len(lines) - 2 == len([row for row in rows if row["op"] == "gather" and row["what"] == "ours"])
