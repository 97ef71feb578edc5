"""Compiles every Triton kernel without a GPU and prints what came out as JSON: `python tritonahead.py 80 90 100`.

Per kernel variant and compute capability: vector loads, instructions that round carelessly, registers, shared memory
and bytes of spilled registers. Must run without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from selective_kernels._triton import indexing, layout, merging, optim, repair, rows, sample, scan, updates, winners
from selective_kernels._triton.read import NUM_WARPS
from selective_kernels.optim import NORM_BLOCK

I32, I64, F32, F64 = "*i32", "*i64", "*fp32", "*fp64"
# Types of the arguments that are not 32-bit integers, by name, over all kernels.
TYPES = {
    "rows": I64, "chunk_rows": I32, "selected": I32, "starts": I32, "control": I64, "candidates": I64, "out": F32,
    "offsets": I32, "histogram": I32, "bounds": I64, "ordered": I64, "flats": I64, "lowest": I64, "bits": I32,
    "grads": F32, "values": F32, "flag": I32, "old": I32, "new": I32, "old_addresses": I64, "new_addresses": I64,
    "addresses": I64, "merged": I32, "exp_avg": F32, "exp_avg_sq": F32, "master": F32, "chosen": I32, "missed": I32,
    "corrections1": F32, "corrections2": F32, "clip": F32, "skip": I32, "buffer": F32, "sums": F64,
}  # fmt: skip
BOOLS = (False, True)
SCAN = {"TILE": layout.TILE, "PART": scan.PART, "SELECTED_AT_ONCE": scan.SELECTED_AT_ONCE, "HAS_SELECTED": True}
PREPARE = {
    "LINES_AT_ONCE": sample.LINES_AT_ONCE,
    "BLOCKS_PER_PROGRAM": sample.BLOCKS_PER_PROGRAM,
    "SLOTS_PER_PROGRAM": sample.SLOTS_PER_PROGRAM,
    "BINS": sample.BINS,
}
KINDS = {"zero": 0, "half": 1, "one": 2, "two": 3, "any": 4, "product": 5, "magnitude": 6, "random": 7, "given": 8}
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "mixed": scan.MIXED}


class Variant(NamedTuple):
    name: str
    kernel: Any
    constants: dict[str, Any]
    types: dict[str, str] = {}  # noqa: RUF012 (never written)
    warps: int = 4


def variants() -> list[Variant]:
    """Every kernel, in each form that differs in what is checked."""
    found = []
    for kind, dtype in product(KINDS, DTYPES):
        if kind == "two" or dtype == "float32":
            options = {"SELECTING": True, "GATHERING": kind in ("two", "any"), "DTYPE_CODE": DTYPES[dtype]}
            found.append(Variant(f"scan {kind} {dtype}", scan.scan_kernel, {**SCAN, **options, "KIND": KINDS[kind]}))
    reading = {**SCAN, "SELECTING": False, "GATHERING": True, "DTYPE_CODE": 1, "KIND": KINDS["zero"]}
    found.append(Variant("scan reading bfloat16", scan.scan_kernel, reading))
    for kind in ("two", "any", "random"):
        constants = {**PREPARE, "KIND": KINDS[kind], "HAS_SELECTED": True}
        found.append(Variant(f"prepare {kind}", sample.prepare_kernel, constants))
    found.append(Variant("filter", sample.filter_kernel, {"KIND": KINDS["two"], "BINS": sample.BINS}))
    for collecting in BOOLS:
        constants = {**SCAN, "COLLECTING": collecting, "KIND": KINDS["two"], "DIGITS": repair.DIGITS}
        found.append(Variant(f"repair {collecting}", repair.repair_kernel, constants, {"histogram": I64}))
    wide = [variant._replace(warps=NUM_WARPS) for variant in found]
    block = {"BLOCK": rows.BLOCK}
    fetching = {"BLOCK": winners.FETCHED, "HAS_GRADS": True, "HAS_VALUES": True}
    lists = [
        Variant("fetch", winners.fetch_kernel, fetching, {}, winners.NUM_WARPS),
        Variant("merge", merging.merge_kernel, block, {"starts": I64}),
        Variant("merge beyond 2^31", merging.merge_kernel, block, {"starts": I64, "total": "i64"}),
        Variant("copy", merging.copy_kernel, block),
        Variant("copy beyond 2^31", merging.copy_kernel, block, {"total": "i64"}),
        Variant("square", updates.square_kernel, {"NORM_BLOCK": NORM_BLOCK}),
    ]
    for what, name in enumerate(("values", "bits", "grads")):
        types = {"out": I32} if name == "bits" else {}
        lists.append(Variant(f"gather {name}", indexing.gather_kernel, {**block, "WHAT": what}, types))
    for flag in BOOLS:
        types = {"values": I32 if flag else F32}
        lists.append(Variant(f"scatter {flag}", indexing.scatter_kernel, {**block, "EXCHANGING": flag}, types))
    # a step whose outcome nobody waits for, with and without ages; one that waited
    for aged, deferred in ((False, True), (True, True), (False, False)):
        options = {**block, "AGED": aged, "CLIP_ON_DEVICE": deferred, "HAS_SKIP": deferred}
        types = {} if deferred else {"clip": "fp32"}
        name, warps = f"aged={aged} deferred={deferred}", optim.NUM_WARPS
        lists.append(Variant(f"adam {name}", updates.adam_kernel, options, types, warps))
        for buffer in BOOLS:
            sgd = {**options, "HAS_BUFFER": buffer}
            lists.append(Variant(f"sgd {name} buffer={buffer}", updates.sgd_kernel, sgd, types, warps))
    return [*wide, *lists]


def compiled(variant: Variant, capability: int) -> Any:
    """The kernel as a launch would compile it: pointers are multiples of 16, contraction is off."""
    names = variant.kernel.arg_names
    types = {**TYPES, **variant.types}
    signature = {name: "constexpr" if name in variant.constants else types.get(name, "i32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(variant.kernel, signature, constants, aligned)
    options = {"num_warps": variant.warps, **rows.OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """What cuobjdump says of registers, stack (spilled registers) and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        program = triton.knobs.nvidia.cuobjdump.path
        shown = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", shown.stdout + shown.stderr)
    assert found, shown
    return {"registers": int(found[1]), "spilled": int(found[2]) + int(found[3])}


def report(variant: Variant, capability: int) -> dict[str, Any]:
    """What is checked of a compiled kernel."""
    kernel = compiled(variant, capability)
    ptx = kernel.asm["ptx"]
    careless = r"\b(div\.full|div\.approx|sqrt\.approx|rsqrt\.approx|rcp\.approx|\w+\.ftz|fma\.rn)[\w.]*"
    return {
        "name": variant.name,
        "capability": capability,
        "threads": 32 * variant.warps,
        "vector_loads": len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
        "careless": sorted({found.group(0) for found in re.finditer(careless, ptx)}),
        "shared": kernel.metadata.shared,
        **resources(kernel.asm["cubin"]),
    }


if __name__ == "__main__":
    capabilities = [int(argument) for argument in sys.argv[1:]]
    print(json.dumps([report(variant, capability) for capability in capabilities for variant in variants()]))
