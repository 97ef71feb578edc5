"""Deltas and checkpoints that a command names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selective_peft.composing import agreement, compose
from selective_peft.delta import SparseDelta
from selective_peft.delta_file import FILE
from selective_peft.errors import DeltaError, InputError
from selective_peft.output import Output


def file_of(path: Path, argument: str) -> Path:
    """The file of a delta.

    Raises:
        InputError: there is none.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{argument} {path}: expected a folder with {FILE} in it, or such a file, found none")
    return file


def read_deltas(paths: Sequence[Path], argument: str) -> list[SparseDelta]:
    """Reads and checks deltas.

    Raises:
        InputError: one is not there.
        DeltaError: one is damaged.
        OSError: one cannot be read.
    """
    return [SparseDelta.load(file) for file in [file_of(path, argument) for path in paths]]


def composed(deltas: Sequence[SparseDelta], on_conflict: str) -> tuple[SparseDelta, int]:
    """Several deltas as one, and how many scalars had two values; a single one stays as it is.

    Raises:
        DeltaError: see `composing.compose`.
    """
    if len(deltas) == 1:
        return deltas[0], 0
    try:
        joined = compose(deltas, on_conflict)
    except DeltaError as error:
        raise DeltaError(str(error).replace("on_conflict='first' or 'last'", "--on-conflict first or last")) from error
    conflicts, so_far = 0, deltas[0]
    for delta in deltas[1:]:
        if on_conflict != "error":
            conflicts += agreement(so_far, delta)["all"].conflicts
            so_far = compose([so_far, delta], on_conflict)
    return joined, conflicts


def conflict_row(conflicts: int, on_conflict: str) -> dict[str, str]:
    """A line for a table, if there was any conflict."""
    return {"with two values": f"{conflicts:,}; the {on_conflict} one decided"} if conflicts else {}


def check_checkpoint(path: Path, argument: str) -> None:
    """Raises InputError unless there is a folder or a file; what is in it is looked at later."""
    if not path.exists():
        raise InputError(f"{argument} {path}: expected a folder with safetensors weights, found none")


def write_delta(delta: SparseDelta, out: Path, *, compact: bool, originals: bool) -> int:
    """Writes a delta as a new folder, which appears whole or not at all; returns the size of its file in bytes.

    Raises:
        DeltaError: no file can hold it.
        OSError: it cannot be written.
    """
    with Output(out) as output:
        output.fill(lambda folder: delta.save(folder, compact=compact, originals=originals))
        output.publish()
    return (out / FILE).stat().st_size
