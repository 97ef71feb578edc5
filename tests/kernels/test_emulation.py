"""The emulation of a device that CUDA kernels are tested on: results like a GPU's, and complaints where it has none."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from emulation.build import HERE, build

from selective_kernels import _native

SUM, HALVES, RACE, NUMBERS, EARLY_END, MISSING_LANE, PURPOSES, MISALIGNED, TOO_MUCH, BEYOND, DYNAMIC = range(11)


def sanitized():
    module, _ = _native.load()
    return module is not None and module.sanitized()


@pytest.fixture(scope="module")
def selfcheck():
    """selfcheck(which, out, in_, blocks, threads): runs a kernel of selfcheck.cu."""
    library = ctypes.CDLL(str(build("selfcheck", [HERE / "selfcheck.cu"], sanitized=sanitized())))

    def run(which, out, in_=None, count=0, blocks=1, threads=32):
        message = ctypes.create_string_buffer(400)
        arrays = [None if each is None else each.ctypes.data_as(ctypes.c_void_p) for each in (out, in_)]
        if library.selfcheck(which, *arrays, count, blocks, threads, message, len(message)):
            raise RuntimeError(message.value.decode())
        return out

    return run


@pytest.fixture(params=["0", "1", "2"])
def order(request, monkeypatch):
    monkeypatch.setenv("SELECTIVE_EMULATION_ORDER", request.param)
    return int(request.param)


@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_barriers_shuffles_and_shared_memory(selfcheck, order, threads):
    values = np.random.default_rng(0).integers(-1000, 1000, 5000).astype(np.int32)
    blocks = -(-len(values) // threads)
    expected = [values[i * threads : (i + 1) * threads].sum() for i in range(blocks)]
    found = selfcheck(SUM, np.zeros(blocks, np.int32), values, len(values), blocks, threads)
    assert found.tolist() == expected


def test_lanes_meet_in_parts_of_a_warp(selfcheck, order):
    found = selfcheck(HALVES, np.zeros(32, np.int32)).view(np.uint32)
    assert set(found[::2]) == {0x55550000}
    assert set(found[1::2]) == {0xAAAA0000}


def test_a_missing_barrier_shows(selfcheck):
    """Shared memory holds noise until somebody writes it."""
    assert selfcheck(RACE, np.zeros(64, np.int32)).tolist() != list(range(64))[::-1]


def test_order_of_blocks(selfcheck, order):
    found = selfcheck(NUMBERS, np.zeros(101, np.int32), blocks=100, threads=1)[:100].tolist()
    assert sorted(found) == list(range(100))
    assert (found == sorted(found)) == (order == 0)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (EARLY_END, "__syncthreads: threads of the block have ended before it"),
        (MISSING_LANE, "__shfl_sync: lanes of its mask have ended or wait for something else"),
        (PURPOSES, "lanes of its mask have ended or wait for something else"),
        (MISALIGNED, "a load from a misaligned address"),
        (TOO_MUCH, "a block has no more than 48 KiB"),
        (DYNAMIC, "dynamic shared memory is not emulated"),
    ],
)
def test_what_a_device_leaves_undefined_is_an_error(selfcheck, which, message):
    room = np.zeros(64, np.int32)
    with pytest.raises(RuntimeError, match=message):
        selfcheck(which, room, room)
    assert selfcheck(SUM, room[:1], np.ones(32, np.int32), 32).tolist() == [32]  # and the next launch is not harmed


def test_a_launch_of_nothing_is_an_error(selfcheck):
    for blocks, threads in ((0, 32), (1, 0), (1, 1025)):
        with pytest.raises(RuntimeError, match="launch: invalid configuration"):
            selfcheck(SUM, np.zeros(1, np.int32), np.ones(1, np.int32), 1, blocks, threads)
