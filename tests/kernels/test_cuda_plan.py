"""How a scan on CUDA divides its work and its memory: tables, chunks, samples, buffers. Needs no device."""

from __future__ import annotations

import math
from array import array

import pytest
import torch
from cudatests import CUDA_DEVICE, on_cuda_kernels
from hypothesis import given
from hypothesis import strategies as st

from selective_kernels import SparseIndex, Table
from selective_kernels._cuda import plan, winners
from selective_kernels._cuda.plan import CHUNKS, MOST_TILES, TILE, chunks_of, plan_of, spots_of
from selective_kernels._cuda.read import first_sample, room_for_candidates
from selective_kernels.sampling import LINE, capacity_for, float_bits, sample_for

SIZES = st.lists(st.sampled_from([0, 1, 15, 16, 17, TILE - 1, TILE, TILE + 1, 5 * TILE + 7]), max_size=7)
BERT = [30522 * 768, 512 * 768, 2 * 768, *[768 * 768, 768] * 40, *[3072 * 768, 3072] * 24, 768, 768]


@given(SIZES, st.data())
def test_every_tile_is_in_one_chunk_of_its_dtype(numels, data):
    codes = data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(numels), max_size=len(numels)))
    chunks = chunks_of(numels, codes)
    assert chunks.ranges[0] == 0
    assert chunks.ranges[3] == len(chunks.items)
    found = []
    for code in range(3):
        for row, tile in chunks.items[chunks.ranges[code] : chunks.ranges[code + 1]].tolist():
            assert codes[row] == code
            found += [(row, t) for t in range(tile, min(tile + chunks.tiles, -(-numels[row] // TILE)))]
    assert sorted(found) == [(row, t) for row, numel in enumerate(numels) for t in range(-(-numel // TILE))]


@pytest.mark.parametrize("times", [1, 40, 4000])
def test_warps_of_large_tables_read_several_tiles(times):
    numels = [TILE * 100 * times, 5]
    chunks = chunks_of(numels, [0, 0])
    assert chunks.tiles == min(max(100 * times // CHUNKS, 1), MOST_TILES)
    assert len(chunks.items) == -(-100 * times // chunks.tiles) + 1


@given(SIZES, st.data())
def test_what_stands_before_a_tensor(numels, data):
    tensors = sorted(data.draw(st.sets(st.sampled_from(range(len(numels))) if numels else st.nothing())))
    spots = spots_of(numels, tensors).tolist()
    lines = slots = 0
    for spot, i in zip(spots, tensors, strict=False):
        assert spot == [lines, slots, sum(numels[:i])]
        lines += -(-numels[i] // LINE)
        slots += -(-numels[i] // TILE) + 1
    assert spots[-1] == [lines, slots, sum(numels)]


def test_positions_of_billions_of_entries_fit():
    numels = [2**31 - 1] * 4
    assert spots_of(numels, [3]).tolist()[0] == [0, 0, 3 * (2**31 - 1)]
    assert sum(numels) <= plan.MAX_ENTRIES


def test_plans_are_kept_by_the_tensors_read():
    with on_cuda_kernels():
        table = Table([torch.zeros(TILE + 1, device=CUDA_DEVICE), torch.zeros(3, device=CUDA_DEVICE)])
        whole, one = plan_of(table, [0, 1]), plan_of(table, [1])
        assert plan_of(table, range(2)) is whole
        assert plan_of(table, [1]) is one
        assert (whole.numel, whole.n_lines, whole.n_slots, whole.n_chunks) == (TILE + 4, 258, 5, 3)
        assert list(whole.slots) == [0, 3]
        assert one.for_native()[2:] == ((0, 1, 1, 1), 1, 2)
        half = Table([torch.zeros(3, dtype=torch.float16, device=CUDA_DEVICE)])
        assert plan_of(half, [0]).for_native()[2] == (0, 0, 0, 1)
        assert plan_of(half, [0]).for_native(keys=True)[2] == (0, 1, 1, 1)


@pytest.mark.parametrize("k", [1, 320, 320_000])
def test_samples_of_a_real_model(k):
    """Few lines are sampled, and candidates have room for some times what is wanted, not for the model."""
    numel = sum(BERT)
    n_lines = sum(-(-size // LINE) for size in BERT)
    sample = sample_for(k, n_lines, numel)
    assert sample.lines * LINE <= numel // 100
    assert sample.lines * sample.stride <= n_lines
    expected = k * sample.lines * LINE / numel
    assert sample.rank >= expected + 6 * math.sqrt(expected)
    assert k <= sample.candidates <= 2 * k + 20_000
    assert capacity_for(sample, numel) <= 3 * sample.candidates + 4096


@pytest.mark.parametrize(
    ("hint", "fixed", "sampled"),
    [
        (None, 0, True),
        (math.nan, 0, True),
        (0.0, 1, False),
        (-2.0, 1, False),
        (1.0, 0x3F800000, False),
        (math.inf, 0x7F800000, False),
        (1e39, 0x7F800000, False),
    ],
)
def test_hints_replace_the_sample(hint, fixed, sampled):
    sample, bits = first_sample(100, 10_000, 160_000, hint)
    assert (bits, sample.lines > 0) == (fixed, sampled)
    assert sample.candidates > 0  # candidates get room all the same


def test_small_tensors_are_not_sampled():
    sample, bits = first_sample(100, 100, 1600, None)
    assert (sample.lines, bits) == (0, 1)
    assert capacity_for(sample, 1600) == 1600
    assert float_bits(1e-45) == 1


def test_room_for_candidates_shrinks_until_it_fits(monkeypatch):
    asked = []

    def limited(count, device):
        asked.append(count)
        if count > 5000:
            raise torch.OutOfMemoryError("a test's limit")
        return torch.empty(count, dtype=torch.int64)

    monkeypatch.setattr("selective_kernels._cuda.read.allocate", limited)
    with pytest.warns(UserWarning, match=r"out of memory for \d+ candidates"):
        assert len(room_for_candidates(40_000, torch.device("cpu"))) == 2500
    assert asked == [40_000, 10_000, 2500]


def test_reports_of_some_tensors_become_those_of_all():
    """What a selection says of tensors 1 and 3 of four: two entries and one."""
    found = object.__new__(winners.Winners)
    found._table, found._tensors, found._n_readings = Table([torch.zeros(5)] * 4), [1, 3], 2
    numbers = array("q", [7, 0, 2, 3, 11, 0, 4, 0, 12, 1, 5, 6])
    found._report = winners.HostCopy(torch.frombuffer(numbers, dtype=torch.int64))
    report = found.wait()
    assert report == (7, [0, 0, 2, 2, 3], [(11, False, 4, 0), (12, True, 5, 6)])
    assert SparseIndex(torch.zeros(3, dtype=torch.int32), report.starts).count == 3
