"""`selective-peft compose` and `diff`: a new delta, of others or of two checkpoints."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.console import Console

from selective_peft.about import public_name
from selective_peft.delta import SparseDelta
from selective_peft.delta_folders import check_checkpoint, composed, conflict_row, read_deltas, write_delta
from selective_peft.output import check_output
from selective_peft.patch_files import diff_files
from selective_peft.showing import facts, progress_bar, show, warning


def run(options: argparse.Namespace, console: Console) -> None:
    """Runs one of these commands.

    Raises:
        InputError: something that was given cannot be used.
        DeltaError: a delta or a checkpoint is damaged, or they do not fit together.
        OSError: a file cannot be read or written. In all cases nothing is left behind.
    """
    check_output(options.out, "--out")
    {"compose": _compose, "diff": _diff}[options.command](options, console)


def described(delta: SparseDelta) -> dict[str, Any]:
    """Counts of a delta."""
    told = delta.summary()
    return {name: told[name] for name in ("tensors", "scalars", "of", "whole", "originals", "fingerprint")}


def _counts(delta: SparseDelta) -> dict[str, str]:
    told = delta.summary()
    share = f" of {told['of']:,} ({100 * told['scalars'] / told['of']:.3g} %)" if told["of"] else ""
    whole = f"{len(told['whole']):,} ({sum(told['whole'].values()):,} scalars)" if told["whole"] else ""
    return {"single scalars": f"{told['scalars']:,}{share}", "whole tensors": whole}


def _compose(options: argparse.Namespace, console: Console) -> None:
    deltas = read_deltas(options.deltas, "DELTA")
    delta, conflicts = composed(deltas, options.on_conflict)
    size = write_delta(delta, options.out, compact=options.compact, originals=options.originals)
    found = {
        "command": "compose",
        "deltas": [str(path) for path in options.deltas],
        "out": str(options.out),
        "on_conflict": options.on_conflict,
        "conflicts": conflicts,
        **described(delta),
        "originals": options.originals and delta.has_originals,
        "file_bytes": size,
    }
    rows = {
        "deltas": f"{len(deltas)}",
        **_counts(delta),
        **conflict_row(conflicts, options.on_conflict),
        "written": f"{options.out} ({size:,} bytes)",
    }
    show(console, options, found, facts(rows))


def _diff(options: argparse.Namespace, console: Console) -> None:
    for argument in ("base", "tuned"):
        check_checkpoint(getattr(options, argument), f"--{argument}")
    began = time.perf_counter()
    with progress_bar(options) as progress:
        delta = diff_files(
            options.base,
            options.tuned,
            whole_above=options.whole_above,
            base_model=options.base_model or public_name(str(options.base)),
            base_revision=options.base_revision,
            allow_missing=options.allow_missing,
            progress=progress,
        )
    size = write_delta(delta, options.out, compact=options.compact, originals=options.originals)
    found = {
        "command": "diff",
        "base": str(options.base),
        "tuned": str(options.tuned),
        "out": str(options.out),
        **described(delta),
        "originals": options.originals and delta.has_originals,
        "file_bytes": size,
        "seconds": time.perf_counter() - began,
    }
    rows = {
        "changed tensors": f"{len(delta.changes):,}",
        **_counts(delta),
        "written": f"{options.out} ({size:,} bytes)",
    }
    alike = [warning("The two are equal, bit for bit: the delta changes nothing.")] if not delta.changes else []
    show(console, options, found, facts(rows), *alike)
