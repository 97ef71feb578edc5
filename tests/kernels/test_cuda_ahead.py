"""What nvcc made of the CUDA kernels, for every compute capability that they are built for; needs no GPU."""

from __future__ import annotations

import re
import shutil

import pytest
from cudaahead import careless, cuobjdump, reports, short_names

from selective_kernels import _cuda

BUILT = _cuda.load()[0] is not None
NVCC = shutil.which("nvcc") is not None

LISTS = {
    "gather_kernel<0>",
    "gather_kernel<1>",
    "gather_kernel<2>",
    "scatter_kernel",
    "swap_kernel",
    "merge_kernel",
    "copy_kernel",
    "update_kernel<Adam, false>",
    "update_kernel<Adam, true>",
    "update_kernel<Sgd, false>",
    "update_kernel<Sgd, true>",
    "square_kernel",
    "total_kernel",
}
REGISTERS = 64  # per thread: four blocks of 256 threads then share a multiprocessor

pytestmark = [
    pytest.mark.skipif(not BUILT and not NVCC, reason="without nvcc the CUDA module was not built"),
    pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump, neither the toolkit's nor Triton's"),
]


def test_the_module_was_built():
    """Where nvcc is, the build takes it."""
    assert BUILT, _cuda.load()[1]


def test_the_script_reads_names():
    mangled = (
        "_ZN9selective4cuda40_GLOBAL__N__21a6bef4_8_optim_cu_28e1526713update_kernelINS1_3SgdELb1EEEvNS_4RowsE"
        "PKNT_7NumbersENS0_12UpdateArraysENS1_9AgesThereE"
    )
    assert short_names([mangled]) == {mangled: "update_kernel<Sgd, true>"}


def test_every_kernel_is_there_for_every_capability():
    capabilities = [int(each) for each in _cuda.native().ARCHITECTURES.split()]
    names = {name for name, _ in reports()}
    assert names >= LISTS
    assert set(reports()) == {(name, capability) for name in names for capability in capabilities}
    assert set(careless()) == names  # PTX for newer ones


def test_no_register_is_spilled():
    for key, each in reports().items():
        assert (each["stack"], each["local"]) == (0, 0), key


def test_registers_of_the_kernels_over_index_lists():
    for (name, capability), each in reports().items():
        if name in LISTS:
            assert each["registers"] <= REGISTERS, (name, capability)


def test_c2_no_operation_is_rounded_carelessly():
    """C2: no approximate division or square root, nothing flushed to zero, nothing contracted."""
    for name, found in careless().items():
        assert found == [], name


def test_the_script_would_see_careless_operations():
    from cudaahead import CARELESS

    for instruction in ("fma.rn.f32", "div.full.f32", "sqrt.approx.ftz.f32", "mul.ftz.f32", "div.approx.f32"):
        assert re.findall(CARELESS, f"\t{instruction} \t%f1, %f2, %f3;") == [instruction]
    for instruction in ("mul.f32", "div.rn.f32", "sqrt.rn.f32", "fma.rn.f64", "add.rn.f32"):
        assert re.findall(CARELESS, f"\t{instruction} \t%f1, %f2, %f3;") == []
