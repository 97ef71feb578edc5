"""The comparison's statistics, tables and pictures, on made-up results of a whole preset."""

import itertools
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats

from benchmarks import quality_tables, tables
from benchmarks.quality import comparing, figures, plan, report
from benchmarks.quality.comparing import compare
from benchmarks.quality.jobs import NONE, Job
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plan import PRESETS
from benchmarks.report import environment, write_csv
from benchmarks.suites import read_csv

FULL = PRESETS["full"]
STAMP = environment()


def result(job: Job, accuracy: float) -> dict[str, str]:
    return {
        **job.columns(), **FULL.tasks[job.data].settings(),
        "validation": f"{accuracy:.6f}", "validation_loss": "0.5", "test": f"{accuracy:.6f}", "test_loss": "0.5",
        "budget": str(int(job.share * 1e6)), "trained": "0" if job.method == NONE else "1000", "state_bytes": "20000",
        **STAMP,
    }  # fmt: skip


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> Ledger:
    """All runs of the full preset; accuracies depend on data set, method, budget, learning rate and seed."""
    made = Ledger(tmp_path_factory.mktemp("quality") / "quality.csv")
    drawn = random.Random(0)
    level: dict[tuple[str, str], float] = {}
    while todo := plan.pending(FULL, made):
        for job in todo:
            base = level.setdefault((job.data, job.method), drawn.uniform(0.6, 0.8))
            best = 1e-3 if job.method != "full" else 1e-4
            loss = 0.02 * abs(math.log10(max(job.lr, 1e-9) / best))
            made[job] = result(job, base - loss + drawn.gauss(0, 0.003) + job.share)
    write_csv(made.path, list(made.values()))
    return made


def brute_force(differences: list[float]) -> float:
    """Two-sided p-value of the signed-rank statistic, over all ways to draw the signs."""
    ranks = scipy.stats.rankdata([abs(each) for each in differences])
    observed = sum(rank for rank, each in zip(ranks, differences, strict=True) if each > 0)
    middle = sum(ranks) / 2
    drawn = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    return sum(abs(each - middle) >= abs(observed - middle) - 1e-9 for each in drawn) / len(drawn)


@pytest.mark.parametrize("seed", range(20))
def test_p_values_are_those_of_all_signs_and_of_scipy(seed):
    drawn = random.Random(seed)
    ours = [drawn.random() for _ in range(drawn.randint(6, 9))]
    theirs = [drawn.random() for _ in ours]
    found = compare(ours, theirs)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert found.p == pytest.approx(brute_force(differences))
    assert found.p == pytest.approx(scipy.stats.wilcoxon(ours, theirs).pvalue)
    assert (found.wins, found.losses) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    assert found.difference == pytest.approx(statistics.fmean(differences))
    assert found.pairs == len(ours)


def test_six_wins_of_six_are_the_least_significant_difference():
    assert compare([0.9 + i / 100 for i in range(6)], [0.8] * 6).p == pytest.approx(2 / 64)


def test_one_answer_more_is_one_difference_however_accuracies_are_rounded():
    theirs = [count / 2048 for count in (1500, 1501, 1502, 1503, 1504, 1505)]
    ours = [count / 2048 for count in (1501, 1502, 1503, 1504, 1505, 1504)]  # five times one more, once one less
    written = [[float(f"{each:.6f}") for each in part] for part in (ours, theirs)]
    found = compare(*written)
    assert (found.wins, found.losses) == (5, 1)
    assert found.p == compare(ours, theirs).p == pytest.approx(brute_force([1.0] * 5 + [-1.0]))


def test_too_few_pairs_and_equal_ones_have_no_p_value():
    assert math.isnan(compare([0.9] * 5, [0.1, 0.2, 0.3, 0.4, 0.5]).p)
    assert math.isnan(compare([0.9] * 6, [0.9] * 6).p)


@pytest.mark.parametrize("theirs", [[], [0.1, 0.2]])
def test_unpaired_accuracies_are_refused(theirs):
    with pytest.raises(ValueError, match=r"theirs: expected (some|1) accuracies"):
        compare([0.5] if theirs else [], theirs)


def test_summaries_are_means_of_the_runs_with_the_chosen_rate(ledger):
    found = comparing.summaries(FULL, ledger)
    assert len(found) == len(list(plan.cells(FULL)))
    for each in found:
        jobs = [replace(each.cell, lr=each.lr, seed=seed) for seed in range(FULL.seeds)]
        values = [float(ledger[job]["test"]) for job in jobs]
        assert each.mean == pytest.approx(statistics.fmean(values))
        assert each.deviation == pytest.approx(statistics.stdev(values))
        tried = [job for job in ledger if replace(job, lr=0.0, seed=0) == each.cell and job.seed == 0]
        assert float(ledger[jobs[0]]["validation"]) == max(float(ledger[job]["validation"]) for job in tried)


def test_id3_is_compared_at_the_same_budget_over_all_pairs(ledger):
    found = comparing.summaries(FULL, ledger)
    against = comparing.against_ours(found, FULL)
    assert {method for method, _ in against} == set(METHODS) - {"ID3"}
    by = {(each.cell.data, each.cell.method, each.cell.share): each.accuracies for each in found}
    for (method, share), one in against.items():
        budget = share or FULL.shares[0]
        both = ("reviews", "boolq") if budget == FULL.shares[0] else ("reviews",)
        ours = [value for data in both for value in by[data, "ID3", budget]]
        theirs = [value for data in both for value in by[data, method, share]]
        assert repr(one) == repr(compare(ours, theirs))  # of fewer than six pairs p is NaN, which equals nothing
        assert one.pairs == 3 * len(both)


def test_all_budgets_taken_together_are_the_pairs_of_each(ledger):
    found = comparing.summaries(FULL, ledger)
    against, whole = comparing.against_ours(found, FULL), comparing.over_budgets(found, FULL)
    assert set(whole) == {method for method, way in METHODS.items() if way.budget} - {"ID3"}
    for method, one in whole.items():
        parts = [each for (name, _), each in against.items() if name == method]
        assert one.pairs == sum(each.pairs for each in parts)
        assert (one.wins, one.losses) == (sum(each.wins for each in parts), sum(each.losses for each in parts))
        assert one.difference == pytest.approx(sum(each.difference * each.pairs for each in parts) / one.pairs)
        assert one.p == pytest.approx(brute_force(differences(found, method)))


def differences(found, method):
    by = {(each.cell.data, each.cell.method, each.cell.share): each.accuracies for each in found}
    return [
        round(ours - theirs, 5)
        for (data, name, share), accuracies in by.items()
        if name == method and data != "asdiv"
        for ours, theirs in zip(by[data, "ID3", share], accuracies, strict=True)
    ]


def test_cells_without_all_seeds_are_left_out(ledger):
    cell = next(each for each in plan.cells(FULL) if each.method == "PaFi")
    jobs = plan.runs(cell, FULL, ledger)
    fewer = {job: row for job, row in ledger.items() if job != jobs[-1]}
    assert {each.cell for each in comparing.summaries(FULL, ledger)} - {
        each.cell for each in comparing.summaries(FULL, fewer)
    } == {cell}


def test_report_has_a_line_for_each_method_and_budget(ledger):
    lines = report.table(FULL, ledger).splitlines()[2:]
    assert len(lines) == len({(each.method, each.share) for each in plan.cells(FULL)})
    assert report.table(FULL, {}) == ""


def test_rows_of_another_comparison_are_refused(ledger):
    job = next(iter(ledger))
    with pytest.raises(ValueError, match=r"expected \{'steps': '\d+'.*--csv"):
        plan.check(FULL, {job: {**ledger[job], "steps": "7"}})
    with pytest.raises(ValueError, match=r"expected one of reviews, boolq, asdiv"):
        plan.check(FULL, {replace(job, data="other"): ledger[job]})
    plan.check(FULL, ledger)


def test_tables_show_what_the_file_holds(ledger):
    speeds = [
        {
            "method": name,
            "ratio_to_full": "0.847",
            "optimizer_seconds": "0.05",
            "state_bytes": "9",
            "trained": "3",
        }
        for name in METHODS
    ]
    files = {"quality.csv": read_csv(ledger.path), "quality_speed.csv": speeds}
    text = quality_tables.readme_table(files.__getitem__, tables.markdown)
    found = {(each.cell.data, each.cell.method, each.cell.share): each for each in comparing.summaries(FULL, ledger)}
    mine = found["reviews", "ID3", FULL.shares[0]]
    row = next(line for line in text.splitlines() if line.startswith("| ID3 |"))
    assert row.split(" | ")[1] == f"{100 * mine.mean:.1f} ± {100 * mine.deviation:.1f}"
    assert row.endswith("| 3 | 9 B | 50.0 | 0.85 |")
    assert f"{len(ledger)} runs" in text
    whole = quality_tables.budgets_table(files.__getitem__, tables.markdown)
    assert len([line for line in whole.splitlines() if line.startswith("| ")]) - 2 == len(
        {(each.method, each.share) for each in plan.cells(FULL)}
    )
    lead = quality_tables.lead_table(files.__getitem__, tables.markdown)
    assert next(line for line in lead.splitlines() if line.startswith("| PaFi |")).endswith(" | 12 |")
    problems = quality_tables.problems_table(files.__getitem__, tables.markdown).splitlines()
    assert [line.split(" | ")[0] for line in problems[2:]] == [f"| {name}" for name in (NONE, *plan.MATH)]
    assert all(line.split(" | ")[2] == "0.500 ± 0.000" for line in problems[2:])
    scores = quality_tables.scores_table(files.__getitem__, tables.markdown)
    assert scores.count("±") == len(FULL.exps) * len(FULL.epss)


def test_pictures_are_drawn(ledger, tmp_path):
    steps = [
        {"run": run, "step": str(step), "tensor_sparsity": "0.5", "entropy": "2.5", **STAMP}
        for run in ("ID3, 0.5%", "PaFi, 0.5%")
        for step in range(1, 5)
    ]
    updates = [
        {"run": run, "measure": f"mean update by {kind}", "place": place, "value": "0.001", **STAMP}
        for run in ("full", "ID3, 0.5%")
        for kind in ("module", "layer")
        for place in ("a", "b")
    ]
    write_csv(tmp_path / "quality.csv", list(ledger.values()))
    write_csv(tmp_path / "quality_steps.csv", steps)
    write_csv(tmp_path / "quality_updates.csv", updates)
    assert figures.main(["--results", str(tmp_path), "--folder", str(tmp_path)]) == 0
    for name in ("budgets", "scores", "selection", "updates"):
        assert (tmp_path / f"quality-{name}.png").stat().st_size > 10_000


def test_a_missing_file_is_named(tmp_path, capsys):
    assert figures.main(["--results", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert str(Path(tmp_path) / "quality_steps.csv") in capsys.readouterr().err
