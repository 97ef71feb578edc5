"""What a method's step takes, and where its selection goes: measured on tiny models, as the commands do it."""

from dataclasses import replace

import pytest
import torch
from tinyquality import FEW, TEXTS, few_ways, one_thread  # noqa: F401

from benchmarks import quality_tables, tables
from benchmarks.quality import figures, plan, running, speed, traces
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plan import Preset
from benchmarks.suites import read_csv

PRESET = replace(FEW, tasks={"reviews": replace(TEXTS, budgets=True)}, shares=(0.05, 0.2), tries=1)
RUNS = ["full", "ID3, 5.0%", "ID3, 20.0%", "PaFi, 5.0%"]


def tuned(preset: Preset, path) -> Ledger:
    """A comparison in which each cell has been tried with its one learning rate."""
    ledger = Ledger(path)
    for cell in plan.cells(preset):
        row = dict.fromkeys(("validation", "validation_loss", "test", "test_loss"), "0.5")
        ledger.add(replace(cell, lr=plan.rates(cell, preset)[0]), row)
    return ledger


def test_a_row_for_each_method_with_its_share_of_full_fine_tuning(monkeypatch):
    few_ways(monkeypatch)
    rounds = []
    real = speed.train
    monkeypatch.setattr(speed, "train", lambda job, task: (rounds.append(job.method), real(job, task))[1])
    rows = {row["method"]: row for row in speed.measure(FEW, steps=3, rounds=2)}
    assert list(rows) == ["full", "ID3", "Pfeiffer + ID3"]
    assert rounds == list(rows) * 3  # one method after the other, a round more than is timed
    assert float(rows["full"]["ratio_to_full"]) == 1.0
    for row in rows.values():
        assert float(row["forward_backward_seconds"]) > 0
        assert float(row["optimizer_seconds"]) > 0
        assert float(row["ratio_to_full"]) > 0
        assert (row["steps"], row["rounds"]) == (3, 2)
    assert 0 < int(rows["ID3"]["trained"]) < int(rows["full"]["trained"])
    assert 0 < int(rows["ID3"]["state_bytes"]) < int(rows["full"]["state_bytes"])


def test_times_are_medians_over_the_rounds_and_ratios_within_each(monkeypatch):
    few_ways(monkeypatch)
    pace = iter([9.0, 1.0, 3.0, 2.0])  # of each round; the first one warms up
    now = {}

    def train(job, task):
        now["pace"] = next(pace) if job.method == "full" else now["pace"]
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        took = now["pace"] * (1.0 if job.method == "full" else 0.5)
        return running.Trained(torch.nn.Linear(1, 1), optimizer, 0.0, 1, 1, took, took / 10)

    monkeypatch.setattr(speed, "train", train)
    full, ours, _ = speed.measure(FEW, steps=1, rounds=3)
    assert (full["forward_backward_seconds"], ours["forward_backward_seconds"]) == ("2", "1")
    assert (full["optimizer_seconds"], ours["optimizer_seconds"]) == ("0.2", "0.1")
    assert float(ours["ratio_to_full"]) == 0.5


def test_traces_of_id3_at_each_budget_beside_full_fine_tuning(tmp_path, monkeypatch):
    names = ("full", "ID3", "PaFi")
    monkeypatch.setattr(plan, "METHODS", {name: METHODS[name] for name in names})
    ledger = tuned(PRESET, tmp_path / "quality.csv")
    monkeypatch.setattr(traces, "PRESETS", {"full": PRESET})
    assert traces.main(["--csv", str(ledger.path), "--folder", str(tmp_path)]) == 0
    steps, updates = (read_csv(tmp_path / f"quality_{name}.csv") for name in ("steps", "updates"))
    assert list(dict.fromkeys(row["run"] for row in steps)) == RUNS[1:]
    assert [int(row["step"]) for row in steps if row["run"] == "ID3, 5.0%"] == list(range(1, TEXTS.steps + 1))
    assert list(dict.fromkeys(row["run"] for row in updates)) == RUNS
    found = {(row["run"], row["measure"]): row["value"] for row in updates if not row["place"]}
    for run in RUNS[1:]:
        assert -1.0 <= float(found[run, traces.CORRELATION]) <= 1.0
        assert int(found[run, traces.SHARED]) > 0
    assert not [place for row in updates if "classifier" in (place := row["place"])]
    table = quality_tables.updates_table(lambda name: read_csv(tmp_path / name), tables.markdown)
    shared = int(found["ID3, 5.0%", traces.SHARED])
    assert f"| ID3, 5.0% | {shared:,} | {float(found['ID3, 5.0%', traces.CORRELATION]):.2f} |" in table
    figures.updates(updates, tmp_path / "updates.png")
    assert (tmp_path / "updates.png").stat().st_size > 10_000


def test_traces_need_the_learning_rates(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(traces, "PRESETS", {"full": PRESET})
    assert traces.main(["--csv", str(tmp_path / "none.csv"), "--folder", str(tmp_path)]) == 2
    assert "expected all learning rates of full at 0.0% tried" in capsys.readouterr().err
    assert not list(tmp_path.glob("quality_*.csv"))


@pytest.mark.parametrize("share", [0.05, 0.0])
def test_labels(share):
    cell = next(cell for cell in plan.cells(FEW) if cell.method == ("ID3" if share else "full"))
    assert traces.label(cell) == ("ID3, 5.0%" if share else "full")
