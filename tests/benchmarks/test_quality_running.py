"""Runs of the comparison by accuracy: they learn, give the same results again, and are kept whole in a file."""

import math
import random
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tinyquality import NUMBERS, PAIRS, PRESET, TEXTS, job, one_thread, trained, untimed  # noqa: F401

from benchmarks.quality import running
from benchmarks.quality.asking import ask
from benchmarks.quality.jobs import EPS, EXP, NONE, Job
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import METHODS, trainable
from benchmarks.quality.running import run, train
from benchmarks.quality.tasks import encoded
from benchmarks.suites import read_csv

RUNS = [("reviews", method) for method in METHODS] + [("asdiv", method) for method in METHODS if method != "BitFit"]
SMALLER = {"reviews": 0.7, "asdiv": 0.97}  # of the loss before, within 12 steps


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "CACHE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("data", "method"), RUNS)
def test_every_method_learns(data, method):
    task = PRESET.tasks[data]
    parts, done, before = encoded(task), trained(method, data), trained(NONE, data)
    losses = [ask(each.model, parts.train, parts.tokenizer, task.causal).loss for each in (before, done)]
    assert losses[1] < SMALLER[data] * losses[0]
    assert 0 < done.loss < losses[0]
    assert done.forward_backward > 0
    assert done.step > 0


@pytest.mark.parametrize("task", [TEXTS, PAIRS, NUMBERS], ids=["texts", "pairs", "numbers"])
def test_the_same_run_gives_the_same_results_and_another_seed_others(task, cache):
    method = "LoRA r=8 + ID3" if task.causal else "ID3"
    found = [untimed(run(job(method, seed=seed), task)) for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0]["train_loss"] != found[2]["train_loss"]
    assert found[0]["test_loss"] != found[2]["test_loss"]
    assert found[0]["trained"] == found[2]["trained"]


def test_the_same_run_leaves_the_same_model_bit_for_bit(cache):
    first, second = (train(job("ID3"), TEXTS) for _ in range(2))
    for mine, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert first.loss == second.loss


def test_not_fine_tuned_trains_nothing():
    for data, task in PRESET.tasks.items():
        done = trained(NONE, data)
        assert done.optimizer is None
        assert (done.budget, done.trained) == (0, 0)
        for mine, other in zip(done.model.parameters(), task.model(0).parameters(), strict=True):
            assert torch.equal(mine, other)
        found = run(job(NONE, data), task)
        assert found["train_loss"] == "nan"
        assert found["state_bytes"] == found["trained"] == "0"


def test_the_cells_of_a_row():
    found = run(job("ID3"), TEXTS)
    parts, model = encoded(TEXTS), trained("ID3", "reviews").model
    for part in ("validation", "test"):
        answers = ask(model, getattr(parts, part), parts.tokenizer, causal=False)
        assert float(found[part]) == pytest.approx(answers.accuracy, abs=1e-6)
        assert float(found[f"{part}_loss"]) == pytest.approx(answers.loss, rel=1e-5)
    assert found["train_loss"] == f"{trained('ID3', 'reviews').loss:.6g}"
    assert (found["budget"], found["trained"]) == ("1288", f"{1288 + 66}")
    assert int(found["state_bytes"]) > 66 * 8  # moments of the head, and what is kept of the selected scalars


def test_as_many_steps_with_rates_that_fall_to_zero():
    rates, seen = [], []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "optimizer_for", lambda model, *more: Spy(model.parameters(), lr=0.012))
        train(job("full", lr=0.012), TEXTS, after=seen.append)
    assert seen == list(range(12))
    assert rates == pytest.approx([0.012 - 0.001 * step for step in range(12)])


def test_fisher_scores_are_computed_once_for_each_seed_and_read_after(cache, monkeypatch):
    first = untimed(run(job("Fish"), TEXTS))
    files = sorted(path.name for path in cache.iterdir())
    assert len(files) == 1
    assert re.fullmatch(r"fisher-reviews-[0-9a-f]{16}-8-0\.safetensors", files[0])
    kept = load_file(cache / files[0])
    body = dict(trainable(TEXTS.model(0))["body"])
    assert {name: value.shape for name, value in kept.items()} == {name: param.shape for name, param in body.items()}
    assert all((value >= 0).all() for value in kept.values())
    computed = []
    monkeypatch.setattr(running, "fisher_scores", lambda *args, **more: computed.append(args) or {})
    assert untimed(run(job("Fish"), TEXTS)) == first
    assert untimed(run(job("Fish", lr=3e-3), TEXTS)) != first
    assert computed == []
    with pytest.raises(ValueError, match="scores"):  # of another seed there are none yet
        run(job("Fish", seed=1), TEXTS)
    assert len(computed) == 1


def test_fisher_scores_of_other_examples_are_not_taken(cache):
    run(job("Fish"), TEXTS)
    run(job("Fish"), replace(TEXTS, tokens=5))  # the same rows, cut
    assert len(list(cache.iterdir())) == 2


def test_fisher_scores_leave_the_run_as_it_would_be(cache):
    """The head and the order of the examples are the seed's, whether scores are computed before or read."""
    first, second = (train(job("Fish"), TEXTS) for _ in range(2))
    for mine, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(mine, other)


# ---------------------------------------------------------------------- the file of results

JOBS = [
    Job("reviews", NONE, 0.0, 0.0, 0),
    Job("reviews", "ID3", 0.005, 1e-3, 0, EXP, EPS),
    Job("reviews", "ID3", 0.005, 1e-3, 1, EXP, EPS),
    Job("reviews", "ID3", 0.005, 3e-4, 0, EXP, EPS),
    Job("reviews", "ID3", 0.001, 1e-3, 0, EXP, EPS),
    Job("reviews", "ID3", 0.005, 1e-3, 0, 0.5, 0.01),
    Job("reviews", "PaFi", 0.005, 1e-3, 0),
    Job("boolq", "full", 0.0, 1e-4, 2),
]
RESULTS = {"validation": "0.5", "test": "0.25", "validation_loss": "nan", "test_loss": "1", "utc": "now, or then"}


def test_a_ledger_reads_what_it_wrote(tmp_path):
    path = tmp_path / "more" / "quality.csv"
    ledger = Ledger(path)
    assert not path.exists()
    for number, each in enumerate(JOBS):
        ledger.add(each, {**RESULTS, "test": f"0.{number}"})
        assert Ledger(path) == ledger
    assert [ledger[each]["test"] for each in JOBS] == [f"0.{number}" for number in range(len(JOBS))]
    ledger.add(JOBS[3], {**RESULTS, "test": "0.9"})  # made again
    assert Ledger(path)[JOBS[3]]["test"] == "0.9"
    assert len(read_csv(path)) == len(JOBS)
    assert [each.name for each in path.parent.iterdir()] == ["quality.csv"]


def test_the_order_of_rows_is_not_that_of_arrival(tmp_path):
    texts = set()
    for seed in range(4):
        path = tmp_path / f"{seed}.csv"
        ledger = Ledger(path)
        for each in random.Random(seed).sample(JOBS, len(JOBS)):
            ledger.add(each, RESULTS)
        texts.add(path.read_text())
    assert len(texts) == 1
    methods = [row["method"] for row in read_csv(path) if row["data"] == "reviews"]
    assert methods == [NONE, "PaFi", *["ID3"] * 5]  # as in the table of methods


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "quality.csv"
    ledger = Ledger(path)
    ledger.add(JOBS[0], RESULTS)
    before = path.read_bytes()

    def fails(*names):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.report.os.replace", fails)
        with pytest.raises(OSError, match="full"):
            ledger.add(JOBS[1], RESULTS)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("old", "new"),
    [("0.005,0.001", "0.005,fast"), (",ID3,", "\n"), ("0.25", ""), ("0.5,0.25", "0.5,many"), (',"now', ',a,"now')],
)
def test_a_damaged_row_is_named(tmp_path, old, new):
    path = tmp_path / "quality.csv"
    ledger = Ledger(path)
    for each in JOBS[:2]:
        ledger.add(each, RESULTS)
    lines = path.read_text().splitlines(keepends=True)
    damaged = lines[2].replace(old, new)
    assert damaged != lines[2]
    path.write_text("".join([*lines[:2], damaged]))
    with pytest.raises(ValueError, match=rf"^{path}, line 3: expected a row of this benchmark"):
        Ledger(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "quality.csv"
    path.write_text("op,ms\ntopk,1\n")
    with pytest.raises(ValueError, match="line 2: expected a row of this benchmark"):
        Ledger(path)
    path.write_text("")
    assert Ledger(path) == {}


def test_a_loss_that_is_no_number_is_kept(tmp_path):
    ledger = Ledger(tmp_path / "quality.csv")
    ledger.add(JOBS[0], RESULTS)
    assert math.isnan(float(Ledger(ledger.path)[JOBS[0]]["validation_loss"]))
