"""The wheel that `make wheel` builds: what is in it, and that it works where there is no compiler and no source."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("smoke.py")
NVCC = shutil.which("nvcc") is not None  # then the build has the CUDA module, too
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "ninja", "make")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels are built and inspected on Linux")


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with an sdist and the wheel built from it, from a copy of the tree that git knows."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


def modules_of(wheel):
    """Contents of the compiled modules, by name."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".so" in name]
        return {Path(name).name.partition(".")[0]: archive.read(name) for name in names}


def native_of(content):
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(content))
    needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    return needed, list(elf.get_section_by_name(".dynsym").iter_symbols())


def test_sdist_holds_the_sources_and_nothing_else(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in (".h", ".cpp", ".cu", ".cuh")
    }
    sources.add("cmake/cuda.cmake")
    assert sources <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".csv", ".safetensors"))]


def test_wheel_holds_every_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package, folder in (("selective_kernels", ROOT), ("selective_peft", ROOT / "python")):
        for path in (folder / package).rglob("*.py"):
            assert str(path.relative_to(folder)) in names
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "csrc"))]
    modules = modules_of(wheel)
    assert set(modules) == ({"_native_cpu", "_native_cuda"} if NVCC else {"_native_cpu"})
    assert len(modules["_native_cpu"]) < 2e6
    assert wheel.stat().st_size < (60e6 if NVCC else 2e6)


def test_native_modules_need_neither_torch_nor_cuda_nor_an_own_openmp(wheel):
    """torch's copy of libgomp serves the kernels too: a second one would start threads of its own. What the CUDA module
    needs of CUDA is in it, and the driver is looked for when it is used."""
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "libgomp" in name]
    for module, content in modules_of(wheel).items():
        needed, symbols = native_of(content)
        allowed = r"lib(stdc\+\+|m|gcc_s|gomp|c|pthread|dl|rt)\.so\.\d+|ld-linux.*"
        assert all(re.fullmatch(allowed, name) for name in needed), needed
        assert ("libgomp.so.1" in needed) is (module == "_native_cpu")
        assert not [each for each in symbols if re.search(r"2at|3c10|5torch|THP", each.name)]
        # The runtime inside must not take the place of another library's copy, nor be replaced by one.
        cuda = [each.name for each in symbols if re.match(r"cuda[A-Z]|__cuda", each.name)]
        assert cuda == [], module


def test_auditwheel_accepts_it(wheel):
    """What the manylinux tag promises; which version of it depends on the machine that builds."""
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    assert re.search(r'"manylinux_2_\d+_x86_64"', shown), shown


def test_smoke_suite_in_a_clean_environment(wheel, tmp_path):
    """Neither compiler nor source tree: only the wheel, torch, and what torch needs."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    bare = tmp_path / "bin"
    bare.mkdir()
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CC", "CXX"))
    }
    variables["PATH"] = str(bare)
    assert not [name for name in COMPILERS if shutil.which(name, path=variables["PATH"])]
    version = str(torch.__version__).partition("+")[0]
    run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"torch=={version}", wheel, env=variables)
    shutil.copy(SMOKE, tmp_path / "smoke.py")
    printed = run(python, "-I", tmp_path / "smoke.py", env=variables, cwd=tmp_path)
    assert "ok: portable" in printed
    assert "ok: one OpenMP runtime" in printed
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert "ok: avx2" in printed
    helped = run(environment / "bin" / "selective-peft", "--help", env=variables, cwd=tmp_path)
    assert "train" in helped
    done = subprocess.run(
        [environment / "bin" / "selective-peft", "train", "--model", "m", "--data", "d.csv", "--output", "o"],
        capture_output=True,
        text=True,
        check=False,
        env=variables,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "pip install 'selective-kernels[train]'" in done.stderr
