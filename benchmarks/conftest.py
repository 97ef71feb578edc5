"""Options of the operations' benchmarks under pytest; makes this package importable, as tests/conftest.py does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

if "benchmarks" not in sys.modules:  # or the repository's root, which importing it takes off again, would stay
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("benchmarks")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What is measured, and how often."""
    group = parser.getgroup("operations")
    group.addoption("--op-model", default="minilm-l6", help="a model of benchmarks/shapes.py, 1m or 64k")
    group.addoption("--op-threads", type=int, default=0, help="of torch and of the kernels; default: torch's")
    group.addoption("--op-rounds", type=int, default=15, help="timed rounds of each operation")
