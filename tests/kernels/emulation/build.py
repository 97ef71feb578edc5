"""Compiles CUDA sources as C++ on the emulation: a shared library that runs the kernels on the CPU.

What is built is kept by a hash of everything that it depends on, so that only a change compiles anew.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# As in CMakeLists.txt: no contraction, since scores must be the same bits everywhere. -O1 compiles in half the time.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-DSELECTIVE_EMULATION"]
SANITIZING = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]


def _content(folders: Sequence[Path]) -> bytes:
    found = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix in (".h", ".cuh", ".cu", ".cpp"):
            found.update(f"{path}\n".encode() + path.read_bytes())
    return found.digest()


def _folder(key: str) -> Path:
    """Where results are kept: build/emulation, or a place of the user's for temporary files."""
    wanted = ROOT / "build" / "emulation" / key
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError:
        wanted = Path(tempfile.gettempdir(), f"selective-emulation-{os.getuid()}", key)
        wanted.mkdir(parents=True, exist_ok=True)
    return wanted


def build(
    name: str, sources: Sequence[Path], flags: Sequence[str] = (), *, sanitized: bool = False, suffix: str = ".so"
) -> Path:
    """The library's path; compiles what is not there yet.

    Args:
        name: of the library's file.
        sources: CUDA or C++ files.
        flags: further ones, for include paths and definitions.
        sanitized: with AddressSanitizer and UndefinedBehaviorSanitizer.
        suffix: of the library's file.

    Raises:
        RuntimeError: the compiler fails; the message is its.
    """
    compiler = os.environ.get("CXX", "g++")
    options = [*FLAGS, *(SANITIZING if sanitized else []), f"-I{HERE}", *flags]
    files = [*sources, HERE / "block.cpp", HERE / "fiber.cpp"]
    inputs = repr([compiler, options, [str(path) for path in files], suffix]).encode() + _content([HERE, ROOT / "csrc"])
    folder = _folder(hashlib.sha256(inputs).hexdigest()[:16])
    library = folder / f"{name}{suffix}"
    if library.exists():
        return library

    def run(command: list[str]) -> None:
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{made.stderr[-8000:]}")

    def compiled(source: Path) -> str:
        target = folder / f"{source.stem}-{os.getpid()}.o"
        quick = ["-O0"] if "bindings" in source.stem else []  # they take longest, and do next to nothing
        run([compiler, *options, *quick, "-x", "c++", "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, files))
    half_made = folder / f"{name}-{os.getpid()}.tmp"
    run([compiler, "-shared", *options, *objects, "-o", str(half_made)])
    half_made.rename(library)
    for path in objects:
        Path(path).unlink()
    return library


def build_module(*, sanitized: bool = False) -> Path:
    """The Python module `_native_cuda` of all CUDA sources, on the emulation.

    Raises:
        RuntimeError: the compiler fails; the message is its.
    """
    import pybind11

    includes = [sysconfig.get_paths()["include"], pybind11.get_include()]
    sources = sorted([*(ROOT / "csrc" / "cuda").glob("*.cu"), *(ROOT / "csrc" / "cuda").glob("*.cpp")])
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    return build("_native_cuda", sources, [f"-isystem{each}" for each in includes], sanitized=sanitized, suffix=suffix)
