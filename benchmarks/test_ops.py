"""Our operations under pytest-benchmark, to be stored and compared: `pytest benchmarks/ --benchmark-only`.

The same problems, checks and cold caches as in the suite `ops`; rivals and bandwidth are measured there.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import selective_kernels
from benchmarks.cold import Cold
from benchmarks.device import Clock
from benchmarks.op_grid import SELECTED, K
from benchmarks.op_problem import NONE, Point, Problem, make
from benchmarks.ops import MAKERS
from selective_kernels import _native
from selective_kernels.testing import num_threads

CASES = [(op, "float32") for op in MAKERS] + [(op, "bfloat16") for op in MAKERS if op != "merge"]
WARMUPS = 2


@pytest.fixture(scope="module", autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """The number that was asked for."""
    with num_threads(int(request.config.getoption("--op-threads")) or torch.get_num_threads()):
        yield


@pytest.fixture(scope="module")
def problems(request: pytest.FixtureRequest) -> dict[str, Problem]:
    """The base point of the suite in each dtype, made once."""
    model, isa = str(request.config.getoption("--op-model")), str(_native.cpu().isa())
    points = {
        dtype: Point("base", model, dtype, SELECTED[0], K[0], torch.get_num_threads(), isa, "cpu")
        for dtype in ("float32", "bfloat16")
    }
    return {dtype: make(point, NONE) for dtype, point in points.items()}


@pytest.mark.parametrize(("op", "dtype"), CASES)
def test_op(
    op: str, dtype: str, problems: dict[str, Problem], benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> None:
    """Checks an operation, then times it."""
    made = MAKERS[op](problems[dtype])
    made.check()
    ours, numbers, cold = made.contenders[0], count(), Cold(Clock(torch.device("cpu")))

    def setup() -> None:
        ours.prepare(next(numbers))
        cold.flush()

    benchmark.extra_info.update(
        package=selective_kernels.__file__, isa=_native.cpu().isa(), threads=torch.get_num_threads(), bytes=made.nbytes
    )
    rounds = int(request.config.getoption("--op-rounds"))
    benchmark.pedantic(ours.run, setup=setup, rounds=rounds, warmup_rounds=WARMUPS)  # type: ignore[no-untyped-call]
