"""Checkpoint folders as save_pretrained writes them: one safetensors file, or several with an index.

What a folder says is not believed: each tensor must be where the index has it, once, and the index may name files of
the folder only. A file may be a link to elsewhere, as all are in the Hub's cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selective_peft.container import Container, Stored, json_object
from selective_peft.delta_file import FILE as DELTA
from selective_peft.errors import DeltaError

SINGLE, SUFFIX, INDEX = "model.safetensors", ".safetensors", ".safetensors.index.json"
LARGEST_INDEX = 1 << 28  # bytes
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# The same weights in other forms, which would be the base's in a copy; and what goes with them.
OTHER_FORMS = (*PICKLED, ".bin.index.json", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ot", ".tflite")
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # transformers renames them, too


@dataclass(frozen=True)
class Shard:
    """One file of tensors.

    Attributes:
        path: where it is.
        header: its JSON, as it stands there.
        metadata: strings by name.
        tensors: by the name that they are stored under, in the order of their bytes.
    """

    path: Path
    header: bytes
    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.path.name


@dataclass(frozen=True)
class Checkpoint:
    """What is in a checkpoint folder; no tensor is read yet.

    Attributes:
        folder: where it is; the file, if it is a file alone.
        shards: by name of the file.
        index: name and content of the index, if there is one.
        others: the files beside the weights, as paths within the folder.
        left_out: weights in other forms, likewise, which no operation copies.
        config: of `config.json`; None without.
    """

    folder: Path
    shards: tuple[Shard, ...]
    index: tuple[str, Mapping[str, Any]] | None
    others: tuple[str, ...]
    left_out: tuple[str, ...]
    config: Mapping[str, Any] | None

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Of all files, by the name that they are stored under."""
        return {name: stored for shard in self.shards for name, stored in shard.tensors.items()}


class Reader:
    """Reads tensors of a checkpoint in pieces, and keeps the last two files open. Use it in a `with` statement."""

    MOST = 2  # each has a buffer

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._shard_of = {name: shard for shard in checkpoint.shards for name in shard.tensors}
        self._open: dict[Path, Container] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for container in self._open.values():
            container.close()
        self._open.clear()

    def container(self, name: str) -> Container:
        """The open file that a tensor is in.

        Raises:
            DeltaError: it has been replaced by another one.
        """
        shard = self._shard_of[name]
        found = self._open.pop(shard.path, None) or Container(shard.path)
        self._open[shard.path] = found  # the last one used stands last
        if len(self._open) > self.MOST:
            self._open.pop(next(iter(self._open))).close()
        if found.header != shard.header:
            raise DeltaError(f"{shard.path}: expected the file of a moment ago, it has been replaced meanwhile")
        return found

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor."""
        yield from self.container(name).chunks(name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads and checks all that a checkpoint says of itself: index, headers, configuration.

    Args:
        path: a folder, or a single safetensors file.

    Raises:
        DeltaError: there is none, it is damaged, incomplete or contradicts itself, or has pickled weights only.
        OSError: it cannot be read.
    """
    if path.is_file():
        if path.suffix != SUFFIX:
            raise DeltaError(f"{path}: expected a folder or a .safetensors file, got another; {_convert('it')}")
        return Checkpoint(path, (_shard(path),), None, (), (), None)
    if not path.is_dir():
        raise DeltaError(f"{path}: expected a checkpoint folder, there is none")
    index = _index(path)
    names = [_single(path)] if index is None else sorted(set(_weight_map(path / index[0], index[1]).values()))
    shards = tuple(_shard(path / name) for name in names)
    if index is not None:
        _check_index(path / index[0], _weight_map(path / index[0], index[1]), shards)
    used = {*names, *([index[0]] if index else [])}
    files = [name for name in _files(path, "") if name not in used]
    more = (*OTHER_FORMS, SUFFIX, INDEX)  # those of a sub-folder belong to another part of a pipeline
    left_out = [name for name in files if name.endswith(OTHER_FORMS if "/" in name else more)]
    others = [name for name in files if name not in left_out]
    return Checkpoint(path, shards, index, tuple(others), tuple(left_out), _config(path / "config.json"))


def _convert(name: str) -> str:
    return f"if {name} holds weights, load the model and call save_pretrained, which writes safetensors"


def _index(folder: Path) -> tuple[str, dict[str, Any]] | None:
    found = sorted(path.name for path in folder.glob(f"*{INDEX}") if not path.name.startswith("."))
    if len(found) > 1 or (found and (folder / SINGLE).exists()):
        both = [*found, *([SINGLE] if (folder / SINGLE).exists() else [])]
        raise DeltaError(f"{folder}: expected one checkpoint, got {' and '.join(both)}")
    if not found:
        return None
    return found[0], read_json(folder / found[0])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        DeltaError: it holds something else, or more than an index ever does.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST_INDEX + 1)
    if len(data) > LARGEST_INDEX:
        raise DeltaError(f"{path}: expected at most {LARGEST_INDEX:,} bytes of JSON, got more")
    try:
        return json_object(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise DeltaError(f"{path}: expected UTF-8, got other bytes ({error.reason})") from error


def _single(folder: Path) -> str:
    if (folder / SINGLE).exists():
        return SINGLE
    visible = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    found = sorted(name for name in visible if name.endswith(SUFFIX) and name != DELTA)
    if len(found) == 1:
        return found[0]
    if found:
        raise DeltaError(f"{folder}: expected an index of its {len(found)} safetensors files, there is none")
    pickled = sorted(name for name in visible if name.endswith(PICKLED))
    more = f" but {pickled[0]}; {_convert(pickled[0])}" if pickled else ""
    raise DeltaError(f"{folder}: expected weights as safetensors, there are none{more}")


def _weight_map(where: Path, index: Mapping[str, Any]) -> dict[str, str]:
    """File by tensor; the files lie in the folder itself."""
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise DeltaError(f"{where}: weight_map: expected an object with a file for each tensor, got {str(found)[:40]}")
    for name, file in found.items():
        plain = isinstance(file, str) and file.endswith(SUFFIX) and not file.startswith(".")
        if not plain or any(sign in file for sign in "/\\\0"):
            raise DeltaError(f"{where}: {name}: expected the name of a {SUFFIX} file in the folder, got {file!r}")
    return found


def _check_index(where: Path, weight_map: Mapping[str, str], shards: tuple[Shard, ...]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in seen:
                raise DeltaError(f"{where.parent}: {name}: expected it once, got it in {seen[name]} and {shard.name}")
            if weight_map.get(name) != shard.name:
                said = f"it says {weight_map[name]}" if name in weight_map else "it has none"
                raise DeltaError(f"{where}: {name}: expected {shard.name}, where the tensor is, {said}")
            seen[name] = shard.name
    for name, file in weight_map.items():
        if name not in seen:
            raise DeltaError(f"{where}: {name}: expected it in {file}, there is none")


def _shard(path: Path) -> Shard:
    if not path.is_file():
        raise DeltaError(f"{path}: expected a file of weights, there is none")
    with Container(path) as container:
        return Shard(path, container.header, container.metadata, container.tensors)


def _files(folder: Path, inner: str) -> Iterator[str]:
    """All regular files by name, also behind links; nothing hidden; links to folders are not followed."""
    for entry in sorted(os.scandir(folder / inner), key=lambda entry: entry.name):
        name = f"{inner}/{entry.name}" if inner else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder, name)
        elif entry.is_file():
            yield name
        elif entry.is_symlink() and not entry.is_dir():
            raise DeltaError(f"{folder / name}: expected a file, got a link to nothing")


def _config(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def modern(name: str) -> str:
    """What transformers calls a tensor that is stored under this name."""
    for old, new in LEGACY.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
