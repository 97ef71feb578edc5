"""The file of results, when several processes add to it."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from tinyquality import FEW, add_ten, job

from benchmarks import ROOT
from benchmarks.quality import plan
from benchmarks.quality.ledger import NUMBERS, Ledger

RESULTS = {**dict.fromkeys(NUMBERS, "0.5"), "device": "cpu"}


def test_a_ledger_keeps_what_another_one_has_added(tmp_path):
    first, second = Ledger(tmp_path / "a.csv"), Ledger(tmp_path / "a.csv")
    first.add(job("ID3", seed=0), RESULTS)
    second.add(job("ID3", seed=1), RESULTS)
    first.add(job("ID3", seed=0), {**RESULTS, "test": "0.25"})
    assert {key.seed: row["test"] for key, row in Ledger(tmp_path / "a.csv").items()} == {0: "0.25", 1: "0.5"}


def test_processes_side_by_side_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # new processes get this path
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        list(pool.map(add_ten, [tmp_path / "a.csv"] * 3, (0, 10, 20), [RESULTS] * 3))
    assert sorted(key.seed for key in Ledger(tmp_path / "a.csv")) == list(range(30))


def test_rows_of_another_device_are_of_another_comparison(tmp_path):
    ledger = Ledger(tmp_path / "a.csv")
    settings = FEW.tasks["reviews"].settings()
    ledger.add(job("ID3", seed=0), {**RESULTS, **settings})
    plan.check(FEW, ledger, "cpu")
    plan.check(FEW, ledger)
    with pytest.raises(ValueError, match=r"reviews: ID3.* expected a run on cuda, got cpu; give another file"):
        plan.check(FEW, ledger, "cuda")
