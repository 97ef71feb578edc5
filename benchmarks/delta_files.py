"""Times deltas on checkpoint folders against copying the folder: `python -m benchmarks.delta_files` (`make bench-all`).

A checkpoint of about a gigabyte in several files, of which 0.2 % of the scalars change, is patched, undone and
compared. Its rivals are `cp` of the folder, and loading each file, patching its tensors and saving it with the
safetensors library, which check nothing. Each case runs in a process of its own, several times, from a warm page cache;
"synced" means that all of the copy is on the disk when the time stops. The peak is by how much the largest resident set
(VmHWM) exceeds what was resident when the delta had been loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from selective_peft import SparseDelta
from selective_peft.atomic import sync
from selective_peft.changes import Change
from selective_peft.patch_files import apply_files, diff_files, revert_files
from torch import Tensor

from benchmarks import ROOT
from benchmarks.report import RESULTS, describe, environment, format_bytes, format_table, write_csv
from benchmarks.resident import RETURN_FREED_MEMORY, resident, settle

GIGABYTE, CHANGED, REPEATS, FILES = 1e9, 0.002, 3, 4
HIDDEN, WIDE, VOCABULARY = 1024, 2816, 32_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shapes(scalars: float) -> Iterator[tuple[str, tuple[int, ...]]]:
    """An embedding, then layers of a decoder, until there are so many scalars."""
    words = max(16, min(VOCABULARY, int(scalars / HIDDEN / 4)))
    yield "model.embed_tokens.weight", (words, HIDDEN)
    left, layer = scalars - words * HIDDEN, 0
    while left > 0:
        for name, size in (("q", HIDDEN), ("k", HIDDEN), ("v", HIDDEN), ("o", HIDDEN), ("up", WIDE), ("down", WIDE)):
            yield f"model.layers.{layer}.{name}.weight", (size, HIDDEN)
            left -= size * HIDDEN
        yield f"model.layers.{layer}.norm.weight", (HIDDEN,)
        layer += 1


def make(folder: Path, dtype: torch.dtype, size: float) -> None:
    """`base`, a checkpoint of about `size` bytes in several files, and `delta`."""
    (folder / "base").mkdir()
    named = list(shapes(size / dtype.itemsize))
    weight_map: dict[str, str] = {}
    changes: dict[str, Change] = {}
    generator = torch.Generator().manual_seed(0)
    per_file = -(-len(named) // FILES)
    for number in range(FILES):
        name = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        mine = named[number * per_file : (number + 1) * per_file]
        base = {key: torch.randn(shape, generator=generator).mul_(0.02).to(dtype) for key, shape in mine}
        save_file(base, folder / "base" / name, {"format": "pt"})
        weight_map |= dict.fromkeys(base, name)
        changes |= SparseDelta.from_models(base, {key: _tuned(base[key], generator) for key in base}).changes
    (folder / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "base" / "config.json").write_text('{"model_type": "llama"}')
    SparseDelta(changes).save(folder / "delta")


def _tuned(tensor: Tensor, generator: torch.Generator) -> Tensor:
    changed = tensor.clone().view(-1)
    places = torch.randint(changed.numel(), (max(1, int(CHANGED * changed.numel())),), generator=generator)
    changed[places] += 1.0
    return changed.view_as(tensor)


def cp(folder: Path) -> None:
    """The rival that changes nothing."""
    subprocess.run(("cp", "-r", str(folder / "base"), str(folder / "out")), check=True)


def cp_synced(folder: Path) -> None:
    """The same, until all is on the disk, as ours does it."""
    cp(folder)
    for path in [*(folder / "out").iterdir(), folder / "out"]:
        sync(path)


def load_patch_save(folder: Path, delta: SparseDelta) -> None:
    """The rival that loads each file."""
    (folder / "out").mkdir()
    for path in sorted((folder / "base").glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            change = delta.changes.get(name)
            if change is not None and change.indices is not None:
                tensor.view(-1)[change.indices.long()] = change.values
        save_file(tensors, folder / "out" / path.name, {"format": "pt"})
    for path in (folder / "base").glob("*.json"):
        shutil.copy(path, folder / "out")


Run = Callable[[Path, SparseDelta], object]
CASES: dict[str, tuple[str, Run]] = {  # "out" by a case of its own, "tuned" is what `apply` has made
    "cp": ("", lambda folder, _: cp(folder)),
    "cp, synced": ("synced", lambda folder, _: cp_synced(folder)),
    "load, patch, save": ("", load_patch_save),
    "apply": ("checked, synced", lambda folder, delta: apply_files(folder / "base", delta, folder / "out")),
    "apply without checks": (
        "synced",
        lambda folder, delta: apply_files(folder / "base", delta, folder / "out", check=False),
    ),
    "revert": ("checked, synced", lambda folder, delta: revert_files(folder / "tuned", delta, folder / "out")),
    "diff": ("", lambda folder, _: diff_files(folder / "base", folder / "tuned")),
}


def same_files(a: Path, b: Path) -> bool:
    """Whether two folders hold the same bytes under the same names."""
    return subprocess.run(("diff", "-rq", str(a), str(b)), stdout=subprocess.DEVNULL, check=False).returncode == 0


def check(folder: Path) -> None:
    """Makes `tuned`; raises AssertionError unless all ways lead to it, and back."""
    delta = SparseDelta.load(folder / "delta")
    apply_files(folder / "base", delta, folder / "tuned")
    revert_files(folder / "tuned", delta, folder / "out")
    assert same_files(folder / "base", folder / "out"), "apply and revert do not give the base"
    shutil.rmtree(folder / "out")
    load_patch_save(folder, delta)
    for path in (folder / "out").glob("*.safetensors"):
        mine, other = load_file(folder / "tuned" / path.name), load_file(path)
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, other[name]), f"{name}: apply gives other values than its rival"
    shutil.rmtree(folder / "out")
    assert diff_files(folder / "base", folder / "tuned").fingerprint == delta.fingerprint


def measure(folder: Path, name: str) -> dict[str, float]:
    """Seconds of the best run, its processor time included, and the extra bytes of the worst."""
    delta = SparseDelta.load(folder / "delta")
    seconds, busy, extra = [], [], 0
    for _ in range(REPEATS):
        os.sync()  # what earlier runs have left to write
        before = settle()
        start, used = time.perf_counter(), processor_time()
        CASES[name][1](folder, delta)
        seconds.append(time.perf_counter() - start)
        busy.append(processor_time() - used)
        extra = max(extra, resident("VmHWM") - before)
        shutil.rmtree(folder / "out", ignore_errors=True)
    return {"seconds": min(seconds), "processor": min(busy), "extra": extra}


def processor_time() -> float:
    """Seconds of this process and of those that it has waited for: what other work on the machine does not change."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure_apart(folder: Path, name: str) -> dict[str, float]:
    """`measure` in a new process."""
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.delta_files", "--case", name, "--folder", str(folder)),
        cwd=ROOT,
        env={**os.environ, **RETURN_FREED_MEMORY},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def rows_of(dtype: str, size: float, where: Path) -> list[dict[str, object]]:
    """One CSV row for each case; bytes and seconds."""
    with tempfile.TemporaryDirectory(dir=where) as made:
        folder = Path(made)
        make(folder, DTYPES[dtype], size)
        check(folder)
        files = sorted((folder / "base").glob("*.safetensors"))
        weights = sum(path.stat().st_size for path in files)
        largest = max(tensor.nbytes for tensor in load_file(files[0]).values())
        rows: list[dict[str, object]] = []
        for name, (does, _) in CASES.items():
            found = measure_apart(folder, name)
            rows.append(
                {
                    "what": name,
                    "does": does,
                    "dtype": dtype,
                    "files": len(files),
                    "bytes": weights,
                    "largest_tensor_bytes": largest,
                    "changed": CHANGED,
                    "seconds": f"{found['seconds']:.3f}",
                    "processor_seconds": f"{found['processor']:.3f}",
                    "gb_per_s": f"{weights / 1e9 / found['seconds']:.3f}",
                    # cp is another process, whose memory is not this one's
                    "extra_bytes": "" if name.startswith("cp") else int(found["extra"]),
                }
            )
        return rows


def screen(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table."""
    lines = [
        (
            str(row["what"]),
            str(row["does"]),
            str(row["dtype"]),
            format_bytes(float(str(row["bytes"]))),
            f"{row['seconds']} s",
            f"{row['gb_per_s']} GB/s",
            f"{row['processor_seconds']} s",
            format_bytes(float(str(row["extra_bytes"]))) if row["extra_bytes"] != "" else "",
            format_bytes(float(str(row["largest_tensor_bytes"]))),
        )
        for row in rows
    ]
    return format_table(("", "", "dtype", "size", "time", "", "processor", "memory", "largest tensor"), lines)


def main() -> int:
    """Exit code 0, 2 if it cannot be measured here."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.delta_files", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--csv", type=Path, default=RESULTS / "delta_files.csv")
    parser.add_argument(
        "--size", type=float, default=GIGABYTE, help="bytes of the checkpoint; five times that is needed"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to, for a while")
    parser.add_argument("--case", choices=list(CASES), help="measure one case in --folder and print JSON")
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.folder, options.case)))
        return 0
    if not os.access("/proc/self/clear_refs", os.W_OK):
        print("The peak cannot be measured here: /proc/self/clear_refs is not writable (Linux only)", file=sys.stderr)
        return 2
    if shutil.disk_usage(options.folder).free < 5 * options.size:
        print(f"{options.folder}: expected {format_bytes(5 * options.size)} of free space", file=sys.stderr)
        return 2
    stamp = environment()
    print(describe(stamp), flush=True)
    rows = [row for dtype in DTYPES for row in rows_of(dtype, options.size, options.folder)]
    print(screen(rows))
    write_csv(options.csv, [{**row, **stamp} for row in rows])
    print(f"\nwritten: {options.csv}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
