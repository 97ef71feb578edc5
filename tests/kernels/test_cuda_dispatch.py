"""What dispatch says of the CUDA backend where it is missing, or has no GPU that it can use (C14)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cudatests import ON_GPU, on_cuda_kernels

from selective_kernels import SparseIndex, _cuda, dispatch, explain, gather

BUILT = _cuda.load()[0] is not None


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is remembered of what was found before, or found here."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    _cuda.load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    _cuda.load.cache_clear()


@pytest.fixture
def pretend(fresh):
    """pretend(driver, capability): as if the module were built, with a driver and a GPU of a capability."""

    def there(driver=13000, capability=(9, 0), runtime=13000, architectures="80 90 100"):
        module = SimpleNamespace(
            driver_version=lambda: driver, runtime_version=lambda: runtime, ARCHITECTURES=architectures
        )
        fresh.setattr(_cuda, "load", lambda: (module, ""))
        fresh.setattr(torch.cuda, "is_available", lambda: True)
        fresh.setattr(torch.cuda, "device_count", lambda: 1)
        fresh.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        fresh.setattr(torch.cuda, "get_device_name", lambda device=None: "Example GPU")

    yield there
    fresh.undo()


def refusal(backend="cuda", device="cuda"):
    with pytest.raises(RuntimeError) as raised:
        dispatch.resolve(device, backend)
    return str(raised.value)


def test_without_the_module_the_message_says_how_to_get_it(fresh):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    fresh.setattr(_cuda.importlib, "import_module", fail)
    message = refusal()
    assert message.startswith(
        "backend='cuda' is not available: the compiled module selective_kernels._native_cuda was not built; it is when "
        "nvcc 12.8 or newer is found, and SELECTIVE_KERNELS_CUDA=ON in the environment of a build says what it lacks\n"
    )
    assert "cpu: available" in message
    with pytest.raises(RuntimeError, match="was not built"):
        _cuda.native()


def test_a_module_that_does_not_load_says_why(fresh):
    def fail(name):
        raise ImportError("libexample.so: cannot open shared object file")

    fresh.setattr(_cuda.importlib, "import_module", fail)
    assert _cuda.load() == (None, f"the compiled module {_cuda.NAME} does not load: libexample.so: cannot open shared "
                            "object file")  # fmt: skip


def test_cpu_tensors_are_refused(fresh):
    assert refusal(device="cpu").startswith(
        "backend='cuda' is not available: its kernels work on CUDA tensors, these are on 'cpu'\n"
    )
    assert "these are on 'meta'" in refusal(device="meta")


def test_the_driver_is_asked_for_first(pretend):
    pretend(driver=0)
    assert "there is no NVIDIA driver on this machine" in refusal()
    pretend(driver=12090)
    assert (
        "the NVIDIA driver serves CUDA 12.9, the module selective_kernels._native_cuda was built with 13.0: expected a "
        "driver for CUDA 13.0 or newer"
    ) in refusal()
    pretend(driver=13000, runtime=13020)  # runtimes of one major version work with all its drivers
    assert dispatch.resolve("cuda", "cuda") == "cuda"


def test_the_capability_has_to_be_built(pretend):
    pretend(capability=(7, 5))
    assert (
        "Example GPU has compute capability 7.5, the module selective_kernels._native_cuda was built for 80 90 100 (of "
        "the last one newer ones, too); SELECTIVE_KERNELS_CUDA_ARCHITECTURES names others for a build"
    ) in refusal()


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "80 90 100", True),
        ((8, 9), "80 90 100", True),
        ((7, 5), "80 90 100", False),
        ((8, 0), "86", False),
        ((9, 0), "80 100", False),
        ((10, 3), "80 90 100", True),
        ((12, 0), "80 90 100", True),  # by PTX of the last one
        ((9, 0), "80", True),
    ],
)
def test_what_code_runs_where(capability, architectures, expected):
    assert _cuda.serves(capability, architectures) is expected


def test_by_name_only(pretend):
    """Experimental: "auto" takes it nowhere, and `explain` says so."""
    pretend()
    assert dispatch.resolve("cuda", "cuda") == "cuda"
    assert dispatch.defers(torch.device("cuda"), "cuda")
    assert "cuda" not in {name for names in dispatch.ORDER.values() for name in names}
    line = next(line for line in explain().splitlines() if line.startswith("cuda: "))
    assert line == (
        "cuda: available by name (CUDA 13.0, compute capabilities 80 90 100; Example GPU); experimental: no GPU has "
        'run it yet, so that "auto" leaves it out'
    )
    pretend(driver=0)
    assert "cuda: not available: there is no NVIDIA driver on this machine; experimental: " in explain()


def test_the_variable_and_what_files_hold(pretend, monkeypatch):
    pretend()
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "cuda")
    assert dispatch.resolve("cuda") == "cuda"
    assert dispatch.resolve_host() == "cpu"
    with pytest.raises(ValueError, match="expected 'auto', 'cpu' or 'reference' for what files hold, got 'cuda'"):
        dispatch.resolve_host("cuda")


@pytest.mark.skipif(ON_GPU, reason="on a GPU the tests run the module itself")
def test_the_emulation_is_for_a_block_only():
    with on_cuda_kernels():
        assert "cuda: available in an emulation of the device, for tests" in explain()
        index = SparseIndex.from_lists([torch.tensor([1])])
        assert gather([torch.tensor([3.0, 4.0])], index, backend="cuda").tolist() == [4.0]
    assert dispatch.unavailable("cuda", "cpu")


@pytest.mark.skipif(not BUILT, reason="the CUDA module was not built")
def test_the_module_needs_no_driver_to_load():
    """And a call without one says so, by the name of the CUDA call that failed."""
    module = importlib.import_module(_cuda.NAME)
    assert module.runtime_version() >= 12080
    assert [int(each) for each in module.ARCHITECTURES.split()] == sorted(map(int, module.ARCHITECTURES.split()))
    if module.driver_version() == 0:
        with pytest.raises(RuntimeError, match=r"^cudaGetDevice failed: cudaErrorInsufficientDriver \(.+\)$"):
            module.square_sum((0, 0, 0, 0), bytearray(0), 0, 0)
        assert _cuda.unavailable(torch.device("cuda")) == "there is no NVIDIA driver on this machine"


def test_a_step_on_the_cpu_loads_no_cuda_module():
    code = (
        "import sys, torch; from selective_peft import SelectiveAdamW; "
        "p = torch.nn.Parameter(torch.ones(9)); opt = SelectiveAdamW([p], budget=3, total_steps=1); "
        "p.grad = torch.ones(9); opt.step(); print(opt.num_selected, 'selective_kernels._native_cuda' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=os.sep, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3 False"), done.stderr
