"""`selective-peft apply`, `revert` and `merge`: a delta into a checkpoint, or out of it."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from rich.console import Console

from selective_peft.delta_folders import check_checkpoint, composed, conflict_row, read_deltas
from selective_peft.output import check_output
from selective_peft.patch_files import apply_files, merge_files, revert_files
from selective_peft.showing import facts, progress_bar, show, warning

PATCHES = {
    "apply": ("base", apply_files),
    "revert": ("tuned", revert_files),
    "merge": ("base", merge_files),
}  # command -> the option that names the checkpoint, what is done


def run(options: argparse.Namespace, console: Console) -> None:
    """Runs one of these commands.

    Raises:
        InputError: something that was given cannot be used.
        DeltaError: a delta or a checkpoint is damaged, or they do not fit together.
        OSError: a file cannot be read or written. In all cases nothing is left behind.
    """
    check_output(options.out, "--out")
    argument, patch = PATCHES[options.command]
    source = getattr(options, argument)
    check_checkpoint(source, f"--{argument}")
    delta, conflicts = composed(read_deltas(options.delta, "--delta"), options.on_conflict)
    began = time.perf_counter()
    with progress_bar(options) as progress:
        done = patch(source, delta, options.out, check=options.check, progress=progress)
    found = {
        "command": options.command,
        argument: str(source),
        "deltas": [str(path) for path in options.delta],
        "out": str(options.out),
        "on_conflict": options.on_conflict,
        "conflicts": conflicts,
        "checked": options.check,
        **asdict(done),
        "seconds": time.perf_counter() - began,
    }
    rows = {
        "changed tensors": f"{len(done.changed):,}",
        "added": ", ".join(done.added),
        "removed": ", ".join(done.removed),
        **conflict_row(conflicts, options.on_conflict),
        "not copied": ", ".join(done.left_out),
        "written": f"{options.out} ({done.nbytes:,} bytes of weights)",
    }
    unchecked = "--no-check: fingerprints were not compared, so nothing says that the weights were the right ones."
    show(console, options, found, facts(rows), *([] if options.check else [warning(unchecked)]))
