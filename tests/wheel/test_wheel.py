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


def module_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if ".so" in name]
        return name, archive.read(name)


def test_sdist_holds_the_sources_and_nothing_else(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp")}
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
    assert wheel.stat().st_size < 2e6


def test_native_module_needs_neither_torch_nor_an_own_openmp(wheel):
    """torch's copy of libgomp serves the kernels too: a second one would start threads of its own."""
    from elftools.elf.elffile import ELFFile

    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "libgomp" in name]
    _, content = module_of(wheel)
    elf = ELFFile(io.BytesIO(content))
    needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    allowed = r"lib(stdc\+\+|m|gcc_s|gomp|c|pthread|dl)\.so\.\d+|ld-linux.*"
    assert all(re.fullmatch(allowed, name) for name in needed), needed
    symbols = [symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()]
    assert not [name for name in symbols if re.search(r"2at|3c10|5torch|THP", name)]


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
