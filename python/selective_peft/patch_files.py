"""Deltas on checkpoint folders, file by file: no model is built, and memory does not grow with the tensors.

All is checked before the first byte is written, and the new folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selective_peft.about import About
from selective_peft.changes import Change
from selective_peft.checkpoint_files import Reader, open_checkpoint
from selective_peft.comparing_files import difference_of_files
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.layouts import NewFile, merged, patched
from selective_peft.output import Output, check_output, check_space
from selective_peft.planning import Planner, check_contents
from selective_peft.streaming import Meter, Progress, pieces_of, swapped


@dataclass(frozen=True)
class Patched:
    """What has become of a checkpoint.

    Attributes:
        changed: names of the tensors that have other values now, as the checkpoint has them.
        added: of those that are new.
        removed: of those that are gone.
        left_out: files that were not copied: weights in other forms, still the base's.
        nbytes: size of the new weights' files.
    """

    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    left_out: tuple[str, ...]
    nbytes: int


def apply_files(
    base: str | Path, delta: SparseDelta, out: str | Path, *, check: bool = True, progress: Progress | None = None
) -> Patched:
    """Makes the tuned checkpoint of the base's: same files, same names, same metadata.

    The files beside the weights are copied, but for hidden ones and weights in other forms. Whole tensors that the base
    lacks (a head) are added. The checkpoint may lack a prefix of the delta's names, or have one more; a tensor that the
    model ties and that is stored twice is changed twice.

    Args:
        base: a checkpoint folder, as save_pretrained writes it, or one safetensors file.
        delta: what to change.
        out: a new or an empty folder.
        check: compare the fingerprints of the tensors that are changed in part: reads each of them once more. Names,
            shapes and dtypes are always checked.
        progress: is called with the bytes done, the bytes in all, and what is being done.

    Raises:
        DeltaError: the base is damaged, or not the delta's, or the delta is applied already.
        InputError: `out` is not empty, cannot be written to, or has too little space.
        OSError: a file cannot be read or written. In all cases nothing is left behind.
    """
    return _patch(Path(base), delta, Path(out), undo=False, merge=False, check=check, progress=progress)


def revert_files(
    tuned: str | Path, delta: SparseDelta, out: str | Path, *, check: bool = True, progress: Progress | None = None
) -> Patched:
    """Makes the base's checkpoint of the tuned one; as `apply_files`, the other way round.

    What `apply_files` has written gets the base's bytes. Whole tensors get the originals that the delta has of them;
    those that it has as new are removed.

    Args:
        tuned: a checkpoint folder or file.
        delta: what to undo.
        out: a new or an empty folder.
        check: the tuned checkpoint has the delta's values, and the base's fingerprints when these are undone.
        progress: as in `apply_files`.

    Raises:
        DeltaError: the delta has no originals, or the checkpoint does not fit.
        InputError, OSError: as in `apply_files`.
    """
    return _patch(Path(tuned), delta, Path(out), undo=True, merge=False, check=check, progress=progress)


def merge_files(
    base: str | Path, delta: SparseDelta, out: str | Path, *, check: bool = True, progress: Progress | None = None
) -> Patched:
    """Makes a plain checkpoint of the tuned model, for any server: `from_pretrained(out)` gives it bit for bit.

    As `apply_files`, but all tensors have the tuned model's own names, what is no part of it is left out, and
    `config.json` is the tuned model's, if the delta has it.

    Args, raises: as `apply_files`.
    """
    return _patch(Path(base), delta, Path(out), undo=False, merge=True, check=check, progress=progress)


def diff_files(
    base: str | Path,
    tuned: str | Path,
    *,
    whole_above: float = 0.5,
    base_model: str | None = None,
    base_revision: str | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> SparseDelta:
    """The delta from one checkpoint to another, tensor by tensor; names are the tuned one's.

    Memory is that of the delta and of a few pieces of tensors.

    Args:
        base, tuned: checkpoint folders or files; one may have names with a prefix that the other lacks.
        whole_above: a tensor with a larger share of its scalars changed is taken whole.
        base_model, base_revision: what the base is, for people and the Hub.
        allow_missing: the base may have tensors that the tuned one lacks, such as another head; they stay as they are
            when the delta is applied.
        progress: as in `apply_files`.

    Raises:
        DeltaError: a checkpoint is damaged; a tensor is missing or has another shape or dtype; tensors that are not
            float32, bfloat16 or float16 differ; a changed value is inf or NaN.
        ValueError: `whole_above` is no share.
        OSError: a file cannot be read.
    """
    changes, config = difference_of_files(
        open_checkpoint(Path(base)), open_checkpoint(Path(tuned)), whole_above, allow_missing, progress
    )
    return SparseDelta(changes, About(base_model or "", base_revision or "", "diff", model_config=config))


def _patch(
    path: Path, delta: SparseDelta, out: Path, *, undo: bool, merge: bool, check: bool, progress: Progress | None
) -> Patched:
    check_output(out, "out")
    checkpoint = open_checkpoint(path)
    with Reader(checkpoint) as reader:
        plan = Planner(checkpoint, delta.changes, reader, undo, delta.about.model_config).plan()
        if merge:
            layout = merged(checkpoint, plan, delta.changes, delta.about.model_config)
        else:
            layout = patched(checkpoint, plan, delta.changes)
        beside = sum((path / name).stat().st_size for name in layout.copies)
        size = sum(file.nbytes for file in layout.files)
        check_space(out, size + beside, "out")
        read = sum(checkpoint.tensors[key].nbytes for key in plan.edits) if check else 0
        meter = Meter(read + size + beside, progress)
        if check:
            check_contents(plan, delta.changes, reader, undo, meter)
        with Output(out) as output:
            for file in layout.files:
                output.write(file.name, _Writing(file, delta.changes, reader, undo, meter))
            for name in layout.copies:
                output.write(name, partial(_copy, path / name, meter))
            for name, text in layout.texts.items():
                output.write(name, partial(_write_text, text))
            output.publish()
    files = [entry for file in layout.files for entry in file.tensors]
    kept = {key for _, key, _ in files}
    return Patched(
        changed=tuple(name for name, key, change in files if key is not None and change is not None),
        added=tuple(name for name, key, _ in files if key is None),
        removed=tuple(key for key in checkpoint.tensors if key not in kept),
        left_out=checkpoint.left_out,
        nbytes=size,
    )


@dataclass(frozen=True)
class _Writing:
    """Writes one file of weights."""

    file: NewFile
    changes: Mapping[str, Change]
    reader: Reader
    undo: bool
    meter: Meter

    def __call__(self, target: Path) -> None:
        if self.file.is_copy:
            _copy(self.file.source.path, self.meter, target)
        else:
            with target.open("xb") as out:
                out.write(self.file.header)
                self.meter.add(len(self.file.header), self._what)
                for _, key, change in self.file.tensors:
                    for piece in self.meter.counting(self._pieces(key, change), self._what):
                        out.write(piece)
        if target.stat().st_size != self.file.nbytes:
            raise DeltaError(f"{self.file.source.path}: expected a file that nobody writes to, its size has changed")

    @property
    def _what(self) -> str:
        return f"writing {self.file.name}"

    def _pieces(self, key: str | None, name: str | None) -> Iterable[memoryview]:
        if key is None:
            assert name is not None
            return pieces_of(self.changes[name].values.contiguous())
        if name is None:
            return self.reader.pieces(key)
        change = self.changes[name]
        values = change.originals if self.undo else change.values
        assert values is not None
        return (piece for piece, _ in swapped(self.reader.pieces(key), change, values))


def _copy(source: Path, meter: Meter, target: Path) -> None:
    shutil.copyfile(source, target)
    meter.add(target.stat().st_size, f"copying {target.name}")


def _write_text(text: str, target: Path) -> None:
    target.write_text(text, encoding="utf-8")
