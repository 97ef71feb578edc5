"""The doubling claim's benchmark: it counts what is updated, and reports no time on a wrong result."""

import csv

import pytest
import torch

from benchmarks import gate, rivals, updates
from benchmarks.shapes import MODELS, bert_shapes, total
from benchmarks.updates import Case, Steps

TINY = bert_shapes(1, 16, 32, vocabulary=40, positions=8)


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return Case("tiny", budget=100, total_steps=7, repeats=2)


def made(strategy, kernel, count=10):
    """A run of as many steps as there are kernel times, in each of which the whole step takes twice as long."""
    return {strategy: Steps([count] * len(kernel), kernel, [2 * seconds for seconds in kernel])}


def test_the_updates_of_a_run_are_counted_step_by_step(case):
    """100 in each of 7 steps against the floors of 100 t / 7."""
    runs = updates.measure(case)
    assert len(runs) == 2
    for run in runs:
        assert run["static"].updates == [100] * 7
        assert run["increment"].updates == [100 * t // 7 for t in range(1, 8)]
        for steps in run.values():
            for update, whole in zip(steps.update_seconds, steps.optimizer_seconds, strict=True):
                assert 0 < update < whole


def test_both_runs_see_the_same_gradients_in_turn(case, monkeypatch):
    """A step of each strategy per round, and never two sets in one round."""
    seen = []
    step = updates._step

    def watched(optimizer, noted):
        params = optimizer.param_groups[0]["params"]
        seen.append((optimizer._settings.strategy, float(params[0].grad[0, 0])))
        step(optimizer, noted)

    monkeypatch.setattr(updates, "_step", watched)
    updates.measure(Case("tiny", budget=100, total_steps=4, repeats=1))
    rounds = [seen[i : i + 2] for i in range(0, 8, 2)]
    assert [{strategy for strategy, _ in each} for each in rounds] == [{"static", "increment"}] * 4
    assert [each[0][0] for each in rounds] == ["static", "increment", "static", "increment"]
    assert all(a == b for (_, a), (_, b) in rounds)
    assert rounds[0][0][1] == rounds[2][0][1] != rounds[1][0][1]


def test_a_step_counts_with_the_median_of_its_repeats(case):
    """Each run is disturbed in another step, which moves its own ratio, but not the one that is reported."""
    static, increment = [1.0, 1.0, 1.0], [0.25, 0.5, 0.75]
    runs = []
    for disturbed in range(3):
        times = [list(static), list(increment)]
        for each in times:
            each[disturbed] += 10.0
        runs.append({**made("static", times[0], 100), **made("increment", times[1], 55)})
    rows = updates.rows_of(case, runs, {"commit": "abc"})
    assert (rows[0]["updates_ratio"], rows[0]["update_ratio"], rows[0]["update_seconds"]) == (
        "1.0000",
        "1.0000",
        "3.000000",
    )
    assert (rows[1]["updates"], rows[1]["updates_ratio"]) == (165, "0.5500")
    assert (rows[1]["update_seconds"], rows[1]["update_ratio"]) == ("1.500000", "0.5000")
    assert rows[1]["update_ratio_min"] == rows[1]["update_ratio_max"] == f"{11.5 / 13:.4f}"
    assert (rows[1]["ns_per_update"], rows[1]["optimizer_seconds"]) == (f"{1.5e9 / 165:.3f}", "3.000000")
    assert {row["commit"] for row in rows} == {"abc"}
    assert "0.8846 - 0.8846" in updates.screen(rows)
    assert updates.verdicts(rows) == [
        "100: scalar updates 0.5500 of static, target <= 0.55: met",
        "100: update time 0.5000 of static, target <= 0.55: met",
    ]


def test_a_missed_aim_is_said(case):
    runs = [{**made("static", [1.0]), **made("increment", [0.56])}]
    assert updates.verdicts(updates.rows_of(case, runs, {})) == [
        "100: scalar updates 1.0000 of static, target <= 0.55: NOT MET",
        "100: update time 0.5600 of static, target <= 0.55: NOT MET",
    ]


def test_the_command_writes_a_row_for_each_strategy_and_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "minilm-l6", TINY)
    path = tmp_path / "updates.csv"
    given = ["--preset", "small", "--budget", "50", "--budget", "90", "--steps", "3", "--csv", str(path)]
    assert updates.main(given) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["budget"], row["strategy"]) for row in rows] == [
        ("50", "static"),
        ("50", "increment"),
        ("90", "static"),
        ("90", "increment"),
    ]
    assert [row["updates"] for row in rows] == ["150", str(16 + 33 + 50), "270", str(30 + 60 + 90)]
    assert {row["scalars"] for row in rows} == {str(total(TINY))}
    assert all(row[key] for row in rows for key in ("cpu", "threads", "torch", "commit", "utc"))
    assert capsys.readouterr().out.count("target <= 0.55") == 4


def test_a_wrong_result_is_reported_instead_of_times(tmp_path, monkeypatch, capsys):
    """The gate sees a backend that selects other scalars, for either strategy."""
    monkeypatch.setitem(MODELS, "minilm-l6", TINY)
    right = rivals.whole_run
    for wrong in ("static", "increment"):

        def other(params, budget, total_steps, strategy, backend="cpu", wrong=wrong):
            if backend == "cpu" and strategy == wrong:
                with torch.no_grad():
                    params[0].view(-1)[0] += 1e-3
            return right(params, budget, total_steps, strategy, backend)

        monkeypatch.setattr(rivals, "whole_run", other)
        path = tmp_path / "updates.csv"
        assert updates.main(["--preset", "small", "--budget", "50", "--steps", "3", "--csv", str(path)]) == 1
        assert "WRONG RESULT" in capsys.readouterr().err
        assert not path.exists()


def test_a_run_must_spend_its_budget(case, monkeypatch):
    short = rivals.whole_run
    monkeypatch.setattr(
        rivals,
        "whole_run",
        lambda params, budget, steps, strategy, backend="cpu": short(params, budget, steps + 1, strategy, backend),
    )
    with pytest.raises(gate.Mismatch, match="increment: expected 100 scalars, got 87"):
        updates.one_run([torch.ones(20, 20)], [[torch.ones(20, 20)]], case, lambda: None)


def test_defaults_are_the_claim():
    cases = updates.cases_of(updates.arguments([]))
    assert [(c.model, c.budget, c.total_steps) for c in cases] == [
        ("bert-base", 1_000_000, 100),
        ("bert-base", 4_000_000, 100),
    ]
