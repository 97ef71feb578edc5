"""The suite of peaks: what is counted as what, processes that are measured apart, and its rows."""

import csv
from typing import ClassVar

import peft
import pytest
import torch
from matplotlib.image import imread
from probing import needs_peak_counter
from tinyruns import BERT, ON_CPU, one_thread  # noqa: F401
from torch import nn

from benchmarks import __main__ as entry
from benchmarks import memory, peaks
from benchmarks.apart import Apart, Died
from benchmarks.finetuning import FULL, OURS, Fitted
from benchmarks.peaks import Split, Watch
from benchmarks.resident import RETURN_FREED_MEMORY, can_measure

PARTS = list(memory.PARTS)


class Net(nn.Module):
    """Saves two results of 4 x 1000 floats for the backward pass: what the sine gets, and the input of the product."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(50, 1000)), nn.Parameter(torch.ones(1000, 10))
        self.register_buffer("inputs", torch.ones(4, 50))

    def forward(self):
        hidden = (self.inputs @ self.first).sin()
        return type("Out", (), {"loss": (hidden @ self.second).sum()})


def watched(peak, method=lambda: None, state=lambda: 0):
    """A step of the net, and the split at the peak; `peak` is asked at each reading, with the watch as it stands."""
    model = Net()
    found = peaks.storages(model)
    watch = Watch(sum(found.values()), set(found), lambda: peak(watch), base=0)
    fitted = Fitted(model, (), 0, lambda: 0)
    fitted.step = method
    fitted.state_bytes = state
    peaks.train(fitted, [{}], watch)
    return watch


def test_weights_and_buffers_are_held_from_the_beginning():
    assert sum(peaks.storages(Net()).values()) == 4 * (50 * 1000 + 1000 * 10 + 4 * 50)


def test_activations_are_what_autograd_saves_and_weights_are_not():
    """At the end of the forward pass both results are saved; then they are let go of one by one."""
    seen = []
    watch = watched(lambda watch: seen.append(watch.now.activations) or 0)
    assert max(seen) == 2 * 4 * 4 * 1000
    assert watch.now.activations == 0


def test_a_peak_is_split_by_what_was_alive():
    """A process that holds 5,000 bytes more than what is known, and most when the first gradient is ready."""

    def peak(watch):
        return watch.now.peak + 5000 if watch.now.gradients == 4 * 1000 * 10 else 100

    split = watched(peak).at_peak
    assert split.weights == 4 * (50 * 1000 + 1000 * 10 + 4 * 50)
    assert split.gradients == 4 * 1000 * 10
    assert split.activations == 4 * 4 * 1000  # what the sine got; the product's input is gone
    assert (split.state, split.temporaries) == (0, 5000)


def test_the_optimizers_state_and_all_gradients_count_in_its_step():
    stepped = []

    def peak(watch):
        return 10**6 if stepped else 0

    split = watched(peak, lambda: stepped.append(1), lambda: 777).at_peak
    assert (split.gradients, split.state, split.activations) == (4 * (50 * 1000 + 1000 * 10), 777, 0)
    assert split.peak == 10**6


def test_a_lower_peak_later_changes_nothing():
    watch = Watch(10, set(), lambda: next(values), base=3)
    values = iter([103, 203, 153])
    for state in (1, 2, 3):
        watch.now.state = state
        watch.read()
    assert watch.at_peak == Split(weights=10, state=2, temporaries=188)
    assert watch.at_peak.peak == 200


def test_sparse_tensors_have_two_storages():
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 0]]), torch.ones(2), (2, 2), check_invariants=True)
    assert sorted(peaks._storages(sparse).values()) == [8, 32]


@needs_peak_counter
def test_what_is_measured_is_what_tensors_take():
    """Full AdamW against sums by hand; the rest of the peak is at most a megabyte of pages and small objects."""
    scalars = sum(param.numel() for param in BERT.make().parameters())
    with Apart("benchmarks.peaks", RETURN_FREED_MEMORY) as apart:
        found = apart.call(model="tiny-bert", method=FULL, dtype="float32", device="cpu", threads=1)
        missing = apart.call(model="tiny-llama", method="BitFit (ours)", dtype="float32", device="cpu", threads=1)
    assert missing == {"note": "the model has no biases"}
    assert found["trained"] == found["first"] == found["expected"] == found["scalars"] == scalars
    assert found["held"] == pytest.approx(8 * scalars, rel=0.01)
    assert found["weights"] >= 4 * scalars
    assert found["peak"] == sum(found[part] for part in ("weights", "gradients", "state", "activations", "temporaries"))
    assert 0 <= found["temporaries"] < 1_000_000


class Pretended:
    """Stands for a server: full AdamW holds 8 bytes per scalar and ours 0.05; others do what `others` says."""

    others: ClassVar[dict] = {}

    def __init__(self, module, environment):
        self.module = module

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, **given):
        if self.module == "benchmarks.step_memory":
            return {
                "extra": 10,
                "state": 100 + given["number"],
                "held": 120,
                "selected": 5 if given["number"] < 7 else 0,
            }
        if given["method"] in self.others:
            return self.others[given["method"]](given)
        held = 800 if given["method"] == FULL else 5
        return {"weights": 400, "gradients": 300, "state": held, "activations": 200, "temporaries": 100,
                "peak": 1000 + held, "scalars": 100, "budget": 3, "expected": 3, "first": 3, "trained": 4,
                "held": held}  # fmt: skip


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(memory, "Apart", Pretended)
    monkeypatch.setattr(memory, "can_measure", lambda: True)
    monkeypatch.setattr(memory.workloads, "ready", lambda _: None)
    monkeypatch.setattr(Pretended, "others", {})
    return Pretended


def run(tmp_path, *words):
    path = tmp_path / "memory.csv"
    code = entry.main(["memory", "--preset", "small", "--csv", str(path), *words])
    if not path.exists():
        return code, []
    with path.open(newline="") as file:
        return code, list(csv.DictReader(file))


def test_rows_bars_and_picture(pretended, tmp_path, capsys):
    picture = tmp_path / "memory.png"
    code, rows = run(tmp_path, "--models", "minilm-l6", "bert-base", "--plot", str(picture))
    assert code == 0
    assert [row["what"] for row in rows[: len(ON_CPU)]] == ON_CPU
    assert [row["model"] for row in rows[len(ON_CPU) :]] == ["bert-base"] * 9
    found = {row["what"]: row for row in rows if row["model"] == "minilm-l6"}
    assert sum(int(found[OURS][part]) for part in PARTS) == int(found[OURS]["peak_bytes"]) == 1005
    assert (found[OURS]["peak_of_full"], found[OURS]["state_of_full"]) == (f"{1005 / 1800:.4f}", f"{5 / 800:.4f}")
    assert {row["extra_bytes"] for row in rows if row["model"] == "bert-base"} == {"10"}
    assert "minilm-l6, ours: optimizer state of full AdamW's: 0.0063, bar <= 0.01: met" in capsys.readouterr().out
    assert imread(picture).shape[2] == 4


def test_a_missed_bar_is_said(pretended, tmp_path, capsys):
    pretended.others = {
        OURS: lambda given: {**Pretended.call(pretended("x", {}), **{**given, "method": ""}), "held": 9}
    }
    assert run(tmp_path, "--models", "minilm-l6")[0] == 0
    assert "minilm-l6, ours: optimizer state of full AdamW's: 0.0112, bar <= 0.01: NOT MET" in capsys.readouterr().out


def test_a_method_that_is_not_there_or_does_not_fit_has_a_row(pretended, tmp_path):
    def killed(given):
        raise Died("x", -9)

    pretended.others = {"dense masking": killed, "SHiRA r=8 (all linear)": lambda _: {"note": "peft 0 has no SHiRA"}}
    code, rows = run(tmp_path, "--models", "tiny-bert")
    notes = {row["what"]: row["note"] for row in rows if row["note"]}
    assert code == 0
    assert notes == {
        "dense masking": "the process was killed by signal 9; is there enough memory?",
        "SHiRA r=8 (all linear)": "peft 0 has no SHiRA",
    }
    assert {row["peak_bytes"] for row in rows if row["note"]} == {""}


def test_wrong_counts_are_no_rows(pretended, tmp_path, capsys):
    pretended.others = {OURS: lambda _: {"expected": 3, "first": 4}}
    assert run(tmp_path, "--models", "tiny-bert") == (1, [])
    assert "ours: expected 3 trained scalars, got 4" in capsys.readouterr().err


def test_a_method_that_fails_is_no_row(pretended, tmp_path, capsys):
    def failing(given):
        raise Died("measuring: expected a result", 1)

    pretended.others = {OURS: failing}
    assert run(tmp_path, "--models", "tiny-bert") == (2, [])
    assert "expected a result" in capsys.readouterr().err


def test_without_the_counter_nothing_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "can_measure", lambda: False)
    assert run(tmp_path) == (2, [])
    assert "clear_refs is not writable" in capsys.readouterr().err


@needs_peak_counter
def test_the_command_with_a_tiny_model(tmp_path, capsys):
    """The whole way, with a few of the methods."""
    assert can_measure()
    picture = tmp_path / "memory.png"
    words = ("--models", "tiny-bert", "--methods", "ours", "super", "--threads", "1", "--plot", str(picture))
    code, rows = run(tmp_path, *words)
    assert code == 0
    measured = [row for row in rows if row["peak_bytes"]]
    for row in measured:
        assert sum(int(row[part]) for part in PARTS) == int(row["peak_bytes"])
    there = {row["what"]: row for row in measured}
    assert {FULL, OURS, "BitFit (ours)", "PaFi (ours)"} <= set(there)
    assert int(there[OURS]["state_bytes"]) < int(there[FULL]["state_bytes"]) / 5
    assert ("Super-Tuning 1 % (all linear)" in there) == hasattr(peft, "SupertuningConfig")
    assert "bytes at the peak" in capsys.readouterr().out
    assert picture.exists()
