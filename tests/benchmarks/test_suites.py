"""The one entry to all suites: its help, its common options, what it writes, and what its exit codes mean."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import RESULTS, ROOT, bars, suites
from benchmarks import __main__ as entry
from benchmarks.bars import Bar, format_bars
from benchmarks.gate import Mismatch
from benchmarks.suites import SUITES, CannotRun

COMMON = ("--preset", "--device", "--dtype", "--models", "--threads", "--rounds", "--csv", "--plot")
ROWS = [{"what": "ours", "ms": 1.5}, {"what": "rival", "ms": 3.0}]


def help_of(capsys, *given):
    with pytest.raises(SystemExit) as ended:
        entry.main([*given, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_lists_every_suite_with_its_line(capsys):
    shown = help_of(capsys)
    for name in SUITES:
        assert suites.line_of(name), name
        assert suites.line_of(name) == suites.load(name).LINE
        assert f"{name} {suites.line_of(name)}" in shown


@pytest.mark.parametrize("name", SUITES)
def test_help_of_a_suite_shows_common_options(capsys, name):
    shown = help_of(capsys, name)
    assert all(option in shown for option in COMMON)
    assert suites.line_of(name) in shown


def test_help_imports_no_suite_and_no_torch():
    code = "import sys, benchmarks.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", *(f"benchmarks.{name}" for name in SUITES)} & set(done.stdout.split())


@pytest.fixture
def pretended(monkeypatch):
    """A suite that measures nothing; what it was given, and what it drew, can be looked at."""
    seen = SimpleNamespace(options=None, drawn=[], error=None)

    def run(options):
        seen.options, seen.threads = options, torch.get_num_threads()
        if seen.error is not None:
            raise seen.error
        return ROWS

    def plot(rows, path):
        seen.drawn.append((rows, path))

    suite = SimpleNamespace(LINE="nothing", add_options=lambda parser: None, run=run, plot=plot)
    monkeypatch.setattr(suites, "load", lambda name: suite)
    return seen


def test_rows_are_written_and_drawn_where_one_says(pretended, tmp_path, capsys):
    table, picture = tmp_path / "new" / "x.csv", tmp_path / "x.png"
    assert entry.main(["ops", "--preset", "small", "--csv", str(table), "--plot", str(picture)]) == 0
    expected = [{"what": "ours", "ms": "1.5"}, {"what": "rival", "ms": "3.0"}]
    with table.open(newline="") as file:
        assert list(csv.DictReader(file)) == expected
    assert pretended.drawn == [(expected, picture)]
    assert f"written: {table}" in capsys.readouterr().out


def test_a_small_run_writes_nothing_by_itself(pretended, monkeypatch, tmp_path):
    monkeypatch.setattr(suites, "RESULTS", tmp_path)
    assert entry.main(["step", "--preset", "small"]) == 0
    assert not list(tmp_path.iterdir())
    assert not pretended.drawn


def test_a_full_run_fills_the_result_folder(pretended, monkeypatch, tmp_path):
    monkeypatch.setattr(suites, "RESULTS", tmp_path)
    assert entry.main(["step"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step.csv"]
    assert pretended.drawn[0][1] == tmp_path / "step.png"
    options = SimpleNamespace(csv=None, plot=None, preset="full", device="cuda", narrowed=False)
    assert suites.result_path("step", options, "csv") == tmp_path / "step-cuda.csv"


@pytest.mark.parametrize("more", [["--models", "a"], ["--dtype", "float32"], ["--rounds", "3"], ["--threads", "1"]])
def test_a_part_of_a_suite_replaces_no_results(pretended, monkeypatch, tmp_path, more):
    monkeypatch.setattr(suites, "RESULTS", tmp_path)
    before = torch.get_num_threads()
    try:
        assert entry.main(["step", *more]) == 0
    finally:
        torch.set_num_threads(before)
    assert not list(tmp_path.iterdir())
    assert not pretended.drawn


def test_options_reach_the_suite(pretended):
    before = torch.get_num_threads()
    try:
        given = "memory --preset small --dtype bfloat16 float16 --models a b --threads 1 --rounds 4"
        assert entry.main(given.split()) == 0
    finally:
        torch.set_num_threads(before)
    options = pretended.options
    assert (options.dtype, options.models, options.rounds) == (["bfloat16", "float16"], ["a", "b"], 4)
    assert pretended.threads == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Mismatch("tensor 3 differs"), 1, "WRONG RESULT, no time is reported: tensor 3 differs"),
        (CannotRun("no such package"), 2, "python -m benchmarks ops: no such package"),
    ],
)
def test_a_run_that_cannot_be_trusted_writes_nothing(pretended, tmp_path, capsys, error, code, words):
    pretended.error = error
    assert entry.main(["ops", "--csv", str(tmp_path / "x.csv"), "--plot", str(tmp_path / "x.png")]) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert not pretended.drawn


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["ops", "--threads", "0"], "expected an integer >= 1, got 0"),
        (["ops", "--dtype", "float64"], "invalid choice: 'float64'"),
        (["ops", "--preset", "huge"], "invalid choice: 'huge'"),
        (["speed"], "invalid choice: 'speed'"),
        ([], "SUITE"),
    ],
)
def test_wrong_words_are_refused(capsys, given, words):
    with pytest.raises(SystemExit) as ended:
        entry.main(given)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_said(pretended, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert entry.main(["ops", "--device", "cuda"]) == 2
    assert "torch finds no CUDA GPU here" in capsys.readouterr().err
    assert pretended.options is None


def test_pictures_are_drawn_again_from_the_files(pretended, tmp_path, capsys):
    for name in ("ops.csv", "step.csv", "step-cuda.csv"):
        (tmp_path / name).write_text(f"what\n{name}\n")
    assert entry.main(["plot", "--results", str(tmp_path)]) == 0
    drawn = [(path.name, rows[0]["what"]) for rows, path in pretended.drawn]
    assert drawn == [(f"{name}.png", f"{name}.csv") for name in ("ops", "step", "step-cuda")]
    assert entry.main(["plot", "memory", "--results", str(tmp_path)]) == 2
    assert "expected memory.csv, got no such file" in capsys.readouterr().err
    assert entry.main(["plot", "speed"]) == 2
    assert "SUITE: expected some of ops, step" in capsys.readouterr().err


def test_results_are_beside_the_suites():
    assert RESULTS == ROOT / "benchmarks" / "results"


def test_a_missed_bar_is_printed_first():
    held, missed = Bar("read", 1.15, 1.2, unit=" x"), Bar("over fused", 1.9, 2.0, least=True, unit=" x")
    assert (held.met, missed.met) == (True, False)
    assert format_bars([held, missed]).split("\n") == [
        "Bars: 1 of 2 met",
        "over fused: 1.9 x, bar >= 2 x: NOT MET",
        "read: 1.15 x, bar <= 1.2 x: met",
    ]


@pytest.mark.parametrize("least", [True, False])
def test_bars_are_met_at_their_limit_and_never_by_nan(least):
    assert bars.Bar("x", 2.0, 2.0, least).met
    assert not bars.Bar("x", float("nan"), 2.0, least).met
