"""safetensors files, read and written tensor by tensor, so that memory is bounded by the largest one.

The library checks a file when it is opened (header size, dtypes, shapes, offsets without holes). Its own writer wants
all tensors at once and puts metadata in any order; this one streams, and gives equal content equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selective_peft.errors import DeltaError
from selective_peft.rawbytes import raw

CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.uint8: "U8",
}
DTYPES = {code: dtype for dtype, code in CODES.items()}
CHUNK = 1 << 21  # bytes: such pieces stay in the cache between reading and writing


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        code: its dtype as safetensors writes it, such as "F32".
        shape: its shape.
        begin, end: where its bytes are in the file.
    """

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin


class Container:
    """An open safetensors file; use it in a `with` statement.

    Attributes:
        path: where it is.
        metadata: strings by name.
        tensors: by name, in the order of their bytes.

    Raises:
        DeltaError: it is no safetensors file, or a damaged one.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("rb")
        self._buffer = memoryview(bytearray(CHUNK))
        try:
            with safe_open(path, "pt"):  # every check of the library
                pass
            length = int.from_bytes(self._file.read(8), "little")
            self.header = self._file.read(length)
            described = json_object(self.header.decode(), str(path))
        except (SafetensorError, UnicodeDecodeError) as error:
            self.close()
            raise DeltaError(f"{path}: expected a safetensors file, got a damaged one or another ({error})") from error
        except DeltaError:
            self.close()
            raise
        self.metadata: dict[str, str] = described.pop("__metadata__", None) or {}
        start = 8 + length
        found = {name: _stored(entry, start) for name, entry in described.items()}
        self.tensors = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, in memory of its own.

        Raises:
            DeltaError: its dtype is none of `DTYPES`, its shape fits nowhere, or the file has become shorter.
        """
        stored = self.tensors[name]
        if stored.code not in DTYPES:
            raise DeltaError(f"{self.path}: {name}: expected dtype {', '.join(DTYPES)}, got {stored.code}")
        try:
            tensor = torch.empty(stored.shape, dtype=DTYPES[stored.code], device="cpu")
        except RuntimeError as error:  # say a dimension beyond all bounds beside an empty one
            raise DeltaError(f"{self.path}: {name}: expected a shape that fits in memory, got {error}") from error
        self._fill(raw(tensor), stored.begin, name)
        return tensor

    def chunks(self, name: str) -> Iterator[memoryview]:
        """A tensor's bytes in pieces of at most `CHUNK`; one may be written to, and is gone when the next is read."""
        stored = self.tensors[name]
        for begin in range(stored.begin, stored.end, CHUNK):
            data = self._buffer[: min(CHUNK, stored.end - begin)]
            self._fill(data, begin, name)
            yield data

    def _fill(self, data: memoryview, begin: int, name: str) -> None:
        self._file.seek(begin)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]  # of all binary files
            raise DeltaError(f"{self.path}: {name}: expected {len(data)} more bytes, the file has become shorter")


def _stored(entry: Mapping[str, Any], start: int) -> Stored:
    begin, end = entry["data_offsets"]
    return Stored(entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def json_object(text: str, where: str) -> dict[str, Any]:
    """Strict JSON: an object, each name once, no NaN.

    Raises:
        DeltaError: anything else; the message begins with `where`.
    """
    try:
        found = json.loads(text, object_pairs_hook=_each_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{where}: expected JSON with each name once, got {text[:40]!r} ({error})") from error
    if not isinstance(found, dict):
        raise DeltaError(f"{where}: expected a JSON object, got {text[:40]!r}")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def lay_out(kinds: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, Stored]:
    """Places tensors one after the other.

    Args:
        kinds: by name in the order wanted: dtype code, shape, size in bytes.

    Returns:
        The same with offsets from the first one's.
    """
    found, at = {}, 0
    for name, (code, shape, size) in kinds.items():
        found[name] = Stored(code, shape, at, at + size)
        at += size
    return found


def header_of(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> bytes:
    """What a file begins with; `tensors` as `lay_out` gives them."""
    described: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for name, stored in tensors.items():
        described[name] = {
            "dtype": stored.code,
            "shape": list(stored.shape),
            "data_offsets": [stored.begin, stored.end],
        }
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_container(
    file: BinaryIO,
    tensors: Mapping[str, Stored],
    metadata: Mapping[str, str],
    read: Callable[[str], Iterable[bytes | bytearray | memoryview]],
) -> bytes:
    """Writes a safetensors file; returns its first bytes, up to the first tensor's.

    Args:
        file: an empty one.
        tensors: as `lay_out` gives them.
        metadata: strings by name.
        read: gives a tensor's bytes in pieces; called for each name, in order.
    """
    header = header_of(tensors, metadata)
    file.write(header)
    for name, stored in tensors.items():
        size = sum(file.write(piece) for piece in read(name))
        if size != stored.nbytes:
            raise ValueError(f"{name}: expected {stored.nbytes} bytes, got {size}")
    return header
