"""Fixtures of the tests of selective_peft."""

import gc
import os

# OpenMP reads this when torch loads it: threads that spin while they wait would make these tests, whose tensors are
# small, many times slower on busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from selective_kernels import dispatch
from selective_kernels.hostcopy import HostCopy
from selective_kernels.testing import num_threads


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    """The compiled kernels, and plain PyTorch."""
    return request.param


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def dtype(request):
    """All dtypes that a selective parameter may have (C1)."""
    return getattr(torch, request.param)


@pytest.fixture(scope="module", autouse=True)
def poisoned_memory():
    """torch.empty gives NaN or the largest integer, so that what nobody writes cannot look right."""
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: these tensors are small, and a test of its own shows that more threads give the same bits (C4)."""
    with num_threads(1):
        yield


@pytest.fixture(scope="module")
def quick_collections():
    """Accelerate collects garbage whenever training begins: what was there before the tests is left out of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def deferring(monkeypatch):
    """Backends that resolve flags at once behave as if they did not."""
    monkeypatch.setattr(dispatch, "defers", lambda device, backend: True)


@pytest.fixture
def waits(monkeypatch):
    """What the host has waited for by a `HostCopy`."""
    counted = []
    wait = HostCopy.wait
    monkeypatch.setattr(HostCopy, "wait", lambda self: counted.append(self) or wait(self))
    return counted
