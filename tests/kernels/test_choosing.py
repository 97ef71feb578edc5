"""A selection left to the update that follows it: the same bits as one after the other, in one call where that is
offered, and never anything half done.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cudatests import CUDA_DEVICE, ON_GPU, on_cuda_kernels

from selective_kernels import AdamGroup, Ages, Score, SgdGroup, SparseIndex, Table, Update, _cuda, adam_, sgd_
from selective_kernels._cuda import optim
from selective_kernels.choosing import choose
from selective_kernels.prelude import Before, Choosing, Chosen, Clipping
from selective_kernels.testing import assert_bitwise_equal

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
TENSORS = [(700, F32), (0, F32), (1, F16), (900, BF16), (33, F16), (9000, F32)]
WITH_GRAD = [0, 1, 2, 3, 5]
GROUP_OF = [0, 1, 0, 1, 0, 1]
NOW = 5
SCORE = Score(1.0, 1.0)
ADAM = [AdamGroup(1e-2, 0.9, 0.99, 1e-8, decay=0.1), AdamGroup(3e-3, 0.8, 0.999, 1e-6, l2=0.2)]
SGD = [SgdGroup(1e-2, 0.9, 0.5), SgdGroup(3e-3, 0.8, nesterov=True)]
LARGE = 40_000  # entries of the last tensor where the threshold comes from a sample


class Model:
    """Tensors, an index over some of their entries with room for k more, per-entry state, and gradients."""

    def __init__(self, device: str, k: int, *, share: float = 0.1, last: int = TENSORS[-1][0], scale: float = 1.0):
        rng = np.random.default_rng(0)
        tensors = [*TENSORS[:-1], (last, F32)]

        def normal(count: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(count, np.float32))

        self.params = [normal(numel).to(dtype).to(device) for numel, dtype in tensors]
        self.grads = [(normal(tensors[i][0]) * scale).to(tensors[i][1]).to(device) for i in WITH_GRAD]
        old = SparseIndex.from_lists([torch.from_numpy(np.flatnonzero(rng.random(n) < share)) for n, _ in tensors])
        self.k, self.table = k, Table(self.params)
        self.total = old.count + k

        def filled(values: torch.Tensor) -> torch.Tensor:
            room = torch.full((self.total,), math.nan if values.is_floating_point() else 10**9, dtype=values.dtype)
            room[: len(values)] = values
            return room.to(device)

        self.index = SparseIndex(filled(old.valid), list(old.starts))
        self.first, self.second, self.master = (filled(normal(old.count).abs()) for _ in range(3))
        self.chosen = filled(torch.from_numpy(rng.integers(0, NOW, old.count).astype(np.int32)))
        self.original = filled(torch.arange(old.count, dtype=torch.int32))
        self.selected = torch.full((self.total,), math.nan, device=device)

    def choosing(self, flag: torch.Tensor | None = None) -> Choosing:
        state = [(self.first, 0), (self.second, 0), (self.master, "values")]
        arrays = [*state, (self.chosen, NOW), (self.original, "bits")]
        return Choosing(self.k, SCORE, self.grads, arrays, flag)

    def step(self, backend: str, kind: str, per_entry: bool = False, before: Before | None = None) -> None:
        steps = [0 if i not in WITH_GRAD else 1 + i for i in range(len(TENSORS))]
        ages = Ages(self.chosen, {0: [2, 3], 4: [1]}, NOW) if per_entry else None
        update = Update(
            self.table, self.index, WITH_GRAD, self.selected, self.master, GROUP_OF, steps, ages, before=before
        )
        if kind == "adam":
            adam_(update, self.first, self.second, ADAM, backend=backend)
        else:
            sgd_(update, self.first, SGD, backend=backend)

    def at_once(self, backend: str, kind: str = "adam", per_entry: bool = False, flag: torch.Tensor | None = None):
        """Selects and updates with one call from here; returns what came of the selection."""
        choosing = self.choosing(flag)
        self.step(backend, kind, per_entry, Before(choosing=choosing, clipping=Clipping(0.5, 1e-6)))
        return choosing.chosen

    def apart(self, backend: str, kind: str = "adam", per_entry: bool = False):
        """The same one after the other."""
        choosing = self.choosing()
        assert choose(self.table, self.index, WITH_GRAD, self.selected, choosing, backend)
        self.step(backend, kind, per_entry, Before(clipping=Clipping(0.5, 1e-6)))
        return choosing.chosen

    def arrays(self) -> list[torch.Tensor]:
        count = self.index.count
        per_entry = [self.index.offsets, self.first, self.second, self.master, self.chosen, self.original]
        return [*self.params, *(array[:count] for array in [*per_entry, self.selected])]


def assert_same(one: Model, other: Model, what: str = "") -> None:
    assert one.index.starts == other.index.starts, what
    for i, (mine, theirs) in enumerate(zip(one.arrays(), other.arrays(), strict=True)):
        assert_bitwise_equal(mine.cpu(), theirs.cpu(), f"array {i} {what}")


@pytest.mark.parametrize("per_entry", [False, True], ids=["global", "per_entry"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize(("k", "share"), [(500, 0.1), (1, 0.1), (300, 0.0), (20_000, 0.3)])
def test_c4_the_same_bits_as_one_after_the_other(on_every_backend, kind, per_entry, k, share):
    """Also with nothing selected before, and with more wanted than there is."""

    def run(backend, device):
        models = Model(device, k, share=share), Model(device, k, share=share)
        found = models[0].at_once(backend, kind, per_entry), models[1].apart(backend, kind, per_entry)
        assert found[0] == found[1]
        starts = [model.index.starts for model in models]
        return found[0], starts, [model.arrays() for model in models]

    expected = None
    # Triton takes an update alone, as "cpu" does, and its interpreter minutes.
    for path, (found, starts, (at_once, apart)) in on_every_backend(run, triton=False).items():
        assert starts[0] == starts[1], path
        for i, (one, other) in enumerate(zip(at_once, apart, strict=True)):
            assert_bitwise_equal(one, other, f"array {i}, {path}")
        expected = expected or (found, starts)
        assert (found, starts) == expected, path
        assert found.finite
        assert found.n_new == min(k, starts[0][-1] - Model("cpu", k, share=share).index.count)
        assert found.n_new > 0


def test_c3_nothing_to_select_is_an_update_alone(on_every_backend):
    def run(backend, device):
        model = Model(device, 100, scale=0.0)
        return model.at_once(backend), model.index.starts

    starts = Model("cpu", 100).index.starts
    for path, found in on_every_backend(run, triton=False).items():
        assert found == (Chosen(True, 0, 0.0), starts), path


@pytest.mark.parametrize("where", ["selected", "other", "elsewhere"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_c9_a_bad_gradient_changes_nothing(on_every_backend, bad, where):
    """C9: wherever it is, also outside of these tensors, which a flag tells."""
    start = Model("cpu", 50)

    def run(backend, device):
        model = Model(device, 50)
        flag = torch.full((1,), int(where == "elsewhere"), dtype=torch.int32, device=device)
        chosen = model.index.of(5)
        if where == "selected":
            model.grads[-1][int(chosen[3])] = bad
        elif where == "other":
            model.grads[-1][int(chosen[3]) + 1 - int(chosen[4] == chosen[3] + 1) * 2] = bad
        return model.at_once(backend, flag=flag), model.index.starts, model.arrays()[:-1]

    for path, (found, starts, arrays) in on_every_backend(run, triton=False).items():
        assert found == Chosen(False, 0, 0.0), path
        assert starts == start.index.starts, path
        for i, (one, other) in enumerate(zip(arrays, start.arrays(), strict=False)):
            assert_bitwise_equal(one, other, f"array {i}, {path}")


def test_a_flag_that_is_not_raised_stops_nothing(on_every_backend):
    def run(backend, device):
        model = Model(device, 50)
        return model.at_once(backend, flag=torch.zeros(1, dtype=torch.int32, device=device))

    for path, found in on_every_backend(run, triton=False).items():
        assert found.n_new == 50, path


@pytest.fixture
def calls(monkeypatch):
    """How often the native update was called."""
    made = []
    original = optim._call
    monkeypatch.setattr(optim, "_call", lambda *given: made.append(1) or original(*given))
    return made


def test_c4_a_misleading_threshold_is_noticed(monkeypatch, calls):
    """C4: with a threshold that only ten entries reach the call changes nothing, and several calls do it."""
    with on_cuda_kernels():
        mine, other = (Model(CUDA_DEVICE, 400, last=LARGE) for _ in range(2))
        other.apart("cuda")
        original = _cuda.choosing.first_sample

        def misled(*given):
            sample, _ = original(*given)
            return sample._replace(lines=0), int(torch.tensor(2.4).view(torch.int32))

        monkeypatch.setattr(_cuda.choosing, "first_sample", misled)
        calls.clear()
        mine.at_once("cuda")
    assert len(calls) == 2
    assert_same(mine, other)


def test_c4_too_little_room_for_candidates_is_noticed(monkeypatch, calls):
    with on_cuda_kernels():
        mine, other = (Model(CUDA_DEVICE, 400, last=LARGE) for _ in range(2))
        other.apart("cuda")
        monkeypatch.setattr(_cuda.choosing, "capacity_for", lambda *given: 399)
        calls.clear()
        mine.at_once("cuda")
    assert len(calls) == 2
    assert_same(mine, other)


def test_without_memory_for_one_call_it_makes_several(monkeypatch):
    """And says so."""
    with on_cuda_kernels():
        mine, other = (Model(CUDA_DEVICE, 400, last=LARGE) for _ in range(2))
        other.apart("cuda")
        original, made = optim.place_for, []

        def limited(*given):
            made.append(1)
            if len(made) == 1:
                raise torch.OutOfMemoryError("a test's limit")
            return original(*given)

        monkeypatch.setattr(optim, "place_for", limited)
        with pytest.warns(UserWarning, match="out of memory for a selection and its update in one call"):
            mine.at_once("cuda")
    assert_same(mine, other)


def test_one_call_with_a_sample(calls):
    with on_cuda_kernels():
        mine, other = (Model(CUDA_DEVICE, 400, last=LARGE) for _ in range(2))
        other.apart("cuda")
        calls.clear()
        mine.at_once("cuda")
    assert len(calls) == 1
    assert_same(mine, other)


@pytest.mark.skipif(ON_GPU, reason="what is made to fail here is the emulation")
@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize", "cudaMemsetAsync"])
def test_a_call_that_fails_inserts_nothing(monkeypatch, call):
    """Nor does the index count what did not come."""
    model, start = Model("cpu", 50), Model("cpu", 50)
    monkeypatch.setenv("SELECTIVE_EMULATION_FAIL", call)
    with on_cuda_kernels(), pytest.raises(RuntimeError, match=rf"^{call} failed"):
        model.at_once("cuda")
    assert model.index.starts == start.index.starts
    for i, (one, other) in enumerate(zip(model.arrays()[:-1], start.arrays(), strict=False)):
        assert_bitwise_equal(one, other, f"array {i}")
    monkeypatch.delenv("SELECTIVE_EMULATION_FAIL")
    with on_cuda_kernels():
        model.at_once("cuda")
        start.apart("cuda")
    assert_same(model, start)


def test_an_interrupt_after_the_call_finds_the_index_whole(monkeypatch):
    """Python raises KeyboardInterrupt where a native call returns: what was merged is what the index counts."""

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(optim, "take_chosen", interrupted)
    with on_cuda_kernels():
        mine, other = (Model(CUDA_DEVICE, 400) for _ in range(2))
        other.apart("cuda")
        with pytest.raises(KeyboardInterrupt):
            mine.at_once("cuda")
    assert_same(mine, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"^k: expected an integer >= 1, got 0"),
        ({"score": Score(family="magnitude")}, r"^grads: expected None for a score of family 'magnitude'"),
        ({"k": 60}, r"^arrays\[0\]\[0\]: expected a contiguous vector of \d+ items or more"),
        ({"flag": torch.zeros(1)}, r"^flag: expected dtype torch.int32, got torch.float32"),
    ],
)
def test_c14_what_cannot_be_changes_nothing(change, message):
    model, start = Model("cpu", 50), Model("cpu", 50)
    choosing = model.choosing()
    for name, value in change.items():
        setattr(choosing, name, value)
    with pytest.raises((TypeError, ValueError), match=message):
        model.step("cpu", "adam", before=Before(choosing=choosing))
    assert_same(model, start)
