"""Runs the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

The instrumented kernels are built and installed into build/sanitize, which goes before the installed package on the
path; the sanitizer's runtime has to be loaded before Python's own libraries. Arguments go to pytest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "sanitize"
# Triton's kernels are not built here.
LEFT_OUT = (
    "test_cuda_ahead",
    "test_triton_*",
)
OPTIONS = {
    # Python and torch keep memory until the process ends.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "PYTHONMALLOC": "malloc",  # or a write past an object's end stays inside Python's own arena
    "TRITON_INTERPRET": "0",  # what its interpreter runs is numpy's
}


def runtime() -> str:
    """What is loaded first: the compiler's AddressSanitizer runtime, and the C++ library, since the runtime looks for
    what throws exceptions when it starts.

    Raises:
        SystemExit: the compiler does not have them as shared libraries.
    """
    compiler, paths = os.environ.get("CXX", "c++"), []
    for name in ("libasan.so", "libstdc++.so"):
        command = (compiler, f"-print-file-name={name}")
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(found).is_absolute():
            raise SystemExit(f"{compiler} has no {name}: install GCC's libasan, or name a GCC in CXX")
        paths.append(str(Path(found).resolve()))
    return " ".join(paths)


def build() -> None:
    """Installs the package with instrumented kernels into SITE.

    From a copy of the sources: the folder `build` keeps CMake's cache, and the next ordinary build would take the
    sanitizers from there.
    """
    shutil.rmtree(SITE, ignore_errors=True)
    environment = {**os.environ, "SKBUILD_CMAKE_DEFINE": "SELECTIVE_KERNELS_SANITIZE=ON"}
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(ROOT, Path(folder, "source"), ignore=shutil.ignore_patterns(".*", "build", "dist"))
        command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(SITE), str(copy))
        subprocess.run(command, env=environment, check=True)


def run(arguments: list[str]) -> int:
    """pytest's exit code."""
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": runtime(), "PYTHONPATH": str(SITE)}
    probe = (
        "from selective_kernels import _native; m = _native.cpu(); "
        f"assert m.sanitized(), m; assert m.__file__.startswith({str(SITE)!r}), m.__file__"
    )
    subprocess.run((sys.executable, "-c", probe), cwd="/", env=environment, check=True)
    # `python -m pytest` would put the source folder, which has no compiled kernels, first on the path.
    pytest = str(Path(sys.executable).with_name("pytest"))
    left_out = [f"--ignore-glob={ROOT}/tests/kernels/{name}.py" for name in LEFT_OUT]
    chosen = arguments or ["-q", "tests/kernels", *left_out]
    command = (pytest, "-p", "no:cacheprovider", *chosen)
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    build()
    raise SystemExit(run(sys.argv[1:]))
