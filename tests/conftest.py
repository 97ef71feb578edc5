"""The environment of all tests; the benchmarks are importable (their `__init__` takes the root off the path again)."""

import importlib
import os
import sys
from pathlib import Path

# Triton reads this when it is imported: its kernels then run on CPU tensors. Set it to 0 on a machine with a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# huggingface_hub, too: no test asks a server outside this machine for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
importlib.import_module("benchmarks")
