"""Measuring memory in a process of its own, where nothing else has touched the peak yet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RESETS = os.access("/proc/self/clear_refs", os.W_OK)
needs_peak_counter = pytest.mark.skipif(not RESETS, reason="Linux's peak counter cannot be reset here")


def probed(code, *arguments):
    """What a program prints as JSON; freed memory goes back to the system at once."""
    from benchmarks.resident import RETURN_FREED_MEMORY

    done = subprocess.run(
        (sys.executable, "-c", code, *arguments),
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **RETURN_FREED_MEMORY},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)
