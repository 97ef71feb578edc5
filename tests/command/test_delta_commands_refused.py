"""Commands on deltas that are refused, fail or are interrupted: one sentence, an exit code, and nothing left behind."""

import os
import resource
import subprocess
import sys

import pytest
from deltafolders import FILE, WEIGHTS, all_files, ran, refused, tuned_weights, write_delta, write_model
from safetensors.torch import load_file
from selective_peft import SparseDelta, patch_files


@pytest.fixture
def tuned(tiny_model):
    return tuned_weights(load_file(tiny_model / WEIGHTS), 1)


@pytest.fixture
def delta(tmp_path, tiny_model, tuned):
    return write_delta(tmp_path / "delta", load_file(tiny_model / WEIGHTS), tuned)


REFUSED = {  # command line, where {base}, {delta}, {bad} and {full} are folders; what the sentence says
    "no base": ("apply --base {tmp}/none --delta {delta}", "--base {tmp}/none: expected a folder with safetensors"),
    "no tuned": ("revert --tuned {tmp}/none --delta {delta}", "--tuned {tmp}/none: expected"),
    "no tuned to compare": ("diff --base {base} --tuned {tmp}/none", "--tuned {tmp}/none: expected"),
    "no delta": ("merge --base {base} --delta {tmp}/none", "--delta {tmp}/none: expected a folder with"),
    "no delta in it": ("merge --base {base} --delta {base}", "--delta {base}: expected a folder with"),
    "damaged": ("apply --base {base} --delta {bad}", "checksum: expected that of the file"),
    "one of two damaged": ("compose {delta} {bad}", "checksum: expected that of the file"),
    "no weights": ("apply --base {tmp} --delta {delta}", "expected "),
    "no delta to compose": ("compose {tmp}/none", "DELTA {tmp}/none: expected"),
    "full": ("apply --base {base} --delta {delta} --out {full}", "--out {full}: expected a new or an empty folder"),
    "full, compose": ("compose {delta} --out {full}", "--out {full}: expected a new or an empty folder"),
    "no parent": ("diff --base {base} --tuned {base} --out {tmp}/x/y", "--out {tmp}/x/y: expected a folder that can"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name, tiny_model, delta, tmp_path, capsys):
    bad, full = tmp_path / "bad", tmp_path / "full"
    SparseDelta.load(delta).save(bad)
    data = bytearray((bad / FILE).read_bytes())
    data[-7] ^= 8
    (bad / FILE).write_bytes(data)
    full.mkdir()
    (full / "precious").write_text("x")
    where = {"tmp": tmp_path, "base": tiny_model, "delta": delta, "bad": bad, "full": full}
    line, words = (text.format(**where) for text in REFUSED[name])
    before = all_files(tmp_path)
    refused(capsys, words, *line.split(), *([] if "--out" in line else ["--out", tmp_path / "out"]))
    assert all_files(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("command", ["apply", "revert", "merge", "compose", "diff"])
def test_what_ends_early_leaves_nothing(command, error, tiny_model, delta, tuned, tmp_path, capsys, monkeypatch):
    other = write_model(tmp_path / "tuned", tiny_model, tuned)
    given = {
        "apply": ["--base", tiny_model, "--delta", delta],
        "merge": ["--base", tiny_model, "--delta", delta],
        "revert": ["--tuned", other, "--delta", delta],
        "diff": ["--base", tiny_model, "--tuned", other],
        "compose": [delta],
    }[command]

    def fails(*_, **__):
        raise error

    if command in ("compose", "diff"):
        monkeypatch.setattr(SparseDelta, "save", fails)
    else:
        monkeypatch.setattr(patch_files, "swapped", fails)  # amid the first file
    before = sorted(tmp_path.iterdir())
    code, out, said = ran(capsys, command, *given, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert said.count("\n") == 1
    assert ("interrupted; nothing was written" if error is KeyboardInterrupt else "No space left") in said
    assert sorted(tmp_path.iterdir()) == before


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_exit_codes_of_the_process(tiny_model, delta, tmp_path):
    """0 done, 2 what cannot be used, 1 a write that really fails."""
    command = [sys.executable, "-m", "selective_peft", "apply", "--base", str(tiny_model), "--delta", str(delta)]
    command += ["--out", str(tmp_path / "out")]

    def outcome(**more):
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, **more)
        assert "Traceback" not in done.stderr
        return done

    before = sorted(tmp_path.iterdir())
    failed = outcome(preexec_fn=small_files)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "apply failed: " in failed.stderr
    assert sorted(tmp_path.iterdir()) == before
    done = outcome()
    assert (done.returncode, done.stderr) == (0, "")  # no progress bar where nobody looks
    assert "classifier.weight" in done.stdout
    again = outcome()
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.count("\n") == 1
