"""What dispatch says of the Triton backend where it is missing, too old, or has no GPU that it can use (C14)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from selective_kernels import Score, SparseIndex, _triton, dispatch, explain, scan


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is remembered of what was found before, or found here."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    _triton.load.cache_clear()
    dispatch._warn_skipped.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    _triton.load.cache_clear()
    dispatch._warn_skipped.cache_clear()


@pytest.fixture
def gpu(fresh):
    """As if there were a CUDA GPU of a capability."""

    def pretend(capability):
        fresh.setattr(torch.cuda, "is_available", lambda: True)
        fresh.setattr(torch.cuda, "device_count", lambda: 1)
        fresh.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        fresh.setattr(torch.cuda, "get_device_name", lambda device=None: "Example GPU")
        fresh.setenv("TRITON_INTERPRET", "0")

    return pretend


def without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)


def test_cpu_tensors_need_the_interpreter(fresh):
    fresh.setenv("TRITON_INTERPRET", "0")
    expected = (
        r"^backend='triton' is not available: its kernels work on CUDA tensors, these are on 'cpu' "
        r"\(to test, set TRITON_INTERPRET=1 before the start\)\ncpu: available"
    )
    with pytest.raises(RuntimeError, match=expected):
        scan([torch.ones(3)], SparseIndex.empty(1), 1, Score(), backend="triton")
    with pytest.raises(RuntimeError, match="its kernels work on CUDA tensors, these are on 'meta'"):
        dispatch.resolve("meta", "triton")


def test_auto_takes_triton_for_cuda_tensors_only(gpu):
    gpu((8, 0))
    assert dispatch.resolve("cuda") == "triton"
    assert dispatch.resolve("cpu") == "cpu"
    assert dispatch.defers(torch.device("cuda"))
    assert not dispatch.defers(torch.device("cpu"))
    assert "Example GPU" in explain()
    assert "cuda tensors: adam_ -> triton" in explain()
    with pytest.raises(RuntimeError, match=r"^backend='cpu' is not available: its kernels .* on 'cuda'"):
        dispatch.resolve("cuda", "cpu")


def test_a_gpu_that_is_too_old_is_named(gpu):
    gpu((7, 5))
    with pytest.raises(RuntimeError, match=r"need a GPU of compute capability 8.0 or more, Example GPU has 7.5"):
        dispatch.resolve("cuda", "triton")


def test_without_triton_auto_warns_and_goes_on(gpu, monkeypatch):
    gpu((9, 0))
    without_triton(monkeypatch)
    with pytest.warns(UserWarning, match=r"backend 'triton' is not available .*pip install 'triton>=3.6'.*'reference'"):
        assert dispatch.resolve("cuda") == "reference"
    with pytest.raises(RuntimeError, match=r"the package triton does not import .* pip install 'triton>=3.6'"):
        dispatch.resolve("cuda", "triton")
    assert "triton: not available: the package triton does not import" in explain()


def test_an_old_triton_is_refused(gpu, monkeypatch):
    gpu((9, 0))
    monkeypatch.setattr("triton.__version__", "3.5.1")
    with pytest.raises(RuntimeError, match=r"expected triton 3.6 or newer, got 3.5.1; upgrade it: pip install"):
        dispatch.resolve("cuda", "triton")


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0+git1234", "3.10.0", "4.0"])
def test_newer_tritons_are_taken(gpu, monkeypatch, version):
    gpu((9, 0))
    monkeypatch.setattr("triton.__version__", version)
    assert dispatch.resolve("cuda") == "triton"


def test_a_step_on_the_cpu_imports_no_triton():
    """It is optional: only a backend that needs it may load it."""
    code = (
        "import sys, torch; sys.modules['triton'] = None; from selective_peft import SelectiveAdamW; "
        "p = torch.nn.Parameter(torch.ones(9)); opt = SelectiveAdamW([p], budget=3, total_steps=1); "
        "p.grad = torch.ones(9); opt.step(); print(opt.num_selected)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=os.sep, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
