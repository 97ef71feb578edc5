"""What the kernel tests share: poisoned outputs, every path of the compiled kernels, and the top-k oracle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

# OpenMP reads this when torch loads it. Seven threads that spin while they wait make the suite ten times slower on
# two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import numpy as np
import pytest
import torch
from cudatests import CUDA_BESIDE_OTHERS, CUDA_DEVICE, on_cuda_kernels
from tritontests import AVAILABLE, DEVICE, at_home

from selective_kernels import Score, SparseIndex, dispatch
from selective_kernels.dispatch import ENVIRONMENT_VARIABLE
from selective_kernels.testing import isa_paths, num_threads, use_isa

# "suite" draws the same examples in every run, so that a failure is a change of the code; use
# `--hypothesis-profile=explore` to look for new ones. Deadlines measure the machine's other load here, not the code.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, max_examples=150)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("suite")

# Every instruction set with as many threads as CI has cores, and the fastest with one thread and with too many.
# On a GPU the Triton kernels have tests of their own, whose tensors are there.
TRITON = not dispatch.unavailable("triton", "cpu")
PATHS = [(isa, 2) for isa in isa_paths()] + [(isa_paths()[0], 1), (isa_paths()[0], 7)]


def on_backend(name: str, function: Callable[[], Any]) -> Any:
    """What a function gives if "auto" means a backend for GPUs; an error if it names the CPU kernels instead."""
    resolve, found = dispatch.resolve, set()

    def recorded(device: torch.device | str, backend: str = "auto") -> str:
        found.add(resolve(device, backend))
        return resolve(device, backend)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, name)
        patch.setattr(dispatch, "resolve", recorded)
        result = function()
    # The reference may be asked, too, to check a result.
    assert name in found, f"expected a call of kernels of {name}, got {found}"
    assert "cpu" not in found, f"expected kernels of {name}, got compiled ones: backend='cpu' in a function for all"
    return result


@pytest.fixture(scope="module", autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """torch.empty gives NaN or the largest integer, so that an entry that no kernel writes cannot look right."""
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory, see torch.utils.deterministic
    poison = torch.empty(2)
    assert poison.isnan().all(), f"poisoning does not work: {poison}"
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def everywhere() -> Callable[..., dict[str, Any]]:
    """everywhere(f): what f() gives on each path of the compiled kernels, in Triton's interpreter and in the emulation
    of CUDA, by path.

    The interpreter takes some 20 ms per 4096 entries; `triton=False` leaves it out. `cuda=False` does the emulation.
    """

    def run(function: Callable[[], Any], triton: bool = True, cuda: bool = True) -> dict[str, Any]:
        results = {}
        for isa, threads in PATHS:
            with use_isa(isa), num_threads(threads):
                results[f"{isa}, {threads} threads"] = function()
        if TRITON and triton:
            results["triton"] = on_backend("triton", function)
        if cuda and CUDA_BESIDE_OTHERS and CUDA_DEVICE == "cpu":
            with on_cuda_kernels():
                results["cuda"] = on_backend("cuda", function)
        return results

    return run


@pytest.fixture(scope="session")
def on_every_backend(everywhere: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """on_every_backend(f): what f(backend, device) gives on each path of the compiled kernels, in PyTorch, and on
    kernels for GPUs, where these are: on one, in the interpreter, in the emulation. All of it is brought to the CPU.

    `triton=False` leaves Triton out, which takes the interpreter some 4 ms per 1024 entries; `cuda=False` CUDA.
    """

    def run(function: Callable[[str, str], Any], triton: bool = True, cuda: bool = True) -> dict[str, Any]:
        results = everywhere(lambda: function("cpu", "cpu"), triton=False, cuda=False)
        results["reference"] = function("reference", "cpu")
        if AVAILABLE and triton:
            results["triton"] = at_home(function("triton", DEVICE))
        if CUDA_BESIDE_OTHERS and cuda:
            with on_cuda_kernels():
                results["cuda"] = at_home(function("cuda", CUDA_DEVICE))
        return results

    return run


class Ranking(NamedTuple):
    """All selectable entries, best first (C4)."""

    owners: np.ndarray
    offsets: np.ndarray
    scores: np.ndarray
    n_tensors: int

    def top(self, k: int) -> SparseIndex:
        """The best k as an index."""
        best = np.lexsort((self.offsets[:k], self.owners[:k]))
        owners, offsets = self.owners[:k][best], self.offsets[:k][best]
        return SparseIndex.from_lists([torch.from_numpy(offsets[owners == i]) for i in range(self.n_tensors)])

    def threshold(self, k: int) -> float:
        """The lowest score of the best k, 0.0 if there are none."""
        return float(self.scores[:k][-1]) if len(self.scores[:k]) else 0.0


def numpy_scores(grad: torch.Tensor, param: torch.Tensor, score: Score) -> np.ndarray:
    """The D3 score in IEEE float32 arithmetic, one rounding per operation (C2)."""
    g = np.abs(grad.detach().float().reshape(-1).numpy())
    d = np.abs(param.detach().float().reshape(-1).numpy()) + np.float32(score.eps)
    with np.errstate(all="ignore"):
        if score.exponent in (0, 0.5, 1, 2):
            return g / {0: np.float32(1), 0.5: np.sqrt(d), 1: d, 2: d * d}[score.exponent]
        return g / np.power(d.astype(np.float64), score.exponent).astype(np.float32)


@pytest.fixture(scope="session")
def ranking() -> Callable[..., Ranking]:
    """ranking(params, grads, score, index=None): the oracle. Scores in numpy, selectable by C3, order by C4."""

    def rank(
        params: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor | None],
        score: Score,
        index: SparseIndex | None = None,
    ) -> Ranking:
        owners, offsets, scores = [np.empty(0, int)], [np.empty(0, int)], [np.empty(0, np.float32)]
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            if grad is None:
                continue
            key = numpy_scores(grad, param, score)
            selectable = np.isfinite(key) & (key > 0)
            if index is not None:
                selectable[index.of(i).numpy()] = False
            found = np.flatnonzero(selectable)
            owners.append(np.full(len(found), i))
            offsets.append(found)
            scores.append(key[found])
        owner, offset, key = np.concatenate(owners), np.concatenate(offsets), np.concatenate(scores)
        order = np.lexsort((offset, owner, -key))  # the last key counts first
        return Ranking(owner[order], offset[order], key[order], len(params))

    return rank
