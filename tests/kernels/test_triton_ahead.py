"""What Triton makes of the kernels, compiled ahead of time for three generations of GPUs; needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selective_kernels._triton.layout import TILE

CAPABILITIES = [80, 90, 100]
# Registers per thread. The scan lives on loads in flight: up to 80 of them let three programs of 256 threads share a
# multiprocessor (96 KB in flight in float32), up to 128 two. The others run for microseconds.
SCAN_REGISTERS, REGISTERS = 80, 128
SLOW_SCAN = ("scan any",)  # a power in float64
SHARED = 48 * 1024  # bytes that every GPU gives a program without being asked


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{(name, capability): report} of all kernels."""
    script = Path(__file__).with_name("tritonahead.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(script), *map(str, CAPABILITIES)]
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr[-4000:]
    return {(each["name"], each["capability"]): each for each in json.loads(made.stdout)}


def named(reports, start):
    found = {key: each for key, each in reports.items() if key[0].startswith(start)}
    assert found
    return found


def test_everything_compiles_for_every_generation(reports):
    names = {name for name, _ in reports}
    assert len(reports) == len(names) * len(CAPABILITIES)
    kernels = {
        "scan",
        "prepare",
        "filter",
        "repair",
        "fetch",
        "merge",
        "copy",
        "gather",
        "scatter",
        "adam",
        "sgd",
        "square",
    }
    assert {name.split()[0] for name in names} == kernels


@pytest.mark.parametrize(
    ("name", "loads"),
    [
        # (arrays that are read) x (bytes of a tile) / (16 bytes) / (256 threads)
        ("scan two float32", 2 * TILE * 4 // 16 // 256),
        ("scan two bfloat16", 2 * TILE * 2 // 16 // 256),
        ("scan two float16", 2 * TILE * 2 // 16 // 256),
        ("scan one float32", 2 * TILE * 4 // 16 // 256),
        ("scan half float32", 2 * TILE * 4 // 16 // 256),
        ("scan product float32", 2 * TILE * 4 // 16 // 256),
        ("scan zero float32", TILE * 4 // 16 // 256),
        ("scan given float32", TILE * 4 // 16 // 256),
        ("scan magnitude float32", TILE * 4 // 16 // 256),
        ("scan random float32", 0),
        ("scan reading bfloat16", TILE * 2 // 16 // 256),
    ],
)
def test_full_tiles_are_read_by_128_bit_loads(reports, name, loads):
    """Exactly as many as a tile has; one less would be a part that is read entry by entry."""
    assert {reports[name, capability]["vector_loads"] for capability in CAPABILITIES} == {loads}


def test_full_tiles_of_mixed_tables_are_read_by_128_bit_loads(reports):
    """A branch per dtype; those of the 16-bit ones may share the instructions of an array."""
    loads = 2 * TILE * 4 // 16 // 256 + 2 * TILE * 2 // 16 // 256
    for capability in CAPABILITIES:
        assert reports["scan two mixed", capability]["vector_loads"] >= loads


def test_c2_no_operation_is_rounded_carelessly(reports):
    """C2: no approximate division or square root, nothing flushed to zero, nothing contracted.

    Other exponents than 0, 1/2, 1 and 2 take a power from a library in float64.
    """
    for (name, capability), each in reports.items():
        if " any" not in name:
            assert each["careless"] == [], (name, capability)


def test_no_register_is_spilled(reports):
    for (name, capability), each in reports.items():
        assert each["spilled"] == 0, (name, capability)


def test_registers_and_shared_memory_stay_within_the_budget(reports):
    for (name, capability), each in reports.items():
        scan = name.startswith("scan") and not name.startswith(SLOW_SCAN)
        assert each["registers"] <= (SCAN_REGISTERS if scan else REGISTERS), (name, capability)
        assert each["shared"] <= SHARED, (name, capability)
