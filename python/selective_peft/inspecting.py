"""`selective-peft inspect`: what is in a delta, or how far two agree."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from selective_peft import analysis
from selective_peft.composing import agreement, as_json
from selective_peft.delta import SparseDelta
from selective_peft.delta_folders import file_of
from selective_peft.delta_tables import agreement_table, facts_of, module_table, rows_of, updates_of
from selective_peft.errors import InputError
from selective_peft.showing import clean, facts, show


def run(options: argparse.Namespace, console: Console) -> None:
    """Reads one delta or two, prints tables, draws a picture.

    Raises:
        InputError: something that was given cannot be used.
        DeltaError: a delta is damaged, or the two are of different bases.
        OSError: a file cannot be read or written.
    """
    if len(options.deltas) > 2:
        raise InputError(f"DELTA: expected one or two, got {len(options.deltas)}")
    if options.picture is not None and (not options.picture.parent.is_dir() or options.picture.is_dir()):
        raise InputError(f"--picture {options.picture}: expected a file in a folder that exists")
    files = [file_of(path, "DELTA") for path in options.deltas]
    deltas = [SparseDelta.load(file) for file in files]
    if len(deltas) == 1:
        _one(options, console, deltas[0], files[0])
    else:
        _two(options, console, deltas[0], deltas[1], files)


def _one(options: argparse.Namespace, console: Console, delta: SparseDelta, file: Path) -> None:
    found = facts_of(delta, file)
    if options.picture is not None:
        from selective_peft import delta_plots

        delta_plots.draw(options.picture, delta, title=_name(options.deltas[0], 60))
    drawn = _drawn(options)
    found |= drawn
    show(console, options, found, facts(rows_of(found)), module_table(delta, found, options.top), *_said(drawn))


def _two(options: argparse.Namespace, console: Console, a: SparseDelta, b: SparseDelta, files: list[Path]) -> None:
    agreed = agreement(a, b)
    updates = updates_of(a), updates_of(b)
    rho, shared = None, 0
    if updates[0] is not None and updates[1] is not None:
        shared = analysis.overlap(updates[0], updates[1]).shared
        rho = analysis.update_correlation(updates[0], updates[1]) if shared > 1 else None
    if options.picture is not None:
        from selective_peft import delta_plots

        if updates[0] is None or updates[1] is None:
            raise InputError("--picture: expected two deltas with single scalars and their originals")
        labels = _name(options.deltas[0], 23), _name(options.deltas[1], 23)
        delta_plots.draw_pair(options.picture, updates[0], updates[1], labels)
    drawn = _drawn(options)
    found = {
        "first": facts_of(a, files[0]),
        "second": facts_of(b, files[1]),
        "agreement": as_json(agreed),
        "spearman": rho,
        **drawn,
    }
    rows = {"first": str(options.deltas[0]), "second": str(options.deltas[1])}
    words = "" if rho is None else f"Spearman's correlation of the updates of {shared:,} scalars in both: {rho:.3f}"
    lines = [clean(words)] if words else []
    show(console, options, found, facts(rows), agreement_table(agreed, options.top), *lines, *_said(drawn))


def _name(path: Path, most: int) -> str:
    """Of a delta, for a picture: its folder, with the one around it, as the command itself calls them "delta".

    Of a longer one than a picture has room for, the last `most` characters.
    """
    folder = path.resolve()
    name = "/".join(folder.parts[-2:]) if len(folder.parts) > 2 else folder.name
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _drawn(options: argparse.Namespace) -> dict[str, Any]:
    return {} if options.picture is None else {"picture": str(options.picture)}


def _said(drawn: dict[str, Any]) -> list[str]:
    return [f"picture: {clean(path)}" for path in drawn.values()]
