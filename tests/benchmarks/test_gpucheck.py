"""`make gpu-check`: a failed check stops the timing, and the summary is there whatever happens."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import ROOT, checking, gpucheck
from benchmarks.checking import (
    FAILED,
    PASSED,
    SKIPPED,
    UNAVAILABLE,
    Done,
    Result,
    Step,
    Summary,
    run_command,
    run_steps,
)
from benchmarks.gpucheck import Machine


def python(code, seconds=60):
    return run_command((sys.executable, "-c", code), os.environ, seconds)


def steps(*outcomes, **of_last):
    """Steps that end so; the last one with more attributes."""
    made = [Step(f"step {i}", 10, lambda _, outcome=outcome: Result(outcome)) for i, outcome in enumerate(outcomes)]
    last = made[-1]
    return [*made[:-1], Step(last.name, last.seconds, last.run, **of_last)]


def outcomes(summary):
    return [result.outcome for _, result, _ in summary.rows]


@pytest.fixture
def summary(tmp_path):
    return Summary(tmp_path / "out" / "gpu-check.txt", "title")


# ---------------------------------------------------------------------- commands


def test_output_comes_as_it_is_written_and_is_kept(capfd):
    done = python("import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)")
    assert (done.status, done.output, done.last_line) == (3, "one\ntwo\n", "two")
    assert capfd.readouterr().out == "one\ntwo\n"
    assert python("print('\\n'.join(map(str, range(5000))))").output.split()[0] == str(5000 - checking.KEPT_LINES)


def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path):
    """A grandchild that lived on would still use the GPU while others are timed."""
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    began = time.monotonic()
    done = python(
        f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])", 4
    )
    assert time.monotonic() - began < 30
    assert (done.status, done.output) == (None, "begun\n")
    for _ in range(50):
        try:
            state = (checking.Path("/proc") / pid.read_text() / "stat").read_text().split()[2]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")


@pytest.mark.parametrize(
    ("done", "outcome", "note"),
    [
        (Done(0, "a\n== 3 passed in 1 s ==\n\n"), PASSED, "3 passed in 1 s"),
        (Done(1, "a\n1 failed\n"), FAILED, "exit status 1: 1 failed"),
        (Done(-11, ""), FAILED, "exit status -11: "),
        (Done(None, "a"), FAILED, "ran out of its 7 s"),
    ],
)
def test_a_command_passes_if_it_says_so_in_time(done, outcome, note):
    result = checking.judged(done, 7)
    assert (result.outcome, result.note, result.output) == (outcome, note, done.output)


# ---------------------------------------------------------------------- steps


def test_all_is_well(summary, capsys):
    assert run_steps(steps(PASSED, UNAVAILABLE, PASSED, timing=True, required=True), summary, 100)
    assert "GPU CHECK PASSED" in capsys.readouterr().out
    text = summary.path.read_text()
    assert text.startswith("title\nGPU CHECK PASSED\n")
    assert [line.split()[:3] for line in text.splitlines() if line.startswith("step ")] == [
        ["step", "outcome", "seconds"],
        ["step", "0", "passed"],
        ["step", "1", "unavailable"],
        ["step", "2", "passed"],
    ]


def test_a_failed_check_stops_the_timing_and_nothing_else(summary):
    ran = []
    timing = Step("timing", 10, lambda _: ran.append(1) or Result(PASSED), timing=True)
    assert not run_steps([*steps(FAILED, PASSED), timing], summary, 100)
    assert (outcomes(summary), ran) == ([FAILED, PASSED, SKIPPED], [])
    assert "GPU CHECK FAILED" in summary.path.read_text()


def test_what_is_required_must_run(summary):
    assert not run_steps(steps(PASSED, UNAVAILABLE, required=True), summary, 100)


def test_checks_leave_time_to_what_is_timed(summary):
    given = []

    def run(seconds):
        given.append(round(seconds))
        return Result(PASSED)

    made = [Step("a", 30, run), Step("b", 500, run), Step("c", 500, run, timing=True)]
    run_steps(made, summary, limit=100, kept=60)
    assert given == [30, 40, 100]
    late = Summary(summary.path, "late")
    run_steps([Step("a", 30, run), Step("b", 30, run, required=True)], late, limit=60.5, kept=60)
    assert outcomes(late) == [UNAVAILABLE, FAILED]


def test_the_summary_survives_an_interruption(summary):
    def interrupted(_):
        assert "unfinished" in summary.path.read_text()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps([*steps(PASSED), Step("b", 10, interrupted)], summary, 100)
    text = summary.path.read_text()
    assert "GPU CHECK INTERRUPTED" in text
    assert re.search(r"step 0 +passed", text)


# ---------------------------------------------------------------------- this machine


def commands(monkeypatch, *answers):
    """What is run instead of being run; the answers in turn, the last one again and again."""
    seen = []

    def fake(command, environment, seconds, folder=ROOT):
        seen.append((list(command), dict(environment)))
        return answers[min(len(seen), len(answers)) - 1]

    monkeypatch.setattr(gpucheck, "run_command", fake)
    return seen


def test_a_machine_without_a_gpu_fails_and_says_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = Machine("cuda", tmp_path).describe(10)
    assert (result.outcome, result.note) == (FAILED, "torch finds no CUDA GPU here")
    assert f"torch {torch.__version__}" in result.output
    assert Machine("cpu", tmp_path).describe(10).outcome == PASSED


def test_without_its_tools_there_is_no_build(monkeypatch, tmp_path):
    """And it says which are missing; too old ones are tried."""
    found = {"setuptools": "80.0", "ninja": "1.13", "pybind11": "2.9.1", "cmake": "4.0"}
    monkeypatch.setattr(gpucheck, "version", lambda name: found.get(name, ""))
    monkeypatch.setattr(gpucheck.shutil, "which", lambda name: None if name in ("cmake", "ninja", "make") else name)
    assert gpucheck.lacking_tools() == (["scikit-build-core"], ["pybind11 2.9.1, expected 2.13 or newer"])
    seen = commands(monkeypatch, Done(1, "no"))
    result = Machine("cuda", tmp_path).build(10)
    assert (result.outcome, seen) == (UNAVAILABLE, [])
    assert "missing: scikit-build-core" in result.note
    found["scikit-build-core"] = "0.11.1"
    result = Machine("cuda", tmp_path).build(10)
    assert (result.outcome, len(seen)) == (UNAVAILABLE, 1)
    assert "too old: pybind11 2.9.1" in result.note
    found["pybind11"] = "2.13.0"
    assert Machine("cuda", tmp_path).build(10).outcome == FAILED
    monkeypatch.setattr(gpucheck.shutil, "which", lambda _: None)
    del found["cmake"]
    assert gpucheck.lacking_tools() == (["cmake", "a C++ compiler"], [])


def test_a_build_goes_first_on_the_path_and_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(gpucheck, "lacking_tools", lambda: ([], []))
    monkeypatch.setattr(gpucheck, "TARGET", tmp_path / "target")
    monkeypatch.setenv("PYTHONPATH", "/carried")
    machine = Machine("cuda", tmp_path)
    assert machine.environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT / "python"), str(ROOT), "/carried"]
    seen = commands(monkeypatch, Done(0, "installed"))
    assert machine.build(10).outcome == PASSED
    assert {"--no-build-isolation", "--no-deps", "--no-index", str(tmp_path / "target")} <= set(seen[0][0])
    assert machine.environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "target"), "/carried"]


def test_kernels_run_compiled_on_a_gpu_only(tmp_path):
    assert Machine("cuda", tmp_path).environment["TRITON_INTERPRET"] == "0"
    assert Machine("cpu", tmp_path).environment["TRITON_INTERPRET"] == "1"


def test_cuda_tensors_must_be_served_by_triton(monkeypatch, tmp_path):
    commands(monkeypatch, Done(0, "cuda tensors: scan -> reference\n"))
    assert [Machine(device, tmp_path).kernels(10).outcome for device in ("cuda", "cpu")] == [FAILED, PASSED]
    for cuda in ("cuda: available by name", "cuda: not available: no nvcc"):  # it is not needed, but asked for
        commands(monkeypatch, Done(0, f"{cuda}\ncuda tensors: scan -> triton\n"))
        assert (found := Machine("cuda", tmp_path).kernels(10)).outcome == PASSED
        assert (found.note == cuda) is ("not" in cuda)


def test_tests_run_where_they_can(monkeypatch, tmp_path):
    machine = Machine("cuda", tmp_path)
    assert machine.test([], 10).outcome == UNAVAILABLE
    built, broken = Done(0, ""), Done(1, "")
    for answers, outcome in (
        ((built, Done(0, "9 passed")), PASSED),
        ((built, Done(1, "1 failed")), FAILED),
        ((built, Done(gpucheck.NO_TESTS, "9 deselected")), UNAVAILABLE),
        ((built, Done(0, "3 skipped, 97 deselected in 1.83s")), UNAVAILABLE),
        ((built, Done(None, "...")), FAILED),
        ((broken,), UNAVAILABLE),
    ):
        seen = commands(monkeypatch, *answers)
        assert machine.test(["tests/kernels"], 10).outcome == outcome
        assert len(seen) == len(answers)
    monkeypatch.setattr(gpucheck.importlib.util, "find_spec", lambda name: None if name == "hypothesis" else name)
    assert machine.test(["tests/kernels"], 10).note == "not installed: hypothesis"


def test_memcheck_is_unavailable_where_it_cannot_run(monkeypatch, tmp_path):
    machine = Machine("cuda", tmp_path)
    monkeypatch.setattr(gpucheck, "memcheck_files", lambda: ["tests/kernels/test_triton_x.py"])
    monkeypatch.setattr(gpucheck.shutil, "which", lambda _: None)
    assert machine.memcheck(10).note == "no compute-sanitizer"
    monkeypatch.setattr(gpucheck.shutil, "which", lambda name: f"/bin/{name}")
    fine = Done(0, "")
    for answers, outcome in (
        ((fine, Done(1, "Device not supported")), UNAVAILABLE),
        ((fine, fine, Done(0, "9 passed")), PASSED),
        ((fine, fine, Done(99, "ERROR SUMMARY: 3 errors")), FAILED),
        ((fine, fine, Done(1, "1 failed")), FAILED),
        ((fine, fine, Done(None, "...")), UNAVAILABLE),
        ((fine, fine, Done(gpucheck.NO_TESTS, "no tests ran")), UNAVAILABLE),
    ):
        seen = commands(monkeypatch, *answers)
        assert machine.memcheck(10).outcome == outcome
        assert len(seen) == len(answers)
    command, environment = seen[-1]
    assert command[:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"]
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_everything_that_is_chosen_exists():
    """Files of tests on a device, and tests in them for memcheck, which would else pass for want of any."""
    assert gpucheck.device_tests()
    assert all((ROOT / name).is_file() for name in gpucheck.NEED_NO_DEVICE)
    chosen = gpucheck.MEMCHECKED.split(" or ")
    text = "".join((ROOT / name).read_text("utf-8") for name in gpucheck.memcheck_files())
    for word in chosen:
        assert re.search(rf"^def test_\w*{word}", text, re.MULTILINE), word
    for name in gpucheck.optimizer_tests()[:-2]:
        assert re.search("triton|cuda", (ROOT / name).read_text("utf-8"))


def test_the_benchmark_writes_where_it_is_told(tmp_path):
    """The last step, for real, on the CPU."""
    machine = Machine("cpu", tmp_path)
    machine.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")  # the installed package, not the sources
    result = machine.benchmark(120)
    assert result.outcome == PASSED, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.csv", "gpu_parts.csv"]


def test_the_command_writes_the_summary_and_says_how_it_went(monkeypatch, tmp_path):
    for outcome, status in ((PASSED, 0), (FAILED, 1)):
        monkeypatch.setattr(gpucheck, "steps_of", lambda *_, outcome=outcome: steps(outcome))
        assert gpucheck.main(["--device", "cpu", "--out", str(tmp_path)]) == status
        assert f"GPU CHECK {outcome.upper()}" in (tmp_path / "gpu-check.txt").read_text()


def test_make_passes_python_and_folder_on():
    command = ("make", "-n", "gpu-check", "PYTHON=/some/python")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["OUT"] = "/some/folder"  # a make that runs this test would have its say in the other ones
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/some/python -m benchmarks.gpucheck --out '/some/folder'"


def test_the_limits_leave_a_margin_to_ten_minutes(tmp_path):
    made = gpucheck.steps_of(Machine("cuda", tmp_path))
    assert [step.name for step in made if step.timing] == ["benchmarks"]
    assert made[-1].timing
    assert gpucheck.KEPT < gpucheck.LIMIT < 600
