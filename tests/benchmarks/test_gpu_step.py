"""The GPU benchmark, tried on the CPU: what it checks, what it writes, and that nobody is left out in silence."""

import csv
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import ROOT, device, gpu_cases, gpu_measure, gpu_parts, gpu_rows, gpu_step, rivals
from benchmarks.bandwidth import Bandwidth
from benchmarks.gpu_cases import COMPILED, FOREACH, FUSED, IN_PLACE, MASKING, OURS, TOOLKIT, Case, Entry
from benchmarks.gpu_measure import Measured
from benchmarks.harness import Timing

TINY = [
    "--device",
    "cpu",
    "--shapes",
    "tiny",
    "--rounds",
    "2",
    "--alone",
    "1",
    "--budgets",
    "40",
    "--compiler",
    "eager",
]
SELECTING = ["early", "middle", "last"]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(tmp_path, *more):
    return gpu_step.main([*TINY, *more, "--csv", str(tmp_path / "gpu.csv"), "--parts", str(tmp_path / "parts.csv")])


def test_everybody_has_a_row_with_a_time(tmp_path, capsys):
    assert run(tmp_path, "--budgets", "1500,0.1%") == 0
    found = rows(tmp_path / "gpu.csv")
    ours = [(row["budget"], row["step"]) for row in found if row["method"] == OURS]
    assert ours == [(budget, step) for budget in ("1500", "3") for step in [*SELECTING, "budget spent"]]
    others = [(row["method"], row["budget"]) for row in found if row["method"] != OURS]
    assert others == [
        (FUSED, ""),
        *((way, "1500") for way in (MASKING, IN_PLACE, COMPILED)),
        (FOREACH, ""),
        (TOOLKIT, "1500"),
    ]
    for row in found:
        assert 0 < float(row["ms_min"]) <= float(row["ms_median"]) <= float(row["ms_max"])
        assert float(row["alone_ms_median"]) > 0
        ratio = float(row["ms_median"]) / float(row["read_ms"])
        assert float(row["ratio_to_read"]) == pytest.approx(ratio, rel=0.2, abs=0.01)  # read_ms has few digits here
        assert int(row["rounds"]) == 2
        assert row["commit"]
    middle = next(row for row in found if row["step"] == "middle")
    assert float(middle["ratio_to_ours"]) == 1.0
    assert int(middle["bytes_moved"]) == 2 * 4 * int(middle["scalars"])
    assert int(middle["extra_limit_bytes"]) == int(0.02 * 4 * 3362 + 40 * 1500)
    parts = rows(tmp_path / "parts.csv")
    assert {row["step"] for row in parts} == {*SELECTING, "budget spent"}
    selecting = {row["name"] for row in parts if row["step"] == "middle"}
    assert selecting == {"scan", "finalize", "merge", "update", "other", "whole step"}
    for step in SELECTING:
        times = {row["name"]: float(row["ms"]) for row in parts if row["step"] == step}
        assert all(times[name] > 0 for name in selecting - {"other"})
    assert "3,362 scalars" in capsys.readouterr().out


def test_triton_in_the_interpreter(tmp_path):
    """The kernels themselves, from the check to the parts of a step."""
    pytest.importorskip("triton", reason="Triton is not installed")
    given = [*TINY, "--backend", "triton", "--rounds", "1", "--steps", "early", "--csv", str(tmp_path / "gpu.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_step", *given],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "backend triton" in done.stdout
    assert [row["backend"] for row in rows(tmp_path / "gpu.csv") if row["method"] == OURS] == ["triton"]


def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch, capsys):
    right = rivals.at_step

    def wrong(params, *arguments):
        if arguments[-1] == "cpu":
            with torch.no_grad():
                params[0].view(-1)[0] += 1e-3
        return right(params, *arguments)

    monkeypatch.setattr(rivals, "at_step", wrong)
    assert run(tmp_path) == 1
    assert "WRONG RESULT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_steps_that_did_other_work_are_not_reported(tmp_path, monkeypatch, capsys):
    """An optimizer that selects less than its share would be fast."""
    made = gpu_cases.make_ours
    monkeypatch.setattr(gpu_cases, "make_ours", lambda case, budget, *rest: made(case, budget // 2, *rest))
    assert run(tmp_path, "--budgets", "1000", "--steps", "middle") == 1
    assert "expected 505 scalars, got 252" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("patched", "more", "why"),
    [
        ({"free_bytes": lambda _: 100}, [], "left out: needs 0 GB of the device's memory"),
        ({}, ["--seconds", "-1"], "left out: no time left"),
    ],
)
def test_a_case_without_room_or_time_has_a_row_that_says_so(tmp_path, monkeypatch, patched, more, why):
    for name, value in patched.items():
        monkeypatch.setattr(gpu_step, name, value)
    assert run(tmp_path, *more) == 0
    assert [(row["model"], row["ms_median"], row["note"]) for row in rows(tmp_path / "gpu.csv")] == [("tiny", "", why)]


def test_rivals_without_room_have_rows_that_say_so(tmp_path, monkeypatch, capsys):
    """By what they are known to need, or by what happens."""
    monkeypatch.setattr(gpu_cases, "free_bytes", lambda _: 5 * 4 * 3362)

    def out_of_memory(*_args, **_kwargs):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(torch.optim, "AdamW", out_of_memory)
    assert run(tmp_path, "--budgets", "40", "--steps", "middle") == 0
    notes = {row["method"]: row["note"] for row in rows(tmp_path / "gpu.csv")}
    assert notes == {
        OURS: "",
        FUSED: "left out: out of memory",
        FOREACH: "left out: out of memory",
        **dict.fromkeys((MASKING, IN_PLACE, COMPILED), "left out: needs 0.0 GB, 0.0 GB are free"),
    }
    assert "left out: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--budgets", "4000"], "budget: expected 1 to 3362 scalars, got '4000'"),
        (["--budgets", "0.001%"], "got '0.001%' (0)"),
        (["--backend", "triton"], "backend='triton' is not available"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert run(tmp_path, *given) == 2
    assert message in capsys.readouterr().err


def test_a_gpu_without_kernels_is_refused(monkeypatch, capsys):
    """The reference's times would look like ours."""
    monkeypatch.setattr(gpu_step.dispatch, "resolve", lambda *_: "reference")
    assert gpu_step.main(TINY) == 2
    assert "nothing is timed" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_step.main(["--device", "cuda"]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err


def test_memory_counts_what_is_left_from_earlier_steps(monkeypatch):
    """State and reserves made in the first step are there when a later one has its peak."""
    allocated = {"now": 1000, "peak": 0}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: allocated["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: allocated.update(peak=allocated["now"]))

    def allocate(peak, left):
        allocated.update(peak=allocated["now"] + peak, now=allocated["now"] + left)

    watch = device.MemoryWatch(torch.device("cuda"))
    timer = watch.around(lambda run: run() or 0.25)
    for name, peak, left in (("a", 70, 50), ("b", 500, 500), ("a", 30, 10), ("a", 5, 0)):
        watch.enter(name)
        assert timer(lambda peak=peak, left=left: allocate(peak, left)) == 0.25
    assert watch.peak == {"a": 50 + 30, "b": 500}
    assert watch.held == {"a": 60, "b": 500}
    assert watch.forget_peaks() == {"a": 80, "b": 500}
    assert watch.peak == {}


CASE = Case("qwen2.5-7b", torch.bfloat16, (320_000,), ("middle",), "triton", 20)
SPEED = Bandwidth(read=3e12, copy=2.8e12, reader="torch.sum")


def verdicts(ms, dense_ms, extra):
    everybody = [Entry(OURS, 320_000, "middle", 2 * CASE.nbytes, None), Entry(FUSED, 0, "", 7 * CASE.nbytes, None)]
    times = {entry.name: Timing((each / 1e3,) * 3) for entry, each in zip(everybody, (ms, dense_ms), strict=True)}
    found = Measured(times, times, {everybody[0].name: extra}, {}, {}, {}, 2)
    made = gpu_rows.rows_of(CASE, everybody, found, SPEED, {})
    return gpu_rows.verdicts(made), gpu_rows.screen(made), made


def test_aims_are_those_of_the_read_and_of_the_dense_optimizer():
    """Reading 2 x 15.23 GB at 3 TB/s takes 10.15 ms."""
    lines, shown, made = verdicts(11.0, 33.5, 300_000_000)
    title = "qwen2.5-7b, 320,000, middle, triton"
    assert lines == [
        f"{title}: 1.08 x read, target <= 1.1: met",
        f"{title}: 3.05 x faster than AdamW fused, target >= 3: met",
        f"{title}: 300.00 MB beyond state, target <= 317.42 MB: met",
    ]
    assert (made[0]["read_ms"], made[0]["percent_of_read_bandwidth"]) == ("10.1542", "92.3")
    assert (made[1]["ratio_to_ours"], made[0]["speedup_over_fused"]) == ("3.045", "3.05")
    assert "317.42 MB" in shown
    lines, _, _ = verdicts(11.5, 33.5, 320_000_000)
    assert [line.rpartition(": ")[2] for line in lines] == ["NOT MET"] * 3


def test_kernels_are_counted_by_who_launched_them(monkeypatch):
    """The profiler's own marks of the parts of a step, and what ran on the CPU, are no launches."""
    names = [
        ("scan_kernel", 90),
        ("sort", 30),
        ("scan_kernel", 10),
        ("selective_kernels::scan", 500),
        ("aten::sort", 9),
    ]
    events = [
        SimpleNamespace(
            name=name,
            device_type=gpu_parts.DeviceType.CPU if name.startswith("aten") else gpu_parts.DeviceType.CUDA,
            time_range=SimpleNamespace(elapsed_us=lambda us=us: us),
        )
        for name, us in names
    ]

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def events(self):
            return events

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(gpu_parts, "own_kernels", lambda: {"scan_kernel"})
    contender = SimpleNamespace(prepare=lambda _: None, run=lambda: None)
    clock = SimpleNamespace(on_gpu=True, synchronize=lambda: None)
    found = gpu_parts._by_kernel(SimpleNamespace(contender=contender), clock)
    assert [(row["name"], row["count"], row["ms"], row["own"]) for row in found] == [
        ("scan_kernel", 2, "0.1000", True),
        ("sort", 1, "0.0300", False),
    ]
    assert "launches: 2 of our own, 1 others" in gpu_parts.screen(found)


def test_our_own_kernels_are_known_by_name():
    """As the profiler shows them: compiled, not interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        "from benchmarks import gpu_parts; import selective_kernels._triton.topk, selective_kernels._triton.optim;"
        "print(*gpu_parts.own_kernels())"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert {"scan_kernel", "adam_kernel"} <= set(done.stdout.split()), done.stderr


def test_the_small_problem_is_checked_in_the_dtype_of_the_case(monkeypatch):
    seen = []
    agree = gpu_measure.gate.agree

    def watched(base, *rest):
        seen.append(base[0].dtype)
        agree(base, *rest)

    monkeypatch.setattr(gpu_measure.gate, "agree", watched)
    case = Case("tiny", torch.bfloat16, (40,), ("middle",), "cpu", 3)
    assert gpu_measure.check(case, torch.device("cpu")) == 3362
    assert seen == [torch.bfloat16] * 2
