"""What precedes an update, left to it: the same bits as one after the other, in one call where that is offered."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cudatests import CUDA_DEVICE, ON_GPU, on_cuda_kernels
from tritontests import placed

from selective_kernels import (
    AdamGroup,
    Ages,
    SgdGroup,
    SparseIndex,
    Table,
    Update,
    _cuda,
    adam_,
    gather_grads,
    merge_,
    sgd_,
    square_sum,
)
from selective_kernels._cuda import indexing, optim
from selective_kernels.indexing import begin_insertion
from selective_kernels.prelude import Before, Clipping, Gathering
from selective_kernels.testing import assert_bitwise_equal

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TENSORS = [(700, F32), (0, F32), (1, F16), (900, BF16), (33, F16), (9000, F32)]
GROUP_OF = [0, 1, 0, 1, 0, 1]
WITH_GRAD = [0, 2, 3, 5]
LIMIT, EPS = 0.5, 1e-6


class Model:
    """Tensors, an index over them with room for new entries, per-entry state, and gradients, on one device."""

    def __init__(self, device: str, bad: float | None = None) -> None:
        rng = np.random.default_rng(0)

        def normal(count: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(count, np.float32))

        self.params = [normal(numel).to(dtype).to(device) for numel, dtype in TENSORS]
        self.grads = [normal(TENSORS[i][0]).to(TENSORS[i][1]).to(device) for i in WITH_GRAD]
        picked = [np.flatnonzero(rng.random(numel) < 0.6) for numel, _ in TENSORS]
        later = [rng.random(len(each)) < 0.3 for each in picked]
        old, new = (
            SparseIndex.from_lists([torch.from_numpy(p[m == chosen]) for p, m in zip(picked, later, strict=True)])
            for chosen in (False, True)
        )
        self.total = old.count + new.count
        self.table = Table(self.params)
        room = torch.full((self.total,), -1, dtype=torch.int32)
        room[: old.count] = old.valid
        self.index = SparseIndex(room.to(device), list(old.starts), self.table.numels)
        self.new = placed(new, device)
        self.new.checked_for = self.table.numels
        self.first, self.second, self.master = (self.filled(normal(old.count).abs(), device) for _ in range(3))
        self.chosen = self.filled(torch.from_numpy(rng.integers(0, 5, old.count).astype(np.int32)), device)
        self.selected = self.filled(normal(old.count), device)
        if bad is not None:
            self.grads[-1][int(old.of(len(TENSORS) - 1)[0])] = bad
        fresh = normal(new.count).to(device)
        born = torch.full((new.count,), 5, dtype=torch.int32, device=device)
        self.pairs = [(self.first, None), (self.second, None), (self.master, fresh), (self.chosen, born)]
        self.aligned = [(self.selected, normal(new.count).to(device))]
        self.flag = torch.zeros(1, dtype=torch.int32, device=device)

    def filled(self, values: torch.Tensor, device: str) -> torch.Tensor:
        room = torch.full((self.total,), math.nan if values.is_floating_point() else 10**9, dtype=values.dtype)
        room[: len(values)] = values
        return room.to(device)

    def arrays(self):
        return [*self.params, self.first, self.second, self.master, self.chosen, self.selected, self.index.offsets]


def step(model, kind, per_entry, backend, clip, skip=None, before=None):
    steps = [0 if i not in WITH_GRAD else 1 + i for i in range(len(TENSORS))]
    ages = Ages(model.chosen, {0: [2, 3], 4: [1]}, 5) if per_entry else None
    update = Update(
        model.table, model.index, WITH_GRAD, model.selected, model.master, GROUP_OF, steps, ages, clip, skip, before
    )
    if kind == "adam":
        groups = [AdamGroup(1e-2, 0.9, 0.99, 1e-8, decay=0.1), AdamGroup(3e-3, 0.8, 0.999, 1e-6, l2=0.2)]
        adam_(update, model.first, model.second, groups, backend=backend)
    else:
        sgd_(update, model.first, [SgdGroup(1e-2, 0.9, 0.5), SgdGroup(3e-3, 0.8, nesterov=True)], backend=backend)


def clip_of(model, backend):
    total = square_sum(model.table, model.index, WITH_GRAD, model.selected, backend=backend)
    return (LIMIT / (total.sqrt() + EPS)).clamp(max=1.0).float()


def selecting(model, kind, per_entry, backend, whole):
    if whole:
        insertion = begin_insertion(model.index, model.new, [*model.pairs, *model.aligned])
        return step(
            model, kind, per_entry, backend, 1.0, before=Before(insertion=insertion, clipping=Clipping(LIMIT, EPS))
        )
    merge_(model.index, model.new, [*model.pairs, *model.aligned], backend=backend)
    return step(model, kind, per_entry, backend, clip_of(model, backend))


def gathering(model, kind, per_entry, backend, whole):
    if whole:
        before = Before(gathering=Gathering(model.grads, model.flag), clipping=Clipping(LIMIT, EPS))
        return step(model, kind, per_entry, backend, 1.0, model.flag, before)
    gather_grads(model.table, model.index, WITH_GRAD, model.grads, model.selected, flag=model.flag, backend=backend)
    return step(model, kind, per_entry, backend, clip_of(model, backend), model.flag)


WAYS = {"selecting": selecting, "gathering": gathering}


@pytest.mark.parametrize("per_entry", [False, True], ids=["global", "per_entry"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_as_one_after_the_other(on_every_backend, way, kind, per_entry):
    def run(backend, device):
        found = []
        for whole in (False, True):
            model = Model(device)
            WAYS[way](model, kind, per_entry, backend, whole)
            found.append(model.arrays())
        return found

    start = Model("cpu")  # Triton takes an update alone, as "cpu" does, and its interpreter minutes
    for path, (apart, whole) in on_every_backend(run, triton=False).items():
        for i, (one, other) in enumerate(zip(apart, whole, strict=True)):
            assert_bitwise_equal(one, other, f"array {i}, {path}")
        changed = [not torch.equal(a, b) for a, b in zip(whole, start.params, strict=False)]
        assert [changed[i] for i in (0, 1, 3, 4, 5)] == [True, False, True, False, True], path


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_c9_a_bad_gradient_changes_no_parameter(on_every_backend, bad):
    """C9: the flag that the gather raises stops the update of the same call."""
    start = Model("cpu", bad)

    def run(backend, device):
        model = Model(device, bad)
        gathering(model, "adam", False, backend, True)
        return [*model.params, model.first, model.second, model.master], model.flag

    expected = [*start.params, start.first, start.second, start.master]
    for path, (arrays, flag) in on_every_backend(run, triton=False).items():
        assert flag.tolist() == [1], path
        for i, (one, other) in enumerate(zip(arrays, expected, strict=True)):
            assert_bitwise_equal(one, other, f"array {i}, {path}")


@pytest.fixture
def native_calls(monkeypatch):
    """Names of the native calls that enqueue something."""
    made = []

    def watched():
        module = _cuda.native()

        def call(name):
            return lambda *arguments: made.append(name) or getattr(module, name)(*arguments)

        names = ("gather", "gather_bits", "gather_grads", "square_sum", "adam", "sgd")
        classes = {name: getattr(module, name) for name in ("Merge", "Before", "Ages", "LEAST_ROOM", "ROOM_PER_ROW")}
        return SimpleNamespace(**{name: call(name) for name in names}, **classes)

    for module in (indexing, optim):
        monkeypatch.setattr(module, "native", watched)
    return made


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("way", WAYS)
def test_cuda_does_all_in_one_call(native_calls, way, kind):
    with on_cuda_kernels():
        model = Model(CUDA_DEVICE)
        WAYS[way](model, kind, True, "cuda", True)
    assert native_calls == [kind]


def test_an_index_that_was_not_checked_is_checked_when_it_is_whole(native_calls):
    """Then offsets have to be read, so the merge comes first, in a call of its own."""
    with on_cuda_kernels():
        model, other = Model(CUDA_DEVICE), Model(CUDA_DEVICE)
        model.new.checked_for = None
        selecting(model, "adam", False, "cuda", True)
        selecting(other, "adam", False, "cuda", True)
    assert native_calls == ["square_sum", "adam", "adam"]
    for i, (one, same) in enumerate(zip(model.arrays(), other.arrays(), strict=True)):
        assert_bitwise_equal(one, same, f"array {i}")


@pytest.mark.skipif(ON_GPU, reason="what is made to fail here is the emulation")
def test_a_call_that_fails_inserts_nothing(monkeypatch):
    """Nor does the index count what did not come."""
    model, start = Model("cpu"), Model("cpu")
    monkeypatch.setenv("SELECTIVE_EMULATION_FAIL", "cudaMemcpyAsync")
    with on_cuda_kernels(), pytest.raises(RuntimeError, match=r"^cudaMemcpyAsync failed"):
        selecting(model, "adam", False, "cuda", True)
    assert model.index.starts == start.index.starts
    for i, (one, other) in enumerate(zip(model.arrays(), start.arrays(), strict=True)):
        assert_bitwise_equal(one, other, f"array {i}")


def test_c14_an_insertion_without_room_changes_nothing():
    model = Model("cpu")
    before = list(model.index.starts)
    with pytest.raises(ValueError, match=r"^arrays\[0\]\[0\]: expected a contiguous vector of \d+ items or more"):
        begin_insertion(model.index, model.new, [(torch.zeros(3), None)])
    assert model.index.starts == before
