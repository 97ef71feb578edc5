"""The file format of sparse deltas, version 1; docs/delta-format.md describes it for other readers.

One safetensors file. A tensor of the model of which single scalars change has two or three tensors in it:
`<name>.indices` (int32, flat row-major, ascending), `<name>.values` (the new values, absolute, in the parameter's
dtype) and `<name>.original` (the base's). In the compact encoding `<name>.gaps` (bytes, see `selective_kernels.gaps`)
stands for the indices. A tensor that is replaced whole stands under its own name, beside `<name>.original`.

Metadata are strings: "format", "version", "encoding" ("indices" or "gaps"), "tensors" (JSON: name -> shape, dtype,
number of entries or null, digest of the base's tensor), "fingerprint", "scalars", what `About` holds, "created_by",
and "checksum": SHA-256 of the whole file, as if 64 zeros stood in its place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import selective_kernels
from selective_kernels import decode_gaps, encode_gaps
from selective_peft.about import About, to_json
from selective_peft.atomic import replacing
from selective_peft.changes import Change
from selective_peft.container import CHUNK, CODES, Container, Stored, json_object, lay_out, write_container
from selective_peft.delta_card import card, config
from selective_peft.errors import DeltaError
from selective_peft.rawbytes import raw

FORMAT = "selective-delta"
VERSION = "1"
FILE, CONFIG, CARD = "selective_delta.safetensors", "selective_config.json", "README.md"
NO_CHECKSUM = "0" * 64
CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{64})"')
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_DIMENSIONS = 64
Changes = Mapping[str, Change]


def fingerprint(changes: Changes) -> str:
    """SHA-256 over a line "name dtype shape digest" for each tensor that the base has, by name."""
    lines = [
        f"{name} {NAMES[change.dtype]} {list(change.shape)} {change.digest}\n"
        for name, change in sorted(changes.items())
        if not change.is_new
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ---------------------------------------------------------------------- writing


def save(changes: Changes, about: About, folder: Path, *, compact: bool, originals: bool) -> None:
    """See `SparseDelta.save`."""
    tensors = _tensors(changes, compact=compact, originals=originals)
    metadata = _metadata(changes, about, "gaps" if compact else "indices")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FILE) as file:
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        placed = lay_out({name: _kind(tensors[name]) for name in order})
        header = write_container(file, placed, {**metadata, "checksum": NO_CHECKSUM}, lambda name: [raw(tensors[name])])
        (found,) = CHECKSUM.finditer(header)
        file.flush()
        file.seek(0)
        total = hashlib.sha256()
        while piece := file.read(CHUNK):
            total.update(piece)
        file.seek(found.start(1))
        file.write(total.hexdigest().encode())
    for name, text in ((CONFIG, config(metadata, about)), (CARD, card(changes, about))):
        with replacing(folder / name) as file:
            file.write(text.encode())


def _kind(tensor: Tensor) -> tuple[str, tuple[int, ...], int]:
    return CODES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size()


def _tensors(changes: Changes, *, compact: bool, originals: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, change in changes.items():
        mine = {name if change.indices is None else f"{name}.values": change.values.contiguous()}
        if change.indices is not None:
            mine |= {f"{name}.gaps": encode_gaps(change.indices)} if compact else {f"{name}.indices": change.indices}
        if originals and change.originals is not None:
            mine[f"{name}.original"] = change.originals.contiguous()
        # An original's place is taken also if it is not kept: a reader would find the other tensor there.
        taken = {f"{name}.original"} & changes.keys() | mine.keys() & {*found, "__metadata__"}
        if taken:
            key = min(taken)
            raise DeltaError(f"{name}: expected names that stay apart in a file, {key!r} would stand there twice")
        found |= mine
    return found


def _metadata(changes: Changes, about: About, encoding: str) -> dict[str, str]:
    tensors = {
        name: {
            "shape": list(change.shape),
            "dtype": NAMES[change.dtype],
            "entries": None if change.indices is None else len(change.indices),
            "digest": change.digest,
            "tied": None if change.tied is None else list(change.tied),
        }
        for name, change in sorted(changes.items())
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "encoding": encoding,
        "tensors": to_json(tensors),
        "fingerprint": fingerprint(changes),
        "scalars": str(sum(change.scalars for change in changes.values())),
        "created_by": f"selective-kernels {selective_kernels.__version__}",
        **about.to_metadata(),
    }


# ---------------------------------------------------------------------- reading


def load(folder: Path) -> tuple[dict[str, Change], About]:
    """See `SparseDelta.load`."""
    path = folder / FILE if folder.is_dir() else folder
    with Container(path) as container:
        try:
            _check_checksum(container)
            return _read(container), About.from_metadata(container.metadata)
        except DeltaError as error:
            raise DeltaError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _check_checksum(container: Container) -> None:
    """Raises DeltaError unless this is a delta of a known version, every bit as it was written."""
    given = container.metadata
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if given.get(name) != expected:
            raise DeltaError(f"{name}: expected {expected!r}, got {given.get(name)!r}")
    found = list(CHECKSUM.finditer(container.header))
    if len(found) != 1 or found[0][1].decode() != given.get("checksum"):
        raise DeltaError(f"checksum: expected one of 64 hexadecimal digits, got {given.get('checksum')!r}")
    total = hashlib.sha256(len(container.header).to_bytes(8, "little"))
    total.update(container.header[: found[0].start(1)] + NO_CHECKSUM.encode() + container.header[found[0].end(1) :])
    for name in container.tensors:
        for piece in container.chunks(name):
            total.update(piece)
    if total.hexdigest() != given["checksum"]:
        raise DeltaError("checksum: expected that of the file, got another: it was damaged or modified")


def _read(container: Container) -> dict[str, Change]:
    metadata = container.metadata
    if metadata.get("encoding") not in ("indices", "gaps"):
        raise DeltaError(f"encoding: expected 'indices' or 'gaps', got {metadata.get('encoding')!r}")
    described = json_object(metadata.get("tensors", ""), "tensors")
    changes, left = {}, set(container.tensors)
    for name, entry in described.items():
        try:
            changes[name] = _change(container, name, entry, metadata["encoding"], left)
        except DeltaError as error:
            raise DeltaError(f"{name}: {error}") from error
    if left:
        raise DeltaError(f"expected the tensors that the metadata name, got {sorted(left)[0]!r}, too")
    if metadata.get("fingerprint") != fingerprint(changes):
        raise DeltaError("fingerprint: expected that of the digests, got another")
    if metadata.get("scalars") != str(sum(change.scalars for change in changes.values())):
        raise DeltaError(f"scalars: expected their number, got {metadata.get('scalars')!r}")
    return changes


def _change(container: Container, name: str, entry: Any, encoding: str, left: set[str]) -> Change:
    if not isinstance(entry, dict) or entry.keys() != {"shape", "dtype", "entries", "digest", "tied"}:
        raise DeltaError(f"expected an object of shape, dtype, entries, digest and tied, got {str(entry)[:80]}")
    shape, dtype, entries = tuple(_shape(entry["shape"])), entry["dtype"], entry["entries"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DeltaError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if entries is not None and (not isinstance(entries, int) or isinstance(entries, bool) or entries < 1):
        raise DeltaError(f"entries: expected an integer above 0 or null, got {entries!r}")
    if not isinstance(entry["digest"], str):
        raise DeltaError(f"digest: expected text, got {entry['digest']!r}")
    tied = entry["tied"]
    if tied is not None and not (isinstance(tied, list) and all(isinstance(other, str) for other in tied)):
        raise DeltaError(f"tied: expected a list of names or null, got {str(tied)[:80]}")
    code = CODES[DTYPES[dtype]]
    size: tuple[int, ...] = shape if entries is None else (entries,)
    values = _take(container, name if entries is None else f"{name}.values", code, size, left)
    before = f"{name}.original"
    originals = _take(container, before, code, size, left) if before in left else None
    indices = None
    if entries is not None:
        indices = _indices(container, name, entries, shape, encoding, left)
    names = None if tied is None else tuple(tied)
    return Change(shape, DTYPES[dtype], indices, values, originals, entry["digest"], names)


def _shape(given: Any) -> Iterator[int]:
    if not isinstance(given, list) or len(given) > MOST_DIMENSIONS:
        raise DeltaError(f"shape: expected a list of at most {MOST_DIMENSIONS} sizes, got {str(given)[:80]}")
    for size in given:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise DeltaError(f"shape: expected integers in [0, 2^63), got {str(given)[:80]}")
        yield size


def _take(container: Container, key: str, code: str, shape: tuple[int, ...] | None, left: set[str]) -> Tensor:
    """One tensor of the file, which none has taken before; None as shape for any vector."""
    if key not in left:
        raise DeltaError(f"expected a tensor {key!r}, there is none")
    stored: Stored = container.tensors[key]
    if stored.code != code or (stored.shape != shape if shape is not None else len(stored.shape) != 1):
        given = f"{stored.code} {list(stored.shape)}"
        raise DeltaError(f"{key}: expected {code} {'vector' if shape is None else list(shape)}, got {given}")
    left.discard(key)
    return container.read(key)


def _indices(
    container: Container, name: str, entries: int, shape: tuple[int, ...], encoding: str, left: set[str]
) -> Tensor:
    if encoding == "indices":
        return _take(container, f"{name}.indices", "I32", (entries,), left)
    code = _take(container, f"{name}.gaps", "U8", None, left)
    total = 1
    for size in shape:
        total *= size
    try:
        return decode_gaps(code, entries, min(total, 2**31))
    except ValueError as error:
        raise DeltaError(str(error)) from error
