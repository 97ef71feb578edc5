"""Which files a changed checkpoint has, and which tensors are in them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selective_peft.changes import Change
from selective_peft.checkpoint_files import INDEX, SINGLE, Checkpoint, Shard, modern
from selective_peft.container import CODES, Stored, header_of, lay_out
from selective_peft.errors import DeltaError
from selective_peft.planning import Plan

Changes = Mapping[str, Change]
REMOTE_CODE = ("auto_map", "custom_pipelines")  # of a configuration: only the base says what code may be run


@dataclass(frozen=True)
class NewFile:
    """A file of weights that is to be written.

    Attributes:
        name: in the folder.
        source: the file that it is made of.
        header: what it begins with, up to the first tensor.
        tensors: in order: the name in the file; the name in the source, None for an added tensor; the delta's name of
            its change, None if it stays as it is.
        nbytes: its size.
        numel: scalars in it.
    """

    name: str
    source: Shard
    header: bytes
    tensors: tuple[tuple[str, str | None, str | None], ...]
    nbytes: int
    numel: int

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are the source's."""
        return self.header[8:] == self.source.header and all(change is None for _, _, change in self.tensors)


@dataclass(frozen=True)
class Layout:
    """All files of the new folder: weights, copies of other files by name, and small new ones with their content."""

    files: tuple[NewFile, ...]
    copies: tuple[str, ...]
    texts: Mapping[str, str]


def patched(checkpoint: Checkpoint, plan: Plan, changes: Changes) -> Layout:
    """The same files; only what is added or removed changes a header and the index."""
    files = _files(checkpoint, plan, changes, lambda key: None if key in plan.removed else key, plan.added)
    if checkpoint.index is None:
        return Layout(files, checkpoint.others, {})
    name, content = checkpoint.index
    if not plan.added and not plan.removed:
        return Layout(files, (*checkpoint.others, name), {})
    return Layout(files, checkpoint.others, {name: _index_text(content, checkpoint, files)})


def merged(checkpoint: Checkpoint, plan: Plan, changes: Changes, config: Mapping[str, Any] | None) -> Layout:
    """Files of the model with its own names, and its configuration."""

    def own(key: str) -> str | None:
        changed = plan.edits.get(key)
        if changed is not None and plan.naming.stored(changed) == modern(key):
            return changed
        return plan.naming.model(modern(key))

    files = _files(checkpoint, plan, changes, own, {name: name for name in plan.added.values()}, {"format": "pt"})
    texts = {}
    if checkpoint.index is not None:
        name = SINGLE.removesuffix(".safetensors") + INDEX if config is not None else checkpoint.index[0]
        texts[name] = _index_text(checkpoint.index[1], checkpoint, files)
    elif config is not None:
        files = tuple(replace(file, name=SINGLE) for file in files)
    if config is not None:
        theirs = _without(config, ("_name_or_path", *REMOTE_CODE))
        mine = {key: value for key, value in (checkpoint.config or {}).items() if key in REMOTE_CODE}
        texts["config.json"] = _text({**theirs, **mine})
    return Layout(files, tuple(name for name in checkpoint.others if name not in texts), texts)


def _without(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A configuration without some settings, those of its parts included."""
    kept = {key: value for key, value in config.items() if key not in names}
    return {key: _without(value, names) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _files(
    checkpoint: Checkpoint,
    plan: Plan,
    changes: Changes,
    rename: Callable[[str], str | None],
    added: Mapping[str, str],
    metadata: Mapping[str, str] | None = None,
) -> tuple[NewFile, ...]:
    """One for each that has any tensors left; what is added goes into the last one."""
    found, seen = [], set()
    for shard in checkpoint.shards:
        entries: list[tuple[str, str | None, str | None]] = []
        for key in shard.tensors:
            name = rename(key)
            if name is not None:
                entries.append((name, key, plan.edits.get(key)))
        if shard is checkpoint.shards[-1]:
            entries += [(name, None, change) for name, change in added.items()]
        for name, _, _ in entries:
            if name in seen:
                raise DeltaError(f"{checkpoint.folder}: expected names that stay apart, got {name!r} twice")
            seen.add(name)
        if entries or len(checkpoint.shards) == 1:
            found.append(_file(shard, entries, changes, shard.metadata if metadata is None else metadata))
    return tuple(found)


def _file(
    shard: Shard, entries: list[tuple[str, str | None, str | None]], changes: Changes, metadata: Mapping[str, str]
) -> NewFile:
    kinds = {name: _kind(shard, key, change, changes) for name, key, change in entries}
    same_names = [name for name, _, _ in entries] == list(shard.tensors)
    if same_names and metadata == shard.metadata:
        header = len(shard.header).to_bytes(8, "little") + shard.header
        tensors = tuple(entries)
    else:
        order = sorted(entries, key=lambda entry: -_width(*kinds[entry[0]]))  # aligned, as the library wants it
        header = header_of(lay_out({name: kinds[name] for name, _, _ in order}), metadata)
        tensors = tuple(order)
    size = sum(nbytes for _, _, nbytes in kinds.values())
    numel = sum(math.prod(shape) for _, shape, _ in kinds.values())
    return NewFile(shard.name, shard, header, tensors, len(header) + size, numel)


def _kind(shard: Shard, key: str | None, change: str | None, changes: Changes) -> tuple[str, tuple[int, ...], int]:
    if key is not None:
        stored: Stored = shard.tensors[key]
        return stored.code, stored.shape, stored.nbytes
    assert change is not None
    new = changes[change]
    return CODES[new.dtype], new.shape, new.numel * new.dtype.itemsize


def _width(code: str, shape: tuple[int, ...], nbytes: int) -> float:
    """Bytes of a scalar."""
    return nbytes / math.prod(shape) if nbytes else 0.0


def _index_text(old: Mapping[str, Any], checkpoint: Checkpoint, files: tuple[NewFile, ...]) -> str:
    """The index of these files; its sums, if it has any, are brought up to date."""
    given = old.get("metadata")
    metadata = dict(given) if isinstance(given, dict) else {}
    if "total_size" in metadata:
        metadata["total_size"] = sum(file.nbytes - len(file.header) for file in files)
    if isinstance(metadata.get("total_parameters"), int):
        before = sum(math.prod(stored.shape) for stored in checkpoint.tensors.values())
        metadata["total_parameters"] += sum(file.numel for file in files) - before
    weight_map = {name: file.name for file in files for name, _, _ in file.tensors}
    return _text({**old, "metadata": metadata, "weight_map": weight_map})


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
