"""The benchmark of index lists: every way to store them gives them back, and no time is told of one that does not."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import codes, gaps
from benchmarks.codes import CODES, OURS
from benchmarks.gate import Mismatch
from benchmarks.selections import Selected, random_positions

LISTS = [[0], [5], [0, 1, 2], [127, 128, 256], [16_511, 16_512, 2_113_663, 2_113_665, 270_000_000], list(range(500))]


def selected(lists, name="some"):
    offsets = [torch.tensor(each, dtype=torch.int32) for each in lists]
    sizes = [each[-1] + 3 for each in lists]
    return Selected(name, 0.003, offsets, sizes, [7] * len(lists))


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_lists_come_back(code):
    for offsets, size, columns in gaps._lists(selected(LISTS)):
        stored = code.encode(offsets, columns)
        assert torch.equal(code.decode(stored, len(offsets), size, columns), offsets)


def test_rivals_take_what_they_are_known_to_take():
    offsets = torch.tensor([127, 128 + 128, 20_000, 2_113_665 + 20_000], dtype=torch.int32)  # gaps of 7, 8, 15, 22 bits
    sizes = {code.name: code.nbytes(code.encode(offsets, 10)) for code in CODES}
    assert sizes["int32, copied"] == 16
    assert sizes["int32 row and column (SHiRA)"] == 32
    assert codes.leb128(offsets).tolist() == [127, 128, 1, 0x9F, 0x9A, 1, 0x80, 0x81, 0x81, 1]
    assert sizes["gaps in LEB128, numpy"] == 10


def test_the_bound_counts_the_sets_that_there_are():
    """35 sets of 3 of 7, twice; and near the entropy of a coin for large ones."""
    few = Selected("few", 0.4, [torch.arange(3, dtype=torch.int32)] * 2, [7, 7], [1, 1])
    assert gaps.random_bound(few) == pytest.approx(2 * math.log2(35) / 8 / 6)
    many = random_positions(0.003, 100_000)
    entropy = -(0.003 * math.log2(0.003) + 0.997 * math.log2(0.997)) / 0.003
    assert gaps.random_bound(many) == pytest.approx(entropy / 8, rel=0.01)


def test_random_positions_have_their_density():
    found = random_positions(0.01, 50_000)
    assert found.count == 50_000
    assert found.count / found.sizes[0] == pytest.approx(0.01, rel=0.02)
    assert np.all(np.diff(found.lists[0].numpy()) > 0)


def test_joined_lists_are_the_same_positions_end_to_end():
    joined = selected([[0, 4], [1], [2, 3]]).joined("all")
    assert joined.lists[0].tolist() == [0, 4, 7 + 1, 7 + 4 + 2, 7 + 4 + 3]
    assert joined.sizes == [7 + 4 + 6]
    assert joined.count == 5


def test_the_command_writes_a_row_for_each_code_and_a_page(tmp_path, capsys):
    path = tmp_path / "gaps.csv"
    given = ["--share", "0.003", "--share", "0.01", "--count", "3000", "--steps", "0", "--rounds", "2"]
    assert gaps.main([*given, "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["share"], row["code"]) for row in rows] == [
        (share, code.name) for share in ("0.003", "0.01") for code in CODES
    ]
    ours = [row for row in rows if row["code"] == OURS]
    for row in ours:
        assert float(row["random_bound"]) < float(row["bytes_per_offset"]) < 1.05 * float(row["random_bound"])
        assert int(row["bytes"]) == pytest.approx(3000 * float(row["bytes_per_offset"]), abs=1)
        speed = int(row["bytes"]) / float(row["encode_us_median"])
        assert float(row["encode_mb_per_s"]) == pytest.approx(speed, rel=0.01)
    assert all(row[key] for row in rows for key in ("cpu", "threads", "torch", "commit", "utc"))
    assert {row["threads"] for row in rows} == {"1"}
    out = capsys.readouterr().out
    assert "0.3 %, random positions, 1 lists: 1.2" in out
    assert out.count("target > 200") == 4
    assert gaps.main(["--page", "--csv", str(path)]) == 0
    assert f"| {OURS} | {float(ours[0]['bytes_per_offset']):.2f} |" in capsys.readouterr().out


def test_a_missed_aim_is_said():
    row = {"code": OURS, "share": 0.003, "lists": "random positions", "n_lists": 1, "bytes_per_offset": "1.31"}
    lines = gaps.verdicts([{**row, "encode_mb_per_s": "200.0", "decode_mb_per_s": "200.1"}])
    assert [line.rpartition(": ")[2] for line in lines] == ["NOT MET", "NOT MET", "met"]
    run = {**row, "lists": "a run", "bytes_per_offset": "2.0", "encode_mb_per_s": "1", "decode_mb_per_s": "1"}
    assert [line.rpartition(": ")[2] for line in gaps.verdicts([run])] == ["met", "NOT MET", "NOT MET"]


@pytest.mark.parametrize("number", range(len(CODES)))
def test_a_way_that_loses_something_is_reported_instead_of_times(tmp_path, monkeypatch, capsys, number):
    wrong = replace(CODES[number], decode=lambda *given: CODES[number].decode(*given).roll(1))
    monkeypatch.setattr(gaps, "CODES", (*CODES[:number], wrong, *CODES[number + 1 :]))
    path = tmp_path / "gaps.csv"
    assert gaps.main(["--share", "0.01", "--count", "500", "--steps", "0", "--csv", str(path)]) == 1
    assert f"WRONG RESULT, no time is reported: {wrong.name}" in capsys.readouterr().err
    assert not path.exists()


def test_kernels_that_differ_from_the_reference_are_reported(monkeypatch):
    encode = gaps.encode_gaps
    monkeypatch.setattr(gaps, "encode_gaps", lambda o, backend: encode(o if backend == "cpu" else o[:-1]))
    with pytest.raises(Mismatch, match="kernels and reference differ"):
        gaps.check(selected(LISTS))
