"""How the Triton kernels over index lists are launched: how often, with how much memory, beyond 2^31 entries."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from tritontests import DEVICE, INTERPRETED, placed

from selective_kernels import (
    AdamGroup,
    Ages,
    SgdGroup,
    SparseIndex,
    Table,
    Update,
    adam_,
    ages,
    gather,
    gather_bits,
    gather_grads,
    merge_,
    scatter_,
    sgd_,
    square_sum,
    swap_,
)
from selective_kernels._triton import indexing, merging, optim
from selective_kernels.hostcopy import to_device
from selective_kernels.testing import assert_same_index

KERNELS = {
    indexing: ["gather_kernel", "scatter_kernel"],
    merging: ["merge_kernel", "copy_kernel"],
    optim: ["adam_kernel", "sgd_kernel", "square_kernel"],
}
COUNTS = [3, 0, 1100, 0, 7, 1, 0]


@contextmanager
def nobody_waits():
    """On a GPU an error for whatever makes the host wait."""
    if not INTERPRETED:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if not INTERPRETED:
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def launches(monkeypatch):
    """The kernels launched so far, by name, with their positional arguments."""
    found = []

    class Counted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            def launch(*arguments, **keywords):
                found.append((self.name, arguments))
                return self.kernel[grid](*arguments, **keywords)

            return launch

    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(module, name, Counted(name, getattr(module, name)))
    return found


def problem(counts):
    """(table, index, what an update needs but its groups) on the device, with `counts` entries in the tensors."""
    params = [torch.ones(2 * count, device=DEVICE) for count in counts]
    index = placed(SparseIndex.from_lists([torch.arange(0, 2 * count, 2) for count in counts]), DEVICE)
    table = Table(params)
    index.checked_for = table.numels  # or each call would look at the offsets
    return table, index, torch.ones(index.count, device=DEVICE)


def updated(table, index, values, per_entry=False):
    numbers = list(range(len(table)))
    when = Ages(torch.zeros(index.count, dtype=torch.int32, device=DEVICE), {0: [1, 2]}, 3) if per_entry else None
    clip, skip = torch.ones((), device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    return Update(table, index, numbers, values, None, [0] * len(table), [4] * len(table), when, clip, skip)


def calls(table, index, values):
    """Each operation that is one launch, by name."""
    numbers, bits = list(range(len(table))), values.clone().view(torch.int32)
    flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    state = values.clone(), values.clone()
    adam, sgd = [AdamGroup(0.1, 0.9, 0.99, 1e-8)], [SgdGroup(0.1, 0.9)]
    plain, aged = updated(table, index, values), updated(table, index, values, per_entry=True)
    return {
        "gather": lambda: gather(table, index, backend="triton"),
        "gather_bits": lambda: gather_bits(table, index, backend="triton"),
        "gather_grads": lambda: gather_grads(
            table, index, numbers, table.params, values.clone(), flag=flag, backend="triton"
        ),
        "scatter_": lambda: scatter_(table, index, values, backend="triton"),
        "swap_": lambda: swap_(table, index, bits, backend="triton"),
        "adam_": lambda: adam_(plain, *state, adam, backend="triton"),
        "adam_ by age": lambda: adam_(aged, *state, adam, backend="triton"),
        "sgd_": lambda: sgd_(plain, state[0], sgd, backend="triton"),
        "sgd_ by age": lambda: sgd_(aged, state[0], sgd, backend="triton"),
        "square_sum": lambda: square_sum(table, index, numbers, values, backend="triton"),
    }


def test_one_launch_whatever_the_number_of_tensors(launches):
    """And none without entries or without tensors; the host waits for nothing."""
    without_tensors = [([], 0)] if INTERPRETED else []  # whose device is the CPU
    for counts, expected in [(COUNTS, 1), (COUNTS * 2, 1), ([0, 0], 0), *without_tensors]:
        for name, call in calls(*problem(counts)).items():
            if not INTERPRETED:
                call()  # compiles
            launches.clear()
            with nobody_waits():
                call()
            assert len(launches) == expected, (name, counts, launches)


def test_a_step_without_gradients_launches_nothing(launches):
    table, index, values = problem(COUNTS)
    skip = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    update = Update(table, index, [1, 3], values, None, [0] * len(table), [1] * len(table), None, 1.0, skip)
    adam_(update, values.clone(), values.clone(), [AdamGroup(0.1, 0.9, 0.99, 1e-8)], backend="triton")
    sgd_(update, None, [SgdGroup(0.1)], backend="triton")
    assert float(square_sum(table, index, [1, 3], values, backend="triton")) == 0.0
    assert launches == []


@pytest.mark.parametrize("n_arrays", [0, 1, 5])
def test_a_merge_is_two_launches_and_one_copy_of_the_arrays(launches, n_arrays):
    """4 bytes per entry, array and offset, and the host waits for nothing."""
    for counts in (COUNTS, COUNTS * 2):
        total = 2 * sum(counts)
        index = SparseIndex.empty(len(counts), total, DEVICE)
        arrays = [torch.zeros(total, dtype=torch.int32, device=DEVICE) for _ in range(n_arrays)]
        launches.clear()
        for first in (1, 0):
            new = placed(SparseIndex.from_lists([torch.arange(2 * count)[first::2] for count in counts]), DEVICE)
            with nobody_waits():
                merge_(index, new, [(array, new.offsets) for array in arrays], backend="triton")
        assert [name for name, _ in launches] == ["merge_kernel", "copy_kernel"] * 2
        merged = launches[-1][1][0]
        assert merged.numel() * merged.element_size() == 4 * total * (n_arrays + 1)
        expected = SparseIndex.from_lists([torch.arange(2 * count) for count in counts])
        assert_same_index(SparseIndex(index.offsets.cpu(), index.starts), expected)
        assert all(torch.equal(array, index.offsets) for array in arrays)
        launches.clear()
        merge_(index, SparseIndex.empty(len(counts), 0, DEVICE), [], backend="triton")
        assert launches == []


FAR = 2**31 + 5  # entries before those that are looked at


class Behind(torch.Tensor):
    """A tensor that says its address is that of an array in which `FAR` items come first."""

    def data_ptr(self):
        return super().data_ptr() - FAR * self.element_size()


def behind(values):
    """An array whose items from `FAR` on are `values`: in the interpreter without room for the others."""
    if INTERPRETED:
        return values.clone().as_subclass(Behind)
    array = torch.empty(FAR + len(values), dtype=values.dtype, device=DEVICE)
    array[FAR:] = values
    return array


def tail(array, count):
    return array.as_subclass(torch.Tensor)[-count:].cpu()


NEEDED = 36 * 2**30


@pytest.mark.skipif(
    not INTERPRETED and torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < NEEDED,
    reason="four arrays of more than 2^31 items do not fit this GPU",
)
def test_places_beyond_32_bits():
    """More than 2^31 entries in all tensors: those of the last one are found."""
    count = 1500
    params = [torch.ones(1, device=DEVICE), torch.ones(1, device=DEVICE), torch.ones(count, device=DEVICE)]
    table, near = Table(params), torch.arange(count, dtype=torch.int32).to(DEVICE)
    index = SparseIndex(behind(near), [0, 2**31 - 1, FAR, FAR + count])
    grads = behind(torch.zeros(count, device=DEVICE))
    indexing.gather_grads(table, index, [2], [near.float()], grads)
    assert tail(grads, count).tolist() == list(range(count))
    assert float(optim.square_sum(table, index, [2], grads)) == sum(i * i for i in range(count))
    first, second = (behind(torch.zeros(count, device=DEVICE)) for _ in range(2))
    update = Update(table, index, [2], grads, None, [0, 0, 0], [1, 1, 1])
    optim.adam_(update, first, second, [AdamGroup(0.5, 0.9, 0.99, 1e-8)])
    torch.testing.assert_close(tail(first, count), 0.1 * torch.arange(count))
    torch.testing.assert_close(params[2].cpu(), torch.tensor([1.0] + [0.5] * (count - 1)))


def test_corrections_by_age_are_uploaded_once(monkeypatch):
    """Known from the step before, doubled when they end, and exact; forgotten if every step has other betas."""
    uploads = []

    def upload(values, device):
        uploads.append(len(values))
        return to_device(values, device)

    monkeypatch.setattr(ages, "to_device", upload)
    monkeypatch.setattr(ages, "_known", {})
    betas, device = [(0.9, 0.9999), (0.0, 0.5), (0.9, 0.9999)], torch.device(DEVICE)
    sizes = []
    for now in range(5000):
        uploads.clear()
        found = ages.corrections_of(betas, now + 1, device)
        sizes.extend(uploads)
    assert len(sizes) <= 8  # two tables, each new one more than twice as long
    assert found.places.keys() == {(0.9, 0.9999), (0.0, 0.5)}
    for (beta1, beta2), (place, last) in found.places.items():
        for age in (1, 2, 17, 4999):
            at = place + min(age, last)
            assert float(found.first[at]) == pytest.approx(1.0 - beta1**age, rel=1e-7)
            assert float(found.second[at]) == pytest.approx(math.sqrt(1.0 - beta2**age), rel=1e-7)
    for i in range(3 * ages.MOST_TABLES):
        ages.corrections_of([(0.5 + i / 1000, 0.9)], 10, device)
    assert len(ages._known) == ages.MOST_TABLES
