"""Which runs a comparison makes: learning rates are chosen the same way for all, and the test part has no say."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinyquality import NUMBERS, PAIRS, TEXTS

from benchmarks import RESULTS
from benchmarks.quality import plan
from benchmarks.quality.jobs import EPS, EXP, NONE, Job
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import FULL_LR, METHODS, SELECTIVE_LR
from benchmarks.quality.plan import LADDER, MATH, MATH_EXP, PRESETS, Preset, cells, expected, pending, runs, tuning
from benchmarks.quality.tasks import SMALL

TASKS = {"reviews": TEXTS, "boolq": PAIRS, "asdiv": NUMBERS}
FULL = Preset(
    {**TASKS, "reviews": replace(TASKS["reviews"], budgets=True)},
    3,
    (0.005, 0.001, 0.02),
    3,
    True,
    (0.0, 0.5, 1.0, 2.0),
    (0.01, 0.1, 1.0),
)
ONE = Preset({"asdiv": NUMBERS}, 3, (0.005,), 3, True, (), ())  # few cells, no other scores
CELL = Job("asdiv", "ID3", 0.005, 0.0, 0, MATH_EXP, EPS)


def row(validation, loss=0.5, test=0.5, test_loss=0.5):
    return {"validation": f"{validation}", "validation_loss": f"{loss}", "test": f"{test}", "test_loss": f"{test_loss}"}


def at(lr, seed=0, cell=CELL):
    return replace(cell, lr=lr, seed=seed)


def tried(ledger, preset=ONE):
    return [job.lr for job in tuning(CELL, preset, ledger)[0]], tuning(CELL, preset, ledger)[1]


def made_up(job, quality):
    """Results that are best at a learning rate of the cell's own."""
    draw = random.Random(f"{quality} {job.data} {job.method} {job.share}")
    best = draw.randrange(len(LADDER))
    far = abs(LADDER.index(job.lr) - best) if job.lr else 0
    return row(0.9 - 0.01 * far, 0.1 * far, random.Random(str(job)).random())


def finished(preset, quality=0, order=None):
    """A whole comparison with results that are made up: all runs that can be made at once, or a part in any order."""
    ledger, totals = {}, []
    while ready := pending(preset, ledger):
        totals.append(expected(preset, ledger))
        for job in order.sample(ready, 1 + len(ready) // 2) if order else ready:
            ledger[job] = made_up(job, quality)
    return ledger, totals


def test_three_rates_first_and_the_middle_one_wins():
    assert tried({}) == ([3e-4, 1e-3, 3e-3], None)
    ledger = {at(3e-4): row(0.6), at(3e-3): row(0.6)}
    assert tried(ledger) == ([1e-3], None)
    ledger[at(1e-3)] = row(0.7)
    assert tried(ledger) == ([], 1e-3)


def test_the_first_rates_of_each_method():
    for method, way in METHODS.items():
        assert way.lr == (FULL_LR if method == "full" else SELECTIVE_LR)
        cell = Job("reviews", method, 0.005, 0.0, 0)
        assert plan.rates(cell, ONE) == ([3e-5, 1e-4, 3e-4] if method == "full" else [3e-4, 1e-3, 3e-3])
        assert plan.rates(cell, replace(ONE, tries=1)) == [way.won]
        assert plan.rates(cell, replace(ONE, tries=5))[1:-1] == plan.rates(cell, ONE)


@pytest.mark.parametrize(("best", "beyond"), [(3e-3, [1e-2, 3e-2, 1e-1]), (3e-4, [1e-4, 3e-5, 1e-5, 3e-6, 1e-6])])
def test_beyond_an_end_while_it_is_the_best_down_to_the_end_of_the_ladder(best, beyond):
    ledger = {at(lr): row(0.5) for lr in (3e-4, 1e-3, 3e-3)}
    ledger[at(best)] = row(0.6)
    for number, lr in enumerate(beyond):
        assert tried(ledger) == ([lr], None)
        assert tried(ledger, replace(ONE, extend=False)) == ([], best)
        worse = {**ledger, at(lr): row(0.1)}
        assert tried(worse) == ([], best if number == 0 else beyond[number - 1])
        ledger[at(lr)] = row(0.61 + number / 100)
    assert tried(ledger) == ([], beyond[-1])


def test_one_try_goes_up_then_down():
    alone = replace(ONE, tries=1)
    ledger = {at(1e-3): row(0.7)}
    assert tried(ledger, alone) == ([3e-3], None)
    ledger[at(3e-3)] = row(0.6)
    assert tried(ledger, alone) == ([3e-4], None)
    ledger[at(3e-4)] = row(0.6)
    assert tried(ledger, alone) == ([], 1e-3)


def test_ties_go_to_the_lower_loss_then_to_the_lower_rate():
    ledger = {at(3e-4): row(0.7, 0.5), at(1e-3): row(0.7, 0.4), at(3e-3): row(0.7, 0.6)}
    assert tried(ledger) == ([], 1e-3)
    ledger = {at(3e-4): row(0.6, 0.1), at(1e-3): row(0.7, 0.5), at(3e-3): row(0.7, 0.5)}
    assert tried(ledger) == ([], 1e-3)


def test_where_the_loss_counts_accuracy_only_parts_equals():
    by_loss = replace(ONE, tasks={"asdiv": replace(NUMBERS, by_loss=True)})
    ledger = {at(3e-4): row(0.7, 0.5), at(1e-3): row(0.6, 0.4), at(3e-3): row(0.5, 0.6)}
    assert tried(ledger, by_loss) == ([], 1e-3)
    ledger[at(3e-3)] = row(0.65, 0.4)
    assert tried(ledger, by_loss) == ([1e-2], None)
    ledger |= {at(3e-3): row(0.9, math.nan), at(3e-4): row(0.9, 0.5)}
    assert tried(ledger, by_loss) == ([], 1e-3)
    assert [data for data, task in PRESETS["full"].tasks.items() if task.by_loss] == ["boolq"]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_worst_among_equals_in_any_order(broken):
    for losses in ((broken, 0.5, 0.6), (0.6, 0.5, broken), (broken, 0.5, broken)):
        ledger = {at(lr): row(0.7, loss) for lr, loss in zip((3e-4, 1e-3, 3e-3), losses, strict=True)}
        assert tried(ledger) == ([], 1e-3)
    ledger = {at(lr): row(0.5, broken) for lr in LADDER}
    assert tried(ledger)[1] is not None  # an end is found even so


def test_other_seeds_come_after_tuning_with_the_rate_that_was_chosen():
    ledger = {at(lr): row(0.6) for lr in (3e-4, 1e-3)}
    assert runs(CELL, ONE, ledger) == []
    assert not [job for job in pending(ONE, ledger) if job.seed]
    ledger[at(3e-3)] = row(0.5)
    ledger[at(1e-3)] = row(0.7)
    assert runs(CELL, ONE, ledger) == [at(1e-3, seed) for seed in range(3)]
    assert [job for job in pending(ONE, ledger) if (job.method, job.seed > 0) == ("ID3", True)] == [
        at(1e-3, 1),
        at(1e-3, 2),
    ]
    ledger[at(1e-3, 2)] = row(0.1)  # other seeds have no say in the rate
    ledger[at(3e-3, 1)] = row(1.0)
    assert runs(CELL, ONE, ledger) == [at(1e-3, seed) for seed in range(3)]


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_the_test_part_has_no_say(seed, count):
    draw, ledger = random.Random(seed), {}
    while (ready := pending(ONE, ledger)) and len(ledger) < count:
        ledger |= {job: made_up(job, seed) for job in ready[: count - len(ledger)]}
    others = {
        job: {name: str(draw.random()) if name.startswith("test") else value for name, value in each.items()}
        for job, each in ledger.items()
    }
    assert pending(ONE, others) == pending(ONE, ledger)
    assert expected(ONE, others) == expected(ONE, ledger)
    stripped = {job: {name: each[name] for name in ("validation", "validation_loss")} for job, each in ledger.items()}
    assert pending(ONE, stripped) == pending(ONE, ledger)


@pytest.mark.parametrize("quality", [0, 1])
def test_a_whole_comparison_has_what_is_expected_at_its_end(quality):
    ledger, totals = finished(FULL, quality)
    assert expected(FULL, ledger) == len(ledger)
    assert all(total <= len(ledger) for total in totals)  # rates beyond the first ones are not known before
    assert totals == sorted(totals)
    for cell in cells(FULL):
        found = runs(cell, FULL, ledger)
        assert [job.seed for job in found] == [0, 1, 2]
        assert all(job in ledger for job in found)
    seeds = Counter(replace(job, seed=0) for job in ledger)
    assert set(seeds.values()) <= {1, 3}


def test_without_rates_beyond_the_count_is_known_from_the_start():
    preset = replace(FULL, extend=False)
    ledger, totals = finished(preset)
    assert set(totals) == {len(ledger)}
    small, totals = finished(PRESETS["small"])
    assert set(totals) == {len(small)}


def test_what_is_made_does_not_hang_on_the_order_in_which_runs_end():
    for quality in range(3):
        assert finished(ONE, quality, random.Random(5))[0] == finished(ONE, quality)[0]


def test_what_was_lost_is_made_again_and_nothing_else():
    ledger, _ = finished(ONE)
    for lost in (at(1e-3), *list(ledger)[-2:]):
        rest = {job: each for job, each in ledger.items() if job != lost}
        assert pending(ONE, rest) == [lost]
    assert pending(ONE, ledger) == []


def test_pending_runs_are_in_the_order_of_the_cells_and_none_comes_twice():
    ready = pending(FULL, {})
    assert len(ready) == len(set(ready))
    places = {replace(cell, lr=0.0): place for place, cell in enumerate(cells(FULL))}
    assert [places[replace(job, lr=0.0)] for job in ready] == sorted(places[replace(job, lr=0.0)] for job in ready)
    assert list(dict.fromkeys(job.data for job in ready)) == list(TASKS)


def test_each_budget_and_who_has_one():
    found = list(cells(FULL))
    assert len(found) == len(set(found))
    shares = {method: {c.share for c in found if (c.data, c.method) == ("reviews", method)} for method in METHODS}
    for method, way in METHODS.items():
        if not way.budget:
            assert shares[method] == {0.0}
        elif way.adapter:  # LoRA of 8 has less than 2 % of MiniLM's scalars
            assert shares[method] == {0.005, 0.001}
        else:
            assert shares[method] == {0.005, 0.001, 0.02}
    assert {c.share for c in found if c.data == "boolq"} == {0.0, 0.005}
    assert {c.method for c in found if c.data == "asdiv"} == {NONE, *MATH}
    assert {c.share for c in found if c.data == "asdiv"} == {0.0, 0.005}
    assert Counter(c.data for c in found if c.method == NONE) == Counter(list(TASKS))


def test_adapters_can_hold_their_budgets():
    """MiniLM has 6 layers of width 384, within of 1536; SmolLM2 30 of 576, keys and values of 192, within of 1536."""
    minilm = 8 * 6 * (4 * (384 + 384) + 2 * (384 + 1536)), 6 * (2 * 384 * 48 + 48 + 384)
    smollm = 8 * 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    for preset in PRESETS.values():
        for cell in (each for each in cells(preset) if each.share and METHODS[each.method].adapter):
            if cell.data == "asdiv":
                assert METHODS[cell.method].adapter == "lora-8"
                assert cell.share * 134_515_008 < smollm
            else:
                assert cell.share * 22_713_986 < minilm[METHODS[cell.method].adapter == "pfeiffer"]


def test_exp_and_eps_are_those_of_the_paper_where_a_score_has_them():
    for cell in cells(FULL):
        if cell.method != NONE and METHODS[cell.method].scored:
            assert (cell.exp, cell.eps) == ((MATH_EXP if cell.data == "asdiv" else EXP), EPS)
        else:
            assert (cell.exp, cell.eps) == (0.0, 0.0)


def test_other_scores_run_with_id3s_rate_and_all_seeds():
    assert plan.score_runs(FULL, {}) == []
    usual = Job("reviews", "ID3", 0.005, 0.0, 0, EXP, EPS)
    ledger = {replace(usual, lr=lr): row(0.5) for lr in (3e-4, 1e-3, 3e-3)}
    ledger[replace(usual, lr=1e-3)] = row(0.6)
    found = plan.score_runs(FULL, ledger)
    assert {(job.exp, job.eps) for job in found} == {
        (0.0, 1.0), *((exp, eps) for exp in (0.5, 1.0, 2.0) for eps in (0.01, 0.1, 1.0) if (exp, eps) != (EXP, EPS))
    }  # fmt: skip
    assert {replace(job, exp=EXP, eps=EPS, seed=0) for job in found} == {replace(usual, lr=1e-3)}
    assert Counter(job.seed for job in found) == {0: 9, 1: 9, 2: 9}
    assert plan.score_runs(replace(FULL, tasks={"boolq": PAIRS}), ledger) == []


def test_rates_that_have_won_are_those_of_the_result_file():
    full, ledger = PRESETS["full"], Ledger(RESULTS / "quality.csv")
    usual = [cell for cell in cells(full) if cell.data == "reviews" and cell.share in (0.0, plan.SHARE)]
    won = {cell.method: tuning(cell, full, ledger)[1] for cell in usual if cell.method != NONE}
    assert {method: way.won for method, way in METHODS.items()} == won


def test_presets():
    assert set(PRESETS) == {"small", "full"}
    for preset in PRESETS.values():
        assert set(SMALL) <= set(preset.tasks) <= set(FULL.tasks)
        assert preset.tries % 2 == 1
        assert preset.shares[0] == plan.SHARE
    assert PRESETS["full"].seeds >= 3  # two data sets or more: 6 pairs for the Wilcoxon test
    assert sorted(LADDER) == list(LADDER)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_runs_are_told_apart_by_their_columns_and_names(preset):
    found, _ = finished(preset)
    assert all(Job.of(job.columns()) == job for job in found)
    assert len({str(job) for job in found}) == len(found)
