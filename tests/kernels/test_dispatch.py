"""Which backend serves what: forced, missing, explained; and that the installed packages are what is tested."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from selective_kernels import Score, SparseIndex, _native, dispatch, explain, gather, scan, topk, topk_ref
from selective_kernels.testing import assert_same_index, isa_paths, num_threads, use_isa

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "SELECTIVE_KERNELS_BACKEND"
THERE = [backend for backend in dispatch.BACKENDS if not dispatch.unavailable(backend, "cpu")]
MISSING = "the compiled module selective_kernels._native_cpu does not load: no such file"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    dispatch._warn_skipped.cache_clear()
    yield
    dispatch._warn_skipped.cache_clear()


@pytest.fixture
def without_native(monkeypatch):
    """As if the compiled module did not load."""
    monkeypatch.setattr(_native, "load", lambda: (None, MISSING))


def small_topk(backend="auto"):
    return topk([torch.zeros(5)], [torch.tensor([1.0, 3.0, 0.0, 2.0, 2.0])], 2, Score(2.0, 1.0), backend=backend)


def test_auto_is_the_compiled_kernels_on_the_cpu():
    assert dispatch.resolve("cpu") == "cpu"
    assert dispatch.resolve("meta") == "reference"
    assert type(scan([torch.zeros(5)], SparseIndex.empty(1), 1, Score(2.0, 1.0))).__module__.endswith("_cpu.topk")


@pytest.mark.parametrize("op", dispatch.MODULE_OF)
@pytest.mark.parametrize("backend", THERE)
def test_every_operation_has_every_backend(op, backend):
    function = dispatch.implementation(op, torch.device("cpu"), backend)
    assert ("_cpu" in function.__module__) is (backend == "cpu")
    assert ("_triton" in function.__module__) is (backend == "triton")
    assert ("_cuda" in function.__module__) is (backend == "cuda")


@pytest.mark.parametrize("backend", THERE)
def test_forced_by_argument_or_variable(monkeypatch, backend):
    assert dispatch.resolve("cpu", backend) == backend
    monkeypatch.setenv(VARIABLE, backend)
    assert dispatch.resolve("cpu") == backend
    assert small_topk().valid.tolist() == [1, 3]


def test_the_argument_comes_before_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    assert dispatch.resolve("cpu", "cpu") == "cpu"
    monkeypatch.setenv(VARIABLE, "auto")
    assert dispatch.resolve("cpu") == "cpu"


def test_c14_unknown_backends_are_refused(monkeypatch):
    """C14: by argument and by variable; the message says which it was."""
    with pytest.raises(
        ValueError, match=r"^backend: expected 'auto' or one of \['cpu', 'triton', 'cuda', 'reference'\], got 'gpu'$"
    ):
        small_topk("gpu")
    monkeypatch.setenv(VARIABLE, "tpu")
    with pytest.raises(
        ValueError,
        match=rf"^{VARIABLE}: expected 'auto' or one of \['cpu', 'triton', 'cuda', 'reference'\], got 'tpu'$",
    ):
        small_topk()


def test_auto_without_native_module_warns_once_and_works(without_native):
    with pytest.warns(UserWarning, match=f"backend 'cpu' is not available .{MISSING}.; using 'reference'") as caught:
        first = small_topk()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = small_topk()
        gather([torch.zeros(5)], first)
    assert_same_index(first, second)
    assert_same_index(first, topk_ref([torch.zeros(5)], [torch.tensor([1.0, 3.0, 0.0, 2.0, 2.0])], 2, Score(2.0, 1.0)))


def test_c14_forced_without_native_module_raises(without_native, monkeypatch):
    """C14: the message lists what is there and why the rest is not; nothing else is used in silence."""
    missing = rf"backend='cpu' is not available: {MISSING}\ncpu: not available: {MISSING}"
    expected = rf"^{missing}\ntriton: .*\ncuda: .*\nreference: available"
    with pytest.raises(RuntimeError, match=expected):
        small_topk("cpu")
    monkeypatch.setenv(VARIABLE, "cpu")
    with pytest.raises(RuntimeError, match=rf"^{VARIABLE}='cpu' is not available: {MISSING}\n"):
        small_topk()
    assert small_topk("reference").count == 2
    with pytest.raises(RuntimeError, match=MISSING):
        _native.cpu()


def test_c14_the_kernels_take_cpu_tensors_only():
    with pytest.raises(RuntimeError, match=r"^backend='cpu' is not available: its kernels work on CPU .* on 'meta'\n"):
        dispatch.resolve("meta", "cpu")


def test_the_reason_for_a_module_that_does_not_load(monkeypatch):
    def fail(name):
        raise ImportError("libexample.so: cannot open shared object file")

    monkeypatch.setattr(_native.importlib, "import_module", fail)
    module, reason = _native.load.__wrapped__()  # past the cache
    assert module is None
    assert reason.endswith("_native_cpu does not load: libexample.so: cannot open shared object file")


def test_explain_names_threads_and_instruction_set(monkeypatch):
    with num_threads(3):
        for isa in isa_paths():
            with use_isa(isa):
                lines = explain().splitlines()
                assert lines[0] == f"{VARIABLE}=auto"
                assert lines[1].startswith(f"cpu: available, instruction set {isa} (of {', '.join(isa_paths())}), 3 ")
                assert lines[2].startswith("triton: ")
                assert lines[3].startswith("cuda: ")
                assert lines[4] == "reference: available (PyTorch, any device)"
    assert {f"cpu tensors: {op} -> cpu" for op in dispatch.MODULE_OF} < set(lines)
    assert {f"other tensors: {op} -> reference" for op in dispatch.MODULE_OF} < set(lines)
    monkeypatch.setenv(VARIABLE, "reference")
    assert explain().startswith(f"{VARIABLE}=reference\n")
    assert "cpu tensors: adam_ -> reference" in explain()


def test_explain_says_what_is_missing(without_native, monkeypatch):
    with pytest.warns(UserWarning, match="using 'reference'"):
        assert f"cpu: not available: {MISSING}" in explain()
    monkeypatch.setenv(VARIABLE, "cpu")
    assert f"cpu tensors: scan -> none ({VARIABLE}='cpu' is not available: {MISSING})" in explain()


def test_explain_answers_whatever_the_variable_holds(monkeypatch):
    """It is what one calls to find out what is wrong."""
    monkeypatch.setenv(VARIABLE, "tpu")
    assert "got 'tpu'" in explain()


def test_importing_imports_torch_only():
    """Design section 3: whatever else is loaded afterwards is Python's own, or was loaded by torch."""
    code = (
        "import sys, torch; before = {name.split('.')[0] for name in sys.modules}; import selective_kernels, "
        "selective_kernels.testing; after = {name.split('.')[0] for name in sys.modules}; "
        "print(*sorted(after - before - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=os.sep, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "selective_kernels"), done.stderr


def test_unknown_instruction_sets_are_refused():
    before = _native.cpu().isa()
    with pytest.raises(ValueError, match=r"isa: expected one of \[.*'portable'\], got 'sse9'"), use_isa("sse9"):
        pass
    assert _native.cpu().isa() == before


def is_editable() -> bool:
    """Whether pip installed a link to the source folder instead of a copy."""
    origin = importlib.metadata.distribution("selective-kernels").read_text("direct_url.json")
    return bool(origin) and bool(json.loads(origin).get("dir_info", {}).get("editable", False))


@pytest.mark.skipif(is_editable(), reason="an editable install is meant to import from the source folder")
@pytest.mark.parametrize("name", ["selective_kernels", "selective_peft", "selective_kernels._native_cpu"])
def test_what_is_tested_is_what_was_installed(name):
    """A source folder that shadows the built package would be tested in its place."""
    found = Path(importlib.import_module(name).__file__).resolve()
    assert not found.is_relative_to(ROOT / "selective_kernels")
    assert not found.is_relative_to(ROOT / "python")
