"""Makes the benchmarks importable; their `__init__` takes the repository root off the path again."""

import importlib
import os
import sys
from pathlib import Path

# Triton reads this when it is imported: its kernels then run on CPU tensors. Set it to 0 on a machine with a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
importlib.import_module("benchmarks")
