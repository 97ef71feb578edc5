"""Does it train as well? The paper's comparison on models and data that come in packages.

`python -m benchmarks.quality --preset small` tries all of it; `--preset full` takes hours and goes on where it was
stopped. `--help` says more.
"""
