"""The suite of operations: no time of a wrong result, whoever gives it; what its rows, tables and bars say."""

import csv
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as entry
from benchmarks import op_grid, op_indexing, op_merging, op_probes, op_problem, op_report, op_topk, op_update, ops
from benchmarks.gate import Mismatch
from benchmarks.op_grid import AXES, takes
from benchmarks.op_problem import ALL, NONE, QUICK, Point, line_bytes, make
from benchmarks.ops import MAKERS
from selective_kernels import SparseIndex, _native, dispatch, topk
from selective_kernels.testing import num_threads

BASE = Point("base", "64k", "float32", 0.003, 1e-3, 1, "", "cpu")
RIVALS = {
    "scan+topk": [op_topk.TOPK, op_topk.BY_TENSOR, op_topk.SORT],
    "update": [op_update.FUSED, op_update.FOREACH, op_update.MASKED],
    "merge": [op_merging.SORT, op_merging.SEARCH],
    "gather": [op_indexing.SELECT, op_indexing.INDEX, op_indexing.FLAT],
    "scatter": [op_indexing.COPY, op_indexing.SET, op_indexing.FLAT_COPY],
    "swap": [op_indexing.COPY, op_indexing.SET, op_indexing.FLAT_COPY],
}


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
    assert int(by_axis["base"][0]["bytes"]) == 2 * 4 * 65536 + 4 * 197
    assert int(by_axis["dtype"][0]["bytes"]) == 2 * 2 * 65536 + 4 * 197


def test_rivals_that_take_seconds_sit_out_most_points(rows):
    for name, rounds in ((op_topk.SORT, "1"), (op_update.FOREACH, "2")):
        found = [row for row in rows if row["what"] == name]
        assert [(row["axis"], row["rounds"]) for row in found] == [("base", rounds), ("N", rounds)]


@pytest.mark.parametrize("op", MAKERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_results_pass(op, dtype):
    made = MAKERS[op](make(replace(BASE, dtype=dtype)))
    made.check()
    alone = op == "update" and dtype == "float16"  # torch's moments cannot hold squares of gradients there
    assert [each.name for each in made.contenders] == ["ours"] + ([] if alone else RIVALS[op])


@pytest.mark.skipif(bool(dispatch.unavailable("triton", "cpu")), reason="needs Triton's interpreter")
@pytest.mark.parametrize("op", MAKERS)
def test_the_kernels_for_gpus_go_through_the_same_checks(op):
    """In the interpreter, on CPU tensors; the rivals are the same PyTorch calls on every device."""
    made = MAKERS[op](make(replace(BASE, model="tiny", dtype="bfloat16", selected=0.03, backend="triton"), NONE))
    made.check()
    assert made.nbytes > 0


@pytest.mark.parametrize("op", MAKERS)
def test_what_was_timed_can_be_timed_again(op):
    """Runs leave a problem as the next run needs it: three rounds, then another check."""
    problem = make(BASE)
    made = MAKERS[op](problem)
    for number in range(3):
        for contender in made.contenders:
            contender.prepare(number)
            contender.run()
    MAKERS[op](problem).check()


def moved(index):
    """Another index of as many entries: the first entry of the first tensor that has one lies elsewhere."""
    offsets = index.valid.clone()
    offsets[0] = offsets[0] - 1 if offsets[0] > 0 else offsets[0] + 1
    return SparseIndex(offsets, index.starts)


def broken_scan(real):
    class Wrong:
        def __init__(self, *given, **named):
            self._scan = real(*given, **named)

        def add(self, *given):
            self._scan.add(*given)

        def finalize(self):
            return moved(self._scan.finalize())

    return Wrong


def one_off(real):
    """The operation, then one entry of what it wrote is another one."""

    def wrong(tensors, index, *given, backend="auto", **named):
        found = real(tensors, index, *given, backend=backend, **named)
        if backend != "reference":
            written = found if found is not None else tensors.params[0].view(-1)
            written[0] += 1
        return found

    return wrong


def late_adam(real):
    def wrong(update, *given, backend):
        real(update if backend == "reference" else replace(update, clip=0.5, steps=[9] * len(update.steps)), *given)

    return wrong


def careless_merge(real):
    def wrong(index, new, arrays, *, backend):
        real(index, new, arrays if backend == "reference" else [(data, None) for data, _ in arrays])

    return wrong


BROKEN = {
    "scan+topk": (op_topk, "scan", broken_scan, "not those of the best scores"),
    "update": (op_update, "adam_", late_adam, "update, ours"),
    "merge": (op_merging, "merge_", careless_merge, "merge, ours"),
    "gather": (op_indexing, "gather", one_off, "gather, ours"),
    "scatter": (op_indexing, "scatter_", one_off, "scatter, ours"),
    "swap": (op_indexing, "swap_", one_off, "swap, ours"),
}


@pytest.mark.parametrize("op", MAKERS)
def test_a_wrong_kernel_is_reported_instead_of_times(monkeypatch, tmp_path, capsys, op):
    module, name, breaking, words = BROKEN[op]
    monkeypatch.setattr(module, name, breaking(getattr(module, name)))
    path = tmp_path / "ops.csv"
    given = ["ops", "--preset", "small", "--models", "64k", "--axes", "base", "--ops", op, "--csv", str(path)]
    assert entry.main(given) == 1
    assert words in capsys.readouterr().err
    assert not path.exists()


def test_an_update_that_touches_others_is_wrong(monkeypatch):
    real = op_update.adam_

    def touching(update, *given, backend):
        real(update, *given, backend=backend)
        if backend == "cpu":
            update.table.params[0].view(-1)[0] += 1  # not selected, see below

    problem = make(BASE)
    assert 0 not in problem.index.of(0)
    monkeypatch.setattr(op_update, "adam_", touching)
    with pytest.raises(Mismatch, match="without being selected"):
        op_update.made(problem).check()


def unscored(params, grads, out):
    for scores, grad in zip(out, grads, strict=True):
        scores.copy_(grad)


def test_a_scan_rival_that_ranks_something_else_is_wrong(monkeypatch):
    monkeypatch.setattr(op_topk, "write_scores", unscored)
    with pytest.raises(Mismatch, match=op_topk.TOPK):
        op_topk.made(make(BASE)).check()


def test_an_update_rival_that_steps_elsewhere_is_wrong(monkeypatch):
    monkeypatch.setitem(op_update.RIVALS, op_update.FOREACH, {"foreach": True, "maximize": True})
    with pytest.raises(Mismatch, match=f"update, {op_update.FOREACH}"):
        op_update.made(make(BASE)).check()


def test_a_merge_rival_that_keeps_another_order_is_wrong(monkeypatch):
    sort = op_merging.by_sorting
    monkeypatch.setattr(op_merging, "by_searching", lambda *given: [each.flip(0) for each in sort(*given)])
    with pytest.raises(Mismatch, match=f"merge, {op_merging.SEARCH}"):
        op_merging.made(make(BASE)).check()


@pytest.mark.parametrize("op", ["gather", "scatter", "swap"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_indexing_rival_that_does_nothing_is_wrong(monkeypatch, op, number):
    made, real, way = MAKERS[op](make(BASE)), op_indexing.check_ways, RIVALS[op][number]

    def forgetful(name, ways, expected):
        real(name, [each._replace(run=lambda: None) if each.name == way else each for each in ways], expected)

    monkeypatch.setattr(op_indexing, "check_ways", forgetful)
    with pytest.raises(Mismatch, match=f"{op}, {way}"):
        made.check()


@pytest.mark.parametrize(
    ("scores", "k", "found", "right"),
    [
        ([1, 3, 2, 3], 2, [1, 3], True),
        ([1, 3, 2, 3], 2, [1, 2], False),
        ([2, 2, 2, 2], 2, [0, 1], True),  # ties go to the lower position
        ([2, 2, 2, 2], 2, [0, 2], False),
        ([2, 2, 3, 2], 2, [0, 2], True),
        ([2, 2, 3, 2], 2, [1, 2], False),
        ([0, 5, 0], 2, [1], True),  # nothing else may be selected
        ([0, 5, 0], 2, [0, 1], False),
        ([0, 5, 0], 1, [0], False),
        ([4, 5, 6], 2, [2, 1], False),
        ([4, 5, 6], 2, [2, 2], False),
        ([4, 5, 6], 2, [2], False),
        ([0, 0], 1, [], True),
    ],
)
def test_the_gate_of_the_scan_knows_the_best(scores, k, found, right):
    given = torch.tensor(found, dtype=torch.int64), torch.tensor(scores, dtype=torch.float32), k
    if right:
        op_topk.verify(*given)
    else:
        with pytest.raises(Mismatch):
            op_topk.verify(*given)


def test_scores_of_the_rivals_are_those_of_the_reference():
    problem = make(BASE)
    sizes = [param.numel() for param in problem.params]
    out = [torch.empty_like(param) for param in problem.params]
    op_topk.write_scores(problem.params, problem.grads, out)
    best = op_topk.best_by_tensor(torch.cat([each.view(-1) for each in out]), sizes, 50)
    exact = topk(problem.params, problem.grads, 50, op_problem.SCORE, backend="reference")
    assert best.tolist() == op_problem.flat_positions(exact, problem.params).tolist()


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
    for rivals, names in ((QUICK, RIVALS["scan+topk"][:2]), (NONE, [])):
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
        assert op_probes.Cold(clock)(each.run) > 0


def bar_row(op, what, speedup, percent="90.00", scalars=22_713_986, axis="base"):
    return {
        "op": op, "axis": axis, "model": "m", "dtype": "float32", "what": what, "speedup": speedup,
        "percent_of_bound": percent, "scalars": scalars,
    }  # fmt: skip


def test_bars_are_held_against_the_fastest_rival_and_one_read():
    given = [
        bar_row("scan+topk", "ours", "", "80.00"),
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
