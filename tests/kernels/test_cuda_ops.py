"""How the CUDA kernels over index lists are called: devices, streams, rooms, failing calls, tables on their way."""

from __future__ import annotations

from array import array

import pytest
import torch
from cudatests import CUDA_DEVICE, ON_GPU, emulation, on_cuda_kernels
from tritontests import placed

from selective_kernels import (
    AdamGroup,
    SparseIndex,
    Table,
    Update,
    _cuda,
    adam_,
    gather,
    gather_bits,
    gather_grads,
    merge_,
    scatter_,
    square_sum,
    swap_,
)
from selective_kernels._cuda.place import place_for

EMULATED = pytest.mark.skipif(ON_GPU, reason="what is made to fail here is the emulation")
FAILING = "SELECTIVE_EMULATION_FAIL"


@pytest.fixture(autouse=True)
def kernels():
    with on_cuda_kernels():
        yield


def one_gather(device=0, stream=0, size=None):
    """Gathers entry 1 of (3, 4) by a native call at a place."""
    place = place_for(torch.device("cpu"), 1)
    where = (device, stream, place.where[2], place.where[3] if size is None else size)
    values, out = torch.tensor([3.0, 4.0]), torch.zeros(1)
    index = SparseIndex.from_lists([torch.tensor([1])])
    _cuda.native().gather(where, Table([values]).rows(index), index.offsets.data_ptr(), out.data_ptr())
    return out.tolist()


@EMULATED
def test_a_stream_of_another_device_is_refused():
    """Before anything is enqueued, and the current device stays what it was."""
    assert one_gather(0, 0) == one_gather(0, 5) == one_gather(1, 16) == [4.0]
    for device, stream in ((0, 16), (1, 5)):
        with pytest.raises(
            ValueError, match=f"^stream: expected one of device {device}, got one of device {1 - device}$"
        ):
            one_gather(device, stream)
    assert one_gather(0, 5) == [4.0]


@EMULATED
def test_a_device_or_a_stream_that_is_not_there_is_named_by_the_call():
    for device in (2, -1):
        with pytest.raises(RuntimeError, match=r"^cudaSetDevice failed: cudaErrorInvalidDevice \(.*\)$"):
            one_gather(device)
    with pytest.raises(RuntimeError, match=r"^cudaStreamGetDevice failed: cudaErrorInvalidResourceHandle \(.*\)$"):
        one_gather(stream=4096)
    assert one_gather() == [4.0]


@EMULATED
@pytest.mark.parametrize(
    "call", ["cudaGetDevice", "cudaStreamGetDevice", "cudaMemcpyAsync", "cudaEventRecord", "cudaEventQuery"]
)
def test_a_call_that_fails_is_an_exception_with_its_name(monkeypatch, call):
    assert one_gather(stream=5) == [4.0]
    monkeypatch.setenv(FAILING, call)
    with pytest.raises(RuntimeError, match=rf"^{call} failed: cudaErrorIllegalAddress \(emulated\)$"):
        one_gather(stream=5)
    monkeypatch.delenv(FAILING)
    assert one_gather(stream=5) == [4.0]


@EMULATED
def test_too_little_room_is_refused():
    with pytest.raises(ValueError, match=r"^room: expected \d+ bytes or more, got 64$"):
        one_gather(size=64)


def test_tables_of_every_length_have_room():
    """Thousands of tensors, with entries and without: what Python sets aside is enough, whatever the operation."""
    for n_tensors in (1, 2, 63, 64, 65, 1000, 5000):
        params = [torch.full((3,), float(i % 100), device=CUDA_DEVICE) for i in range(n_tensors)]
        table = Table(params)
        lists = [torch.tensor([0, 2] if i % 3 else [], dtype=torch.int64) for i in range(n_tensors)]
        index = placed(SparseIndex.from_lists(lists), CUDA_DEVICE)
        expected = [float(i % 100) for i in range(n_tensors) for _ in range(2) if i % 3]
        assert gather(table, index, backend="cuda").tolist() == expected
        numbers, values = list(range(n_tensors)), torch.ones(index.count, device=CUDA_DEVICE)
        assert float(square_sum(table, index, numbers, values, backend="cuda")) == len(expected)
        update = Update(table, index, numbers, values, None, [0] * n_tensors, [1] * n_tensors)
        adam_(update, values.clone(), values.clone(), [AdamGroup(0.0, 0.9, 0.99, 1e-8)], backend="cuda")
        assert gather(table, index, backend="cuda").tolist() == expected
        grown = SparseIndex.empty(n_tensors, 2 * n_tensors, CUDA_DEVICE)
        for _ in range(2):  # the second time with nothing new in it
            merge_(grown, index, [(torch.zeros(2 * n_tensors, device=CUDA_DEVICE), None)] * 5, backend="cuda")
            assert grown.count == len(expected)
            index = SparseIndex.empty(n_tensors, 0, CUDA_DEVICE)
        assert grown.valid.tolist() == [0, 2] * (len(expected) // 2)


def test_nothing_to_do_is_no_call():
    """Without entries, without tensors, and without new entries nothing is read or written."""
    table = Table([torch.ones(4, device=CUDA_DEVICE), torch.ones(0, device=CUDA_DEVICE)])
    index = SparseIndex.empty(2, 0, CUDA_DEVICE)
    empty, flag = torch.empty(0, device=CUDA_DEVICE), torch.zeros(1, dtype=torch.int32, device=CUDA_DEVICE)
    assert gather(table, index, backend="cuda").shape == (0,)
    assert gather_bits(table, index, backend="cuda").shape == (0,)
    assert gather_grads(table, index, [0, 1], table.params, empty, flag=flag, backend="cuda")
    assert gather_grads(table, index, [], [], empty, backend="cuda")
    scatter_(table, index, empty, backend="cuda")
    swap_(table, index, empty.int(), backend="cuda")
    merge_(index, SparseIndex.empty(2, 0, CUDA_DEVICE), [(empty, None)], backend="cuda")
    assert float(square_sum(table, index, [0, 1], empty, backend="cuda")) == 0.0
    update = Update(table, index, [], empty, None, [0, 0], [1, 1])
    adam_(update, empty.clone(), empty.clone(), [AdamGroup(0.1, 0.9, 0.99, 1e-8)], backend="cuda")
    assert flag.tolist() == [0]
    assert table.params[0].tolist() == [1.0] * 4


def test_many_calls_in_flight_do_not_share_a_table():
    """A table on its way to the device is kept until its copy is done, also where tables outgrow their memory."""
    tensors = [torch.arange(float(1 + i), device=CUDA_DEVICE) for i in range(400)]
    tables = [Table(tensors[:n]) for n in (1, 400, 2, 399, 300, 3)] * 3
    found = []
    for table in tables:
        index = placed(SparseIndex.from_lists([torch.tensor([i]) for i in range(len(table))]), CUDA_DEVICE)
        found.append(gather(table, index, backend="cuda"))
    for table, values in zip(tables, found, strict=True):
        assert values.tolist() == [float(i) for i in range(len(table))]


def test_tables_are_whole_rows():
    with pytest.raises(ValueError, match="table: expected whole rows of 56 bytes, got 8 bytes"):
        _cuda.native().gather(place_for(torch.device(CUDA_DEVICE), 1).where, array("q", [1]), 0, 0)


@pytest.mark.skipif(not ON_GPU, reason="needs a second stream of a GPU")
def test_work_goes_to_the_current_stream():
    """What the stream was told before comes first."""
    values = torch.zeros(1 << 20, device="cuda")
    index = placed(SparseIndex.from_lists([torch.arange(0, 1 << 20, 3)]), "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(1, 50):
            values.fill_(float(step))
            assert bool((gather([values], index, backend="cuda") == step).all())


def test_the_emulation_stands_in_for_the_whole_module():
    """Every function that the Python side calls is there in both builds."""
    module, _ = _cuda.load()
    if module is not None:
        names = {name for name in dir(module) if not name.startswith("__")}
        assert names == {name for name in dir(emulation()) if not name.startswith("__")}
