"""The step suite: who is measured how often, what its rows and bars say, and a whole run on tiny shapes."""

import argparse

import pytest
import torch

from benchmarks import __main__ as entry
from benchmarks import gate, step, step_measure, step_rows, suites
from benchmarks.harness import Timing
from benchmarks.step_cases import (
    COMPILED,
    FOREACH,
    FUSED,
    IDLE,
    IN_PLACE,
    MASKING,
    OURS,
    READ,
    RIVALS,
    TOOLKIT,
    Case,
    budgets_of,
    case_of,
    moved,
)
from benchmarks.step_measure import Measured
from selective_kernels.testing import num_threads

STAMP = {"cpu": "CPU X", "threads": "2", "torch": "2.13", "isa": "avx512", "commit": "abc"}


@pytest.fixture(autouse=True)
def one_thread():
    with num_threads(1):
        yield


def timing(*milliseconds):
    return Timing(tuple(each / 1e3 for each in milliseconds))


def measured(**changed):
    """Times that keep every bar, but for what is changed; the machine is three times slower with the toolkit."""
    times = {"early": 11.0, "middle": 11.5, "last": 11.9, IDLE: 1.0, READ: 10.0} | changed
    first = {name: timing(each, each, 2 * each) for name, each in times.items()}
    together = {**first, FUSED: timing(25, 25, 50), FOREACH: timing(100)}
    slow = {name: timing(each) for name, each in ((MASKING, 500), (IN_PLACE, 400), (COMPILED, 250))}
    again = {name: timing(3 * each) for name, each in times.items()}
    sittings = [together, *({**first, name: each} for name, each in slow.items())]
    return Measured([*sittings, {**again, TOOLKIT: timing(4500)}])


def case(model="bert-base", dtype="float32", budget=320_000, **more):
    return Case(model, dtype, budget, 20, more)


def bars(found, **more):
    rows = step_rows.rows_of(case(**more), found, STAMP)
    return {bar.what.split(": ")[1]: bar for bar in step_rows.bars(rows)}


def test_bars_hold_for_the_worst_of_the_selecting_steps():
    found = bars(measured())
    rivals = (FUSED, MASKING, IN_PLACE, COMPILED, TOOLKIT)
    assert set(found) == {"one read", *(f"faster than {each}" for each in rivals)}
    assert all(bar.met and "last" in bar.what for bar in found.values())
    assert found["one read"].measured == pytest.approx(1.19)
    assert found[f"faster than {FUSED}"].measured == pytest.approx(25 / 11.9, abs=0.01)
    assert found[f"faster than {TOOLKIT}"].measured == pytest.approx(1500 / 11.9, abs=0.01)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"early": 12.1}, ["one read"]),
        ({"last": 12.6}, ["one read", f"faster than {FUSED}", f"faster than {COMPILED}"]),
        ({"middle": 20.5}, ["one read", *(f"faster than {each}" for each in (FUSED, IN_PLACE, COMPILED, TOOLKIT))]),
        ({IDLE: 900.0}, []),
    ],
)
def test_bars_are_missed(changed, missed):
    found = bars(measured(**changed))
    assert [what for what, bar in found.items() if not bar.met] == missed
    assert all("NOT MET" in str(found[what]) for what in missed)


def test_which_bars_there_are():
    assert bars(measured(), model="tiny", budget=10) == {}  # below 20 million scalars
    for model in ("minilm-l6", "t5-small", "smollm2-135m", "deberta-v3-base"):
        assert len(bars(measured(), model=model, budget=budgets_of(model)[0])) == 6
    assert bars(measured(), budget=123) == {}
    assert {what: bar.limit for what, bar in bars(measured(), budget=1_000_000).items()} == {"one read": 1.5}
    assert {what: bar.limit for what, bar in bars(measured(), dtype="bfloat16").items()} == {"one read": 1.4}
    assert bars(measured(), model="minilm-l6", dtype="bfloat16", budget=68_142) == {}
    alone = Measured([{name: each for name, each in measured().sittings[0].items() if name not in (FUSED, FOREACH)}])
    missing = bars(alone)
    assert {what for what, bar in missing.items() if not bar.missing} == {"one read"}
    assert set(missing) == set(bars(measured()))
    assert "NOT MEASURED, no row" in str(missing[f"faster than {FUSED}"])
    unavailable = measured()
    del unavailable.sittings[3]
    unavailable.notes = {COMPILED: "unavailable: no compiler"}
    left = bars(unavailable)[f"faster than {COMPILED}"]
    assert not left.met
    assert "bar >= 20 x: NOT MEASURED, unavailable: no compiler" in str(left)


def test_budgets_are_03_percent_and_the_papers():
    assert budgets_of("bert-base") == (320_000, 1_000_000)
    assert budgets_of("minilm-l6") == (68_142,)
    assert budgets_of("tiny") == (10,)


def test_rows_hold_times_bytes_and_speed_ups():
    one = case(**{COMPILED: "unavailable: no compiler"})
    found = measured()
    del found.sittings[3]
    found.notes = dict(one.left_out)
    rows = {row["what"]: row for row in step_rows.rows_of(one, found, STAMP)}
    assert list(rows) == [READ, *(f"ours, {name}" for name in OURS), *RIVALS]
    assert len({tuple(row) for row in rows.values()}) == 1
    scalars = 109_483_778
    middle = rows["ours, middle"]
    times = (middle["ms_median"], middle["ms_min"], middle["ms_max"])
    assert (middle["rounds"], times) == (3, ("11.500", "11.500", "23.000"))
    assert middle["ratio_to_read"] == "1.150"
    assert middle["bytes_moved"] == 4 * scalars
    assert middle["gb_per_s"] == f"{4 * scalars / 11.5e-3 / 1e9:.2f}"
    assert middle["percent_of_read_bandwidth"] == f"{50 / 1.15:.1f}"
    assert middle["speedup_over_adamw_fused"] == "2.17"
    assert middle["speedup_over_adamw_foreach"] == "8.70"
    assert middle["speedup_over_dense_masking_in_place"] == "34.78"
    assert middle["speedup_over_dense_masking_compiled"] == ""
    assert middle["speedup_over_selective-optimizers"] == "130.43"  # within the slow sitting
    assert rows[f"ours, {IDLE}"]["bytes_moved"] == rows[f"ours, {IDLE}"]["gb_per_s"] == ""
    assert rows[FUSED]["percent_of_read_bandwidth"] == f"{100 * 3.5 / 2.5:.1f}"
    assert rows[TOOLKIT]["ratio_to_read"] == "150.000"
    assert rows[FUSED]["speedup_over_adamw_fused"] == ""
    compiled = rows[COMPILED]
    assert (compiled["rounds"], compiled["ms_median"], compiled["note"]) == (0, "", "unavailable: no compiler")
    screen = step_rows.screen(list(rows.values()))
    assert "dense masking compiled: unavailable: no compiler" in screen
    assert any(line.startswith("ours, middle") and "130.43" in line for line in screen.splitlines())


def test_bytes_of_each_rival():
    """Per scalar in float32 and bfloat16, counted by hand from what is read and written."""
    wide, narrow = case(), case(dtype="bfloat16")
    counts = {READ: (8, 4), "last": (4, 2), FUSED: (28, 14), FOREACH: (28, 14), IDLE: (0, 0), TOOLKIT: (0, 0)}
    counts |= {MASKING: (62, 40), IN_PLACE: (46, 24), COMPILED: (38, 20)}
    for name, (four, two) in counts.items():
        assert moved(wide, name) == four * wide.scalars
        assert moved(narrow, name) == two * narrow.scalars


def test_the_last_steps_fit_into_the_run():
    """However many rounds slow rivals get, ours still selects its share in each of them."""
    one = case()
    assert one.expected("last", one.longest + 1) == one.budget
    assert one.expected("last", one.longest) < one.budget
    assert one.expected("middle", 1) == one.budget // 2


def test_who_is_left_out_and_why():
    slow = case_of("bert-base", "float32", 320_000, 20, "", with_slow=True)
    assert slow.slow == [MASKING, IN_PLACE, COMPILED, TOOLKIT]
    assert case_of("t5-small", "float32", 180_000, 20, "", with_slow=True).slow == [MASKING, IN_PLACE, COMPILED]
    assert case_of("bert-base", "bfloat16", 320_000, 20, "no", with_slow=True).slow == [MASKING, IN_PLACE]
    assert case_of("bert-base", "float32", 1_000_000, 20, "", with_slow=False).slow == []
    few = case_of("tiny", "float32", 10, 20, "", with_slow=True)
    assert few.left_out == {TOOLKIT: "left out: it refuses steps that select nothing"}


def options(*given):
    return entry.parser_for(["step"]).parse_args(["step", *given])


def test_the_presets():
    full = step.cases_of(options(), {"float32": "", "bfloat16": ""})
    assert [(each.model, each.dtype, each.budget) for each in full][:6] == [
        ("minilm-l6", "float32", 68_142),
        ("minilm-l6", "bfloat16", 68_142),
        ("bert-base", "float32", 320_000),
        ("bert-base", "float32", 1_000_000),
        ("bert-base", "bfloat16", 320_000),
        ("bert-base", "bfloat16", 1_000_000),
    ]
    assert [(each.model, each.dtype) for each in full][6:] == [
        (model, "float32") for model in ("deberta-v3-base", "t5-small", "smollm2-135m")
    ]
    small = step.cases_of(options("--preset", "small", "--rounds", "3", "--no-toolkit"), {"float32": ""})
    assert [(each.model, each.rounds, each.left_out[TOOLKIT]) for each in small] == [
        ("minilm-l6", 3, "left out: --no-toolkit")
    ]
    with pytest.raises(suites.CannotRun, match=r"--models: expected some of bert-base, .*, got gpt"):
        step.cases_of(options("--models", "tiny", "gpt"), {"float32": ""})
    with pytest.raises(suites.CannotRun, match="--budget: expected 1 to 3362 scalars of tiny, got 4000"):
        step.cases_of(options("--models", "tiny", "--budget", "4000"), {"float32": ""})


def test_no_memory_is_a_row_and_not_a_crash(monkeypatch):
    monkeypatch.setattr(step, "available_bytes", lambda: 1_000_000_000)
    found = step._measured(case(), "")
    rows = step_rows.rows_of(case(), found, STAMP)
    assert {row["note"] for row in rows} == {"left out: needs 6.6 GB, 1.0 GB are free"}
    assert {row["rounds"] for row in rows} == {0}
    assert step_rows.bars(rows) == []


def run_tiny(tmp_path, *more):
    paths = ("--csv", str(tmp_path / "step.csv"), "--plot", str(tmp_path / "step.png"))
    given = ("--preset", "small", "--models", "tiny", "--budget", "1500", "--rounds", "2", "--compiler", "eager")
    return entry.main(["step", *given, *paths, *more])


def test_a_whole_run(tmp_path, capsys):
    assert run_tiny(tmp_path, "--dtype", "float32", "bfloat16") == 0
    rows = suites.read_csv(tmp_path / "step.csv")
    assert [(row["dtype"], row["what"]) for row in rows] == [
        (dtype, what) for dtype in ("float32", "bfloat16") for what in (READ, *(f"ours, {o}" for o in OURS), *RIVALS)
    ]
    for row in rows:
        if (row["what"], row["dtype"]) == (TOOLKIT, "bfloat16"):
            assert row["note"].startswith("left out: seconds per step")
            continue
        assert 0 < float(row["ms_min"]) <= float(row["ms_median"]) <= float(row["ms_max"])
        assert int(row["rounds"]) >= 2
        ours = row["what"].startswith("ours")
        known = [rival for rival in RIVALS if row["dtype"] == "float32" or rival != TOOLKIT]
        assert all(bool(row[step_rows.column(rival)]) == (ours and rival in known) for rival in RIVALS)
    compiled = [row["note"] for row in rows if row["what"] == COMPILED]
    assert all(note.startswith("compiled in") for note in compiled)
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "checked: 751 scalars" in printed
    assert "Bars: 0 of 0 met" in printed


def test_a_compiler_that_fails_is_a_reason(tmp_path):
    assert run_tiny(tmp_path, "--no-toolkit", "--compiler", "no-such-compiler") == 0
    rows = {row["what"]: row for row in suites.read_csv(tmp_path / "step.csv")}
    assert rows[COMPILED]["note"].startswith("unavailable: ")
    assert rows[COMPILED]["ms_median"] == rows["ours, middle"]["speedup_over_dense_masking_compiled"] == ""
    assert float(rows["ours, middle"]["speedup_over_dense_masking_in_place"]) > 0


def test_a_wrong_rival_stops_the_run(tmp_path, monkeypatch, capsys):
    class Wrong(step_measure.MASKINGS[MASKING]):
        def _best(self, k):
            return super()._best(k + 1)[1:]

    monkeypatch.setattr(step_measure, "MASKINGS", {MASKING: Wrong})
    assert run_tiny(tmp_path) == 1
    assert "WRONG RESULT" in capsys.readouterr().err
    assert not (tmp_path / "step.csv").exists()


def test_work_that_was_not_done_is_noticed():
    """A step that skips, say, must not pass for a fast one."""
    one = case_of("tiny", "float32", 1500, 2, "", with_slow=False)
    base = step_measure.random_tensors(step_measure.MODELS["tiny"], 0.04, torch.float32, 0)
    grads = [[torch.full_like(param, float("nan")) for param in base]]
    ours = step_measure._started(one, "middle", base, grads)
    ours.contender.prepare(0)
    with pytest.warns(UserWarning, match="inf or NaN"):
        ours.contender.run()
    with pytest.raises(gate.Mismatch, match="middle: expected 750 selected scalars after 1 steps, got 0"):
        step_measure._check_runs(one, [ours])


def test_on_a_gpu_the_gpu_benchmark_runs_with_the_models_of_the_suite(monkeypatch):
    asked = []
    monkeypatch.setattr(step.gpu_step, "measure_all", lambda given: asked.append(given) or [{"what": 1}])
    given = options("--device", "cuda", "--dtype", "bfloat16", "--rounds", "4", "--budget", "500")
    assert step.run(given) == [{"what": 1}]
    (one,) = asked
    assert isinstance(one, argparse.Namespace)
    assert {"qwen1.5b", "qwen7b", "minilm", "bert", "deberta", "t5", "smollm2"} == set(one.shapes)
    assert (one.dtype, one.rounds, one.budgets, one.device.type) == (["bfloat16"], 4, ["500"], "cuda")
    assert step.gpu_step.Report(one, None, {})._paths == (None, None)
    with pytest.raises(suites.CannotRun, match="--models: expected some of deberta-v3-base"):
        step.run(options("--device", "cuda", "--models", "gpt"))


def test_a_picture_of_gpu_rows(tmp_path):
    row = {"dtype": "bfloat16", "model": "qwen2.5-7b", "step": "middle", "speedup_over_fused": "3.10", **STAMP}
    other = {**row, "model": "minilm-l6", "speedup_over_fused": ""}
    step.plot([{**row, "step": "early"}, row, other], tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
