"""The tree keeps its shape: imports point one way, files stay small, nothing is left out of a build."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = sorted((ROOT / "selective_kernels").rglob("*.py"))
PEFT = sorted((ROOT / "python" / "selective_peft").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))
LONGEST = 300  # lines; a file past that is two ideas
STANDARD = {"__future__", "array", "collections", "dataclasses", "functools", "importlib", "itertools", "math"}
STANDARD |= {
    "bisect",
    "abc",
    "contextlib",
    "fnmatch",
    "fractions",
    "heapq",
    "inspect",
    "operator",
    "os",
    "re",
    "time",
    "typing",
    "warnings",
    "weakref",
}
# What the command may use besides; its modules are imported when it runs, never by `import selective_peft`.
COMMAND_STANDARD = {
    "argparse",
    "csv",
    "json",
    "logging",
    "pathlib",
    "platform",
    "re",
    "resource",
    "shutil",
    "statistics",
}
COMMAND_STANDARD |= {"io", "signal", "sys", "tempfile", "threading"}
COMMAND = {
    "__main__": set(),
    "adapter_commands": {"rich"},
    "adapter_options": set(),
    "base_models": {"transformers"},
    "bases": {"peft", "safetensors"},
    "callback": {"transformers"},
    "catalogue": {"rich"},
    "checkpoint_commands": {"rich"},
    "cli": {"rich"},
    "data": {"sklearn"},
    "delta_commands": {"rich"},
    "delta_folders": set(),
    "delta_options": set(),
    "delta_plots": {"matplotlib"},
    "delta_tables": {"rich"},
    "drawing": {"matplotlib"},
    "encoding": set(),
    "files": {"datasets"},
    "factory": {"transformers"},
    "generating": {"tqdm"},
    "figures": set(),
    "fitting": {"transformers"},
    "hf": set(),
    "inspecting": {"rich"},
    "loading": {"huggingface_hub", "safetensors", "transformers"},
    "making": set(),
    "metrics": {"numpy", "scipy", "seqeval", "sklearn"},
    "options": set(),
    "plots": {"matplotlib", "numpy"},
    "profiling": {"rich"},
    "recipe_data": set(),
    "recipe_files": {"datasets"},
    "recipe_listing": {"rich"},
    "recipe_options": set(),
    "recipe_tests": set(),
    "recipes": set(),
    "report": {"matplotlib", "numpy"},
    "results": set(),
    "showing": {"rich"},
    "sizes": set(),
    "summary": {"rich", "transformers"},
    "tasks": {"transformers"},
    "text_metrics": {"rouge_score"},
    "training": {"rich"},
}

# What reads and writes deltas may use besides.
DELTA_STANDARD = {"copy", "ctypes", "hashlib", "json", "pathlib", "shlex", "shutil", "tempfile", "types"}
DELTA = {
    "about": set(),
    "atomic": set(),
    "checkpoint_files": set(),
    "comparing_files": set(),
    "container": {"safetensors"},
    "delta": set(),
    "delta_card": set(),
    "delta_file": set(),
    "differing": set(),
    "hub": set(),  # huggingface_hub by importlib, when a repository is asked for
    "exchange": set(),
    "layouts": set(),
    "output": set(),
    "patch_files": set(),
    "rawbytes": set(),
    "shira_export": {"safetensors"},
    "shira_import": set(),
    "streaming": set(),
    "summary_import": set(),
    "torch_archive": {"pickletools", "struct", "zipfile"},  # the first takes pickles apart and runs nothing
}

# Of Python's own, for one file each.
ALONE = {"undisturbed": {"signal", "threading", "types"}}

# Imported within a function, when it is called.
LATE = {"fisher": {"tqdm"}, "shira_export": {"peft"}}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", KERNELS, ids=relative)
def test_kernels_import_torch_only(path):
    triton = {"triton"} if path.parent.name == "_triton" and path.stem != "__init__" else set()
    assert imported(path) <= STANDARD | {"torch", "selective_kernels"} | triton


@pytest.mark.parametrize("path", PEFT, ids=relative)
def test_optimizers_import_torch_and_kernels_only(path):
    allowed = STANDARD | {"torch", "selective_kernels", "selective_peft"} | LATE.get(path.stem, set())
    allowed |= ALONE.get(path.stem, set())
    if path.stem in COMMAND:
        allowed |= COMMAND_STANDARD | COMMAND[path.stem]
    if path.stem in DELTA:
        allowed |= DELTA_STANDARD | DELTA[path.stem]
    assert imported(path) <= allowed


def test_importing_the_optimizers_imports_no_part_of_the_command():
    code = "import sys, selective_peft; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {f"selective_peft.{name}" for name in COMMAND} & set(loaded)
    heavy = {"transformers", "peft", "datasets", "huggingface_hub", "matplotlib", "sklearn", "scipy", "seqeval", "rich"}
    assert not heavy & set(loaded)


def test_native_code_includes_no_torch():
    for path in NATIVE:
        includes = re.findall(r"#include\s+[<\"]([^>\"]+)", path.read_text(encoding="utf-8"))
        assert not [name for name in includes if re.match(r"(torch|ATen|c10)/", name)], relative(path)


def test_kernels_know_python_in_the_bindings_only():
    for path in NATIVE:
        uses = re.search(r"pybind11|Python\.h", path.read_text(encoding="utf-8"))
        assert not uses or "bindings" in path.name or path.name == "buffers.h", relative(path)


def test_gpu_kernels_include_nothing_of_the_cpu_kernels():
    """Each of the two modules is built of its own folder and of what both share."""
    for path in NATIVE:
        other = {"cuda": "cpu/", "cpu": "cuda/"}.get(path.parent.name, "cuda/")
        includes = re.findall(r"#include\s+\"([^\"]+)", path.read_text(encoding="utf-8"))
        assert not [name for name in includes if other in name], relative(path)


def test_the_status_of_every_cuda_call_is_looked_at():
    """What may fail stands in `check(...)`, or its status is kept and compared."""
    for path in (ROOT / "csrc" / "cuda").iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            calls = re.findall(r"\bcuda[A-Z]\w*(?=\()", line.partition("//")[0])
            unchecked = set(calls) - {"cudaGetLastError", "cudaGetErrorName", "cudaGetErrorString"}
            undoing = re.search(r"if \(.*\) cuda(SetDevice|EventDestroy)\(", line)  # on the way out of an error
            assert not unchecked or undoing or re.search(r"\bcheck\(|status = ", line), f"{relative(path)}: {line}"


@pytest.mark.parametrize("path", [*KERNELS, *PEFT, *BENCHMARKS, *TESTS, *NATIVE], ids=relative)
def test_files_stay_small(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{lines} lines"


def test_every_native_source_is_built():
    """CMake holds the only lists of sources; one that they lack would not be missed by the compiler."""
    for path in NATIVE:
        if path.suffix in (".cpp", ".cu"):
            cmake = ROOT / ("cmake/cuda.cmake" if path.parent.name == "cuda" else "CMakeLists.txt")
            assert re.search(rf"\b{path.stem}\b", cmake.read_text(encoding="utf-8")), relative(path)


def test_every_package_is_installed():
    """A folder that pyproject.toml does not list would work in a checkout and be missing from the wheel."""
    line = re.search(
        r"^packages = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert line
    listed = set(re.findall(r'"([^"]+)"', line[1]))
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in KERNELS}
    found |= {".".join(path.parent.relative_to(ROOT / "python").parts) for path in PEFT}
    assert listed == found


def test_no_pickle_and_no_network():
    """Nothing here may run code from a file or reach out at run time."""
    for path in [*KERNELS, *PEFT]:
        assert not imported(path) & {"pickle", "urllib", "requests", "socket", "http"}, relative(path)
        assert "torch.load" not in path.read_text(encoding="utf-8"), relative(path)
