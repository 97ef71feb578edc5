"""The GPU benchmark with the backends for GPUs side by side, tried on the CPU with an emulation of a GPU."""

import csv

import pytest
import torch
from cudatests import on_cuda_kernels

from benchmarks import gpu_rows, gpu_step
from benchmarks.gpu_cases import OURS, Case, ours_on
from selective_kernels import dispatch

TINY = ["--device", "cpu", "--shapes", "tiny", "--rounds", "1", "--alone", "1", "--budgets", "40", "--steps", "middle"]


@pytest.fixture
def as_if_for_gpus(monkeypatch):
    """The CPU kernels in Triton's place, and the emulation."""
    monkeypatch.setattr(dispatch, "ON_GPUS", ("cpu", "cuda"))


def run(tmp_path, *more):
    path = tmp_path / "gpu.csv"
    assert gpu_step.main([*TINY, *more, "--compiler", "eager", "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        return [(row["method"], row["backend"], row) for row in csv.DictReader(file)]


def test_both_take_their_turns_and_are_checked(tmp_path, as_if_for_gpus, monkeypatch):
    checked = []
    agree = gpu_step.gate.agree
    monkeypatch.setattr(gpu_step.gate, "agree", lambda *given: checked.append(given[-1]) or agree(*given))
    with on_cuda_kernels():
        found = run(tmp_path)
    assert [(method, backend) for method, backend, _ in found if backend] == [(OURS, "cpu"), (ours_on("cuda"), "cuda")]
    assert checked == ["cpu", "cpu", "cuda", "cuda"]
    mine, other = (row for _, backend, row in found if backend)
    assert float(other["ms_median"]) > 0
    assert float(other["ratio_to_ours"]) > 0
    assert mine["bytes_moved"] == other["bytes_moved"]


def test_one_that_is_missing_is_named(tmp_path, as_if_for_gpus, capsys):
    assert [backend for _, backend, _ in run(tmp_path) if backend] == ["cpu"]
    assert "backend cuda takes no part: its kernels work on CUDA tensors, these are on 'cpu'" in capsys.readouterr().out


def test_one_that_is_asked_for_by_name_is_alone(tmp_path, as_if_for_gpus):
    with on_cuda_kernels():
        found = run(tmp_path, "--backend", "cuda")
    assert [(method, backend) for method, backend, _ in found if backend] == [(OURS, "cuda")]


def test_a_whole_step_on_a_small_model_has_an_aim():
    case = Case("minilm-l6", torch.float32, (68_000,), ("middle",), "triton", 1, others=("cuda",))
    assert gpu_rows.backend_of(case, OURS) == "triton"
    assert gpu_rows.backend_of(case, ours_on("cuda")) == "cuda"
    assert gpu_rows.backend_of(case, "AdamW fused") == ""
    row = {"model": "minilm-l6", "budget": 68_000, "step": "middle", "note": "", "extra_bytes": ""}
    row |= dict.fromkeys(("ratio_to_read", "speedup_over_fused", "speedup_over_masking"), "")
    rows = [{**row, "backend": "cuda", "alone_ms_median": ms} for ms in ("0.1400", "0.1600")]
    lines = gpu_rows.verdicts([*rows, {**row, "backend": "triton", "alone_ms_median": "0.5"}])
    assert [line.endswith("NOT MET") for line in lines] == [False, True]
    assert "0.140 ms from an idle device, target <= 0.15" in lines[0]
