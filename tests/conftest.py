"""Makes the benchmarks importable; their `__init__` takes the repository root off the path again."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
importlib.import_module("benchmarks")
