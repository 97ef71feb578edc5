"""A save that is killed at any moment leaves the old file or the new one."""

import subprocess
import sys
from pathlib import Path

TRIES = 100
# Forks after the imports, so that a hundred tries take seconds. Each child saves two deltas in turn until it is killed
# after a random while; what then lies there must load and be one of the two.
CODE = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from selective_peft import SparseDelta

torch.set_num_threads(1)
folder, tries = Path(sys.argv[1]), int(sys.argv[2])
base = {"a": torch.zeros(200_000), "b": torch.zeros(300, dtype=torch.bfloat16)}
deltas = []
for value, step in ((1.0, 5), (2.0, 3)):
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["a"][::step] = value
    tuned["b"][::7] = value
    deltas.append(SparseDelta.from_models(base, tuned))
began = time.perf_counter()
for delta in deltas:  # so that the first tries do not find an empty folder
    delta.save(folder)
both = time.perf_counter() - began
marks = {(delta.changes["a"].scalars, float(delta.changes["b"].values[0])) for delta in deltas}
rng, seen = random.Random(0), set()
for number in range(tries):
    child = os.fork()
    if child == 0:
        for turn in range(10**9):
            deltas[(number + turn) % 2].save(folder)
    time.sleep(rng.uniform(0.0, 1.5 * both))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = SparseDelta.load(folder)
    seen.add((found.changes["a"].scalars, float(found.changes["b"].values[0])))
assert seen == marks, seen
print(sum(path.name.startswith(".") for path in folder.iterdir()), "killed amid a write")
"""


def test_killed_saves_leave_no_broken_file(tmp_path):
    command = [sys.executable, "-c", CODE, str(tmp_path), str(TRIES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > TRIES // 4  # most kills hit a file that is being written
    assert {path.name for path in Path(tmp_path).iterdir() if not path.name.startswith(".")} == {
        "README.md",
        "selective_config.json",
        "selective_delta.safetensors",
    }
