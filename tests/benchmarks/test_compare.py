"""Comparing the operations of two commits: the ratios, and that it measures what it says, in processes of its own."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import selective_peft

import selective_kernels
from benchmarks import ROOT, compare
from benchmarks.compare import BASE, TREE, CannotCompare, Ratios, ratios, screen

TINY = SimpleNamespace(model="64k", rounds=2, threads=1, pairs=1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A copy of the packages under test, as another commit would be installed, with a gather that takes its time."""
    folder = tmp_path_factory.mktemp("site")
    for package in (selective_kernels, selective_peft):
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "selective_kernels" / "_cpu" / "indexing.py"
    text = path.read_text(encoding="utf-8")
    slow = text.replace(
        "    _native.cpu().gather(table.rows(index)",
        "    import time; time.sleep(0.2)\n    _native.cpu().gather(table.rows(index)",
    )
    assert slow != text
    path.write_text(slow, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(site, tmp_path_factory):
    """Both sides once, on a tiny problem; the JSON files lie beside."""
    folder = tmp_path_factory.mktemp("runs")
    return {each.name: each for each in compare.compare(site, folder, TINY)}, folder


def test_both_sides_are_measured_with_their_own_packages(measured, site):
    found, folder = measured
    assert sorted(found) == sorted(
        f"{op}-{dtype}"
        for op in ("scan+topk", "update", "merge", "gather", "scatter", "swap")
        for dtype in ("float32", "bfloat16")
        if (op, dtype) != ("merge", "bfloat16")
    )
    for side, place in ((BASE, site), (TREE, Path(selective_kernels.__file__).parents[1])):
        stored = json.loads((folder / f"{side}-0.json").read_text())["benchmarks"]
        assert {Path(each["extra_info"]["package"]).parents[1] for each in stored} == {place}
        assert {each["stats"]["rounds"] for each in stored} == {2}
        assert {each["extra_info"]["threads"] for each in stored} == {1}


def test_what_is_slower_on_one_side_only_is_seen(measured):
    found, _ = measured
    gathering = [each for name, each in found.items() if name.startswith("gather")]
    assert len(gathering) == 2
    assert all(each.base_ms >= 200 and each.pairs[0] < 0.5 for each in gathering)
    assert all(each.base_ms < 200 for name, each in found.items() if not name.startswith("gather"))


def test_packages_of_another_folder_are_refused(tmp_path):
    with pytest.raises(CannotCompare, match=f"expected to measure what is in {tmp_path}"):
        compare.measure(tmp_path, tmp_path / "out.json", TINY)


def fake(monkeypatch, tmp_path, base, tree):
    """Measurements that are given, in pairs; nothing is built."""
    times = {BASE: iter(base), TREE: iter(tree)}
    calls = []

    def measure(site, out, options):
        side = TREE if site is None else BASE
        calls.append(side)
        return {"test_op[gather-float32]": next(times[side])}

    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(compare, "installed", lambda commit: tmp_path)
    monkeypatch.setattr(compare, "FOLDER", tmp_path)
    return calls


def test_slower_in_every_pair_fails(monkeypatch, tmp_path, capsys):
    calls = fake(monkeypatch, tmp_path, [1.0, 2.0, 1.0], [1.2, 2.4, 1.2])
    assert compare.main(["HEAD", "--limit", "1.15"]) == 1
    assert calls == [BASE, TREE, TREE, BASE, BASE, TREE]
    out = capsys.readouterr().out
    assert "slower than 1.15 x base in each of 3 pairs: gather-float32" in out
    assert "1000.000      1200.000  1.200  1.200 - 1.200  SLOWER" in out


def test_slower_in_some_pairs_does_not(monkeypatch, tmp_path, capsys):
    fake(monkeypatch, tmp_path, [1.0, 1.0, 1.0], [1.5, 1.14, 1.5])
    assert compare.main(["HEAD"]) == 0
    assert "in each of 3 pairs: nothing" in capsys.readouterr().out


def test_an_operation_that_only_one_side_has_is_left_out():
    times = {BASE: [{"test_op[a]": 1.0, "test_op[old]": 1.0}], TREE: [{"test_op[a]": 2.0, "test_op[new]": 1.0}]}
    assert ratios(times) == [Ratios("a", 1000.0, 2000.0, (2.0,))]
    assert screen(ratios(times), 1.15).split("\n")[2].startswith("a ")


@pytest.mark.parametrize("name", ["", "no-such-commit", "--all"])
def test_a_commit_that_is_not_there_is_said(capsys, name):
    assert compare.main(["--", name]) == 2
    assert f"BASE: expected a commit, such as HEAD~1, got {name!r}" in capsys.readouterr().err


def test_no_pairs_are_refused(capsys):
    assert compare.main(["HEAD", "--pairs", "0"]) == 2
    assert "--pairs: expected an integer >= 1, got 0" in capsys.readouterr().err


def test_a_worktree_is_gone_afterwards_whatever_happens():
    def known():
        return subprocess.run(["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True).stdout

    seen = []

    def fails():
        with compare.worktree("HEAD") as source:
            seen.extend([source, (source / "pyproject.toml").exists(), str(source) in known()])
            raise RuntimeError("build")

    with pytest.raises(RuntimeError, match="build"):
        fails()
    assert seen[1:] == [True, True]
    assert str(seen[0]) not in known()
    assert not seen[0].exists()


def test_a_commit_that_does_not_build_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "FOLDER", tmp_path)
    monkeypatch.setattr(compare.sys, "executable", "/bin/false")
    with pytest.raises(CannotCompare, match="does not build"):
        compare.installed(compare.resolved("HEAD"))
    assert not list(tmp_path.iterdir())
