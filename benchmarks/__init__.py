"""Demo and benchmarks. Run from the repository root: `python -m benchmarks --help`; `.demo`, `.updates`, `.gaps`,
`.deltas`, `.delta_files`.

On a machine with a GPU: `.gpu_step`, and `.gpucheck`, which runs it after all checks.
"""

import sys
from pathlib import Path

# `python -m` puts the repository root first on the path, where the source folder `selective_kernels` would shadow the
# installed package and its compiled kernels. Submodules of this package are found without it.
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
if sys.path and Path(sys.path[0] or ".").resolve() == ROOT:
    del sys.path[0]
