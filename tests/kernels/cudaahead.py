"""What nvcc made of the CUDA kernels, read from the built module without a GPU: `python tests/kernels/cudaahead.py`.

Per kernel and compute capability: registers, bytes of shared memory, of stack and of local memory (where spilled
registers go), and 128-bit loads of the machine code; of the PTX, instructions that round carelessly.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from selective_kernels import _cuda

CARELESS = r"\b(?:div\.full|div\.approx|sqrt\.approx|rsqrt\.approx|rcp\.approx|[\w.]+\.ftz|fma\.rn)[\w.]*\.f32\b"


def cuobjdump() -> str | None:
    """The program that takes binaries apart: of the toolkit, or the copy that Triton brings."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton
        except ImportError:
            return None
        found = str(triton.knobs.nvidia.cuobjdump.path)
    return found


def _run(*command: str | Path, text: str | None = None) -> str:
    made = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True)
    assert made.returncode == 0, f"{command}\n{made.stderr[-4000:]}"
    return made.stdout


def short_names(mangled: list[str]) -> dict[str, str]:
    """`adam_kernel<true>` of each mangled name."""
    plain = _run("c++filt", text="\n".join(mangled)).splitlines()
    bare = [re.sub(r"\([^()]*\)(?=[\w-])|\(anonymous namespace\)::|\b\w+::", "", each) for each in plain]
    return {
        name: re.sub(r"^void |\(.*$", "", re.sub(r"\((?:\w+|\w+ \w+)\)(?=\d)", "", each))
        for name, each in zip(mangled, bare, strict=True)
    }


def _usage(module: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Registers and memory by mangled name and capability."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    capability, name = 0, ""
    for line in _run(cuobjdump() or "", "-res-usage", module).splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            capability = int(match[1])
        elif match := re.match(r"\s*Function\s*:?\s*(\w+):?$", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            numbers = dict(zip(("registers", "stack", "shared", "local"), map(int, match.groups()), strict=True))
            found[name, capability] = {**numbers, "vector_loads": 0}
    return found


def _functions(text: str) -> dict[str, str]:
    """The machine code of each function."""
    parts = re.split(r"^\s*Function : (\w+)\s*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@functools.cache
def reports() -> dict[tuple[str, int], dict[str, Any]]:
    """What was found, by short name and capability."""
    module = Path(_cuda.load()[0].__file__)
    usage = _usage(module)
    names = short_names(sorted({name for name, _ in usage}))
    for capability in {capability for _, capability in usage}:
        code = _functions(_run(cuobjdump() or "", "-sass", "-arch", f"sm_{capability}", module))
        for name, instructions in code.items():
            loads = re.findall(r"\bLDG\.E[\w.]*\.128\b", instructions)
            usage[name, capability]["vector_loads"] = len(loads)
    return {(names[name], capability): each for (name, capability), each in usage.items()}


@functools.cache
def careless() -> dict[str, list[str]]:
    """Instructions on float32 that may round twice, flush to zero or approximate, by short name; of the PTX."""
    text = _run(cuobjdump() or "", "-ptx", Path(_cuda.load()[0].__file__))
    found: dict[str, set[str]] = defaultdict(set)
    name = ""
    for line in text.splitlines():
        if match := re.search(r"\.entry (\w+)\(", line):
            name = match[1]
            found[name] |= set()
        found[name] |= set(re.findall(CARELESS, line))
    del found[""]
    names = short_names(sorted(found))
    return {names[name]: sorted(each) for name, each in found.items()}


if __name__ == "__main__":
    for (name, capability), each in sorted(reports().items()):
        print(json.dumps({"kernel": name, "capability": capability, **each}))
    print(json.dumps({"careless": {name: each for name, each in careless().items() if each}}))
