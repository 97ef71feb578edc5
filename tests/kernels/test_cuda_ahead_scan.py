"""What nvcc made of the scan's kernels: loads, registers and shared memory; needs no GPU. See test_cuda_ahead."""

from __future__ import annotations

import pytest
from cudaahead import cuobjdump, reports

from selective_kernels import _cuda

BUILT = _cuda.load()[0] is not None
KINDS = ["zero", "half", "one", "two", "any", "product", "magnitude", "random", "given"]  # Kind of csrc/score.h
TYPES = ["float", "BFloat16", "Float16"]
SCANS = {f"scan_kernel<{name}, {kind}>": (name, KINDS[kind]) for name in TYPES for kind in range(7)}
SCANS |= {"scan_kernel<float, 7>": ("float", "random"), "scan_kernel<float, 8>": ("float", "given")}
OTHERS = {"prepare_kernel", "recount_kernel", "collect_kernel", "round_kernel", "tally_kernel", "write_kernel"}
# Three blocks of 256 threads share a multiprocessor, with four loads of 16 bytes of each thread in flight.
SCAN_REGISTERS = 80
SHARED = 48 * 1024  # bytes that every GPU gives a block without being asked
AHEAD = 4

pytestmark = [
    pytest.mark.skipif(not BUILT, reason="the CUDA module was not built; test_cuda_ahead says whether it should be"),
    pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump, neither the toolkit's nor Triton's"),
]


def test_every_kernel_of_the_scan_is_there():
    assert {name for name, _ in reports()} >= {*SCANS, *OTHERS}


def test_full_tiles_are_read_by_128_bit_loads():
    """Gradients alone by as many at once as are in flight; with parameters, by two of each array."""
    for (name, capability), each in reports().items():
        if name in SCANS:
            _, kind = SCANS[name]
            alone = AHEAD if kind in ("zero", "half", "one", "two", "any", "product") else 0
            arrays = {"random": 0, "zero": 1, "given": 1, "magnitude": 1}.get(kind, 2)
            assert each["vector_loads"] >= alone + 2 * arrays, (name, capability)
            assert (each["vector_loads"] == 0) == (kind == "random")


def test_registers_and_memory_of_the_scan():
    for (name, capability), each in reports().items():
        if name in SCANS or name in OTHERS:
            assert each["registers"] <= SCAN_REGISTERS, (name, capability)
            assert (each["stack"], each["local"]) == (0, 0), (name, capability)
            assert each["shared"] <= SHARED, (name, capability)
