"""Checks the kernels on a machine with a CUDA GPU, then times them: `make gpu-check`.

Uses the Python that is there, its packages and no network: builds into build/gpu-check, runs the kernel tests and the
optimizers' GPU tests on the device, a part of them under compute-sanitizer, and the GPU benchmarks. `gpu-check.txt`
and the CSV files are in the folder that `--out` names, whatever happens. A failed check stops the timing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import ROOT
from benchmarks.checking import FAILED, PASSED, UNAVAILABLE, Result, Step, Summary, judged, run_command, run_steps
from benchmarks.report import RESULTS, commit, cpu_model, driver, version

LIMIT = 585.0  # seconds
KEPT = 200.0  # of them, for the timing
SLOWER = 5.0  # tests in the interpreter
TARGET = ROOT / "build" / "gpu-check"
TOOLS = ("pip", "setuptools", "scikit-build-core", "pybind11", "ninja", "cmake")
PACKAGES = ("torch", "triton", "numpy", "pytest", "hypothesis", "transformers", "accelerate", "selective-optimizers")
TESTED_WITH = ("pytest", "hypothesis", "numpy")
ON_DEVICE = ("tests/kernels/test_triton_*.py", "tests/kernels/test_cuda_*.py")
# The first takes a minute, and its budgets are for one compiler; the second needs a toolkit.
NEED_NO_DEVICE = ("tests/kernels/test_triton_ahead.py", "tests/kernels/test_cuda_ahead.py")
ELSEWHERE = ("tests/kernels", *(f"--ignore-glob={ROOT}/{pattern}" for pattern in ON_DEVICE))
WORKERS = ("-n", "4")  # for tests on the CPU, if pytest can
CHOSEN = "triton or cuda"  # of the optimizers' tests
MEMCHECKED = "run_equals or bad_gradients or mixed or unaligned or nonfinite"  # of these: many kernels, few examples
TINY = ("--device", "cpu", "--shapes", "tiny", "--budgets", "40", "--rounds", "3", "--alone", "1")
# `python -m pytest` would put the source folder, which has no compiled kernels, first on the path, as `python -c` does.
INSTALLED = "import sys; sys.path[:] = [p for p in sys.path if p]; "
PYTEST = f"{INSTALLED}import pytest; raise SystemExit(pytest.main())"
EXPLAIN = f"{INSTALLED}import selective_kernels; print(selective_kernels.explain())"
PROBE = f"{INSTALLED}from selective_kernels import _native; raise SystemExit(bool(_native.load()[1]))"
NO_TESTS = 5  # pytest's exit status


class Machine:
    """The steps on this machine.

    Args:
        device: "cuda", or "cpu" to try this program without a GPU: Triton's kernels then are interpreted.
        out: folder of the CSV files.
    """

    def __init__(self, device: str, out: Path) -> None:
        self._device, self._out = device, out
        self.environment = dict(os.environ)
        self.environment["TRITON_INTERPRET"] = "0" if device == "cuda" else "1"
        self.environment["PYTHONUNBUFFERED"] = "1"
        self.environment.setdefault("OMP_WAIT_POLICY", "passive")
        self._path((ROOT / "python", ROOT))

    def _path(self, folders: Sequence[Path]) -> None:
        before = os.environ.get("PYTHONPATH")
        self.environment["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *([before] if before else [])])

    def _python(self, arguments: Sequence[str], seconds: float, **more: str) -> Result:
        return judged(run_command((sys.executable, *arguments), {**self.environment, **more}, seconds), seconds)

    def describe(self, _: float) -> Result:
        """What is there and what is missing."""
        names = {name: version(name) for name in (*PACKAGES, *TOOLS)}
        nvcc, compiler = shutil.which("nvcc") or "no nvcc", shutil.which("c++") or "no C++ compiler"
        lines = [
            f"{cpu_model()}, {os.cpu_count()} cores, {platform.platform()}, python {platform.python_version()}",
            f"commit {commit()}, NVIDIA driver {driver() or 'missing'}, CUDA of torch {torch.version.cuda}",
            f"{nvcc}, {compiler}, {shutil.which('compute-sanitizer') or 'no compute-sanitizer'}",
            "there: " + ", ".join(f"{name} {found}" for name, found in names.items() if found),
            "missing: " + (", ".join(name for name, found in names.items() if not found) or "nothing"),
        ]
        print("\n".join(lines))
        if self._device == "cuda" and not torch.cuda.is_available():
            return Result(FAILED, "torch finds no CUDA GPU here", "\n".join(lines))
        return Result(PASSED, lines[-1], "\n".join(lines))

    def build(self, seconds: float) -> Result:
        """Installs into build/gpu-check, so that the machine's own packages stay as they are."""
        lacking, old = lacking_tools()
        if lacking:
            return Result(UNAVAILABLE, f"no CPU kernels, Triton and reference only; missing: {', '.join(lacking)}")
        shutil.rmtree(TARGET, ignore_errors=True)
        options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
        with tempfile.TemporaryDirectory() as folder:  # the sources' own folder `build` may hold another build's cache
            copy = shutil.copytree(ROOT, Path(folder, "source"), ignore=shutil.ignore_patterns(".*", "build", "dist"))
            command = ("-m", "pip", "install", *options, "--target", str(TARGET), str(copy))
            result = self._python(command, seconds, pybind11_DIR=cmake_folder("pybind11"))
        if result.outcome == PASSED:
            self._path((TARGET,))
        elif old:
            why = f"no CPU kernels, Triton and reference only; too old: {', '.join(old)}"
            return Result(UNAVAILABLE, why, result.output)
        return result

    def kernels(self, seconds: float) -> Result:
        """Which backend serves which operation."""
        result = self._python(("-c", EXPLAIN), seconds)
        if result.outcome == PASSED and self._device == "cuda" and "cuda tensors: scan -> triton" not in result.output:
            return Result(FAILED, "CUDA tensors are not served by Triton", result.output)
        if result.outcome == PASSED and "cuda: available" not in result.output:
            missing = re.search(r"^cuda: .*", result.output, re.MULTILINE)
            return replace(result, note=missing[0] if missing else "explain() says nothing of the backend cuda")
        return result

    def test(self, arguments: Sequence[str], seconds: float) -> Result:
        """A part of the test suite; `arguments` go to pytest."""
        lacking = self.lacking_for_tests(seconds) if arguments else "there are no such tests"
        if lacking:
            return Result(UNAVAILABLE, lacking)
        started = ("-c", PYTEST, "-q", "-rfE", "--tb=short", "--maxfail=20", "-p", "no:cacheprovider", *arguments)
        result = self._python(started, seconds)
        if result.note.startswith(f"exit status {NO_TESTS}:"):
            return Result(UNAVAILABLE, f"no test is chosen by {' '.join(arguments)}", result.output)
        if result.outcome == PASSED and "passed" not in result.note:
            return Result(UNAVAILABLE, f"no test ran: {result.note}", result.output)
        return result

    def lacking_for_tests(self, seconds: float) -> str:
        """Why tests cannot run here, or ""."""
        lacking = [name for name in TESTED_WITH if importlib.util.find_spec(name) is None]
        if lacking:
            return "not installed: " + ", ".join(lacking)
        built = self._python(("-c", PROBE), seconds).outcome == PASSED
        return "" if built else "the tests compare with the CPU kernels, which are not built"

    def memcheck(self, seconds: float) -> Result:
        """A short part of the tests under compute-sanitizer, where that runs."""
        program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        lacking = "no compute-sanitizer" if program is None else self.lacking_for_tests(seconds)
        if program is None or self._device != "cuda" or lacking:
            return Result(UNAVAILABLE, lacking or "no GPU")
        # torch asks the driver for things that it may lack, which is no error of a kernel.
        checker = (program, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "99", sys.executable)
        # Each tensor an allocation of its own, or a write past its end would land in a neighbour.
        environment = {**self.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        probe = (*checker, "-c", "import torch; print(torch.ones(8, device='cuda').sum().item())")
        tried = run_command(probe, environment, seconds / 2)
        if tried.status != 0:
            return Result(UNAVAILABLE, f"compute-sanitizer does not run here: {tried.last_line}", tried.output)
        chosen = ("-q", "-x", "--tb=short", "-p", "no:cacheprovider", *memcheck_files(), "-k", MEMCHECKED)
        done = run_command((*checker, "-c", PYTEST, *chosen), environment, seconds / 2)
        if done.status in (None, NO_TESTS):
            why = "no test is chosen" if done.status else f"not done within {seconds / 2:.0f} s"
            return Result(UNAVAILABLE, f"{why}, no error until then", done.output)
        return judged(done, seconds)

    def benchmark(self, seconds: float) -> Result:
        """The GPU benchmarks, which check their results once more."""
        files = ("--csv", str(self._out / "gpu.csv"), "--parts", str(self._out / "gpu_parts.csv"))
        options = TINY if self._device == "cpu" else ("--seconds", f"{0.6 * seconds:.0f}")
        return self._python(("-m", "benchmarks.gpu_step", *files, *options), seconds)


def lacking_tools() -> tuple[list[str], list[str]]:
    """What a build needs by pyproject.toml and does not find, and what it finds in too old a version."""
    line = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None
    programs = {"cmake": ("cmake",), "a C++ compiler": (os.environ.get("CXX", "c++"), "g++", "clang++")}
    programs["ninja"] = ("ninja", "make")
    lacking = [name for name, any_of in programs.items() if not any(map(shutil.which, any_of)) and not version(name)]
    old = []
    for name, least in re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', line[1]):
        found = version(name)
        if not found and name not in programs:
            lacking.append(name)
        elif found and numbers(found) < numbers(least):
            old.append(f"{name} {found}, expected {least} or newer")
    return lacking, old


def cmake_folder(package: str) -> str:
    """Where CMake finds a package of Python, wherever on the path it lies."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or [""]
    return str(Path(folders[0], "share", "cmake", package))


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version, to compare."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def found(pattern: str) -> list[str]:
    """Files of the tree, from its root."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def device_tests() -> list[str]:
    """The kernel tests whose tensors lie on the device."""
    return [name for pattern in ON_DEVICE for name in found(pattern) if name not in NEED_NO_DEVICE]


def optimizer_tests() -> list[str]:
    """Of the optimizers' tests those for a device, from the files that have some: others import what may be missing."""
    files = [
        name for name in found("tests/peft/test_*.py") if re.search(r"triton|cuda", (ROOT / name).read_text("utf-8"))
    ]
    return [*files, "-k", CHOSEN] if files else []


def memcheck_files() -> list[str]:
    """Whole steps first, which run every kind of kernel."""
    return [*found("tests/peft/test_triton_*.py"), *found("tests/peft/test_cuda_*.py"), *device_tests()]


def steps_of(machine: Machine, slower: float = 1.0) -> list[Step]:
    """All steps, in order, with upper limits in seconds, `slower` times what they are on a GPU."""
    elsewhere = (*ELSEWHERE, *(WORKERS if importlib.util.find_spec("xdist") is not None else ()))
    made = [
        Step("machine", 30, machine.describe, required=True),
        Step("build", 120, machine.build),
        Step("backends", 60, machine.kernels, required=True),
        Step("kernel tests on the device", 240, partial(machine.test, device_tests()), required=True),
        Step("optimizer tests on the device", 90, partial(machine.test, optimizer_tests())),
        Step("other kernel tests", 120, partial(machine.test, elsewhere)),
        Step("memcheck", 120, machine.memcheck),
        Step("benchmarks", 300, machine.benchmark, timing=True, required=True),
    ]
    return [replace(step, seconds=slower * step.seconds) for step in made]


def main(given: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 if a check failed or one that counts could not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpucheck", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for gpu-check.txt and the CSV files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program")
    parser.add_argument("--limit", type=float, help=f"seconds for everything, default {LIMIT:.0f}")
    options = parser.parse_args(given)
    out = options.out.absolute()
    title = f"selective-kernels on {options.device}, commit {commit()}"
    summary = Summary(out / "gpu-check.txt", title)
    slower = 1.0 if options.device == "cuda" else SLOWER
    steps = steps_of(Machine(options.device, out), slower)
    passed = run_steps(steps, summary, slower * LIMIT if options.limit is None else options.limit, KEPT)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
