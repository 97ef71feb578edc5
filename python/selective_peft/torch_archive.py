"""What `torch.save` writes, read as data: nothing in the file is called, imported or run.

The file is a zip archive of a pickle and of the bytes of tensors. A pickle is a program for a small machine that can
call anything. Here its commands go through a machine that knows those that build lists, dicts and tuples; names of
classes and functions stay text, and only the calls that make a tensor or a `torch.Size`, and one class of the caller's,
are understood, as descriptions. All else is refused.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selective_peft.errors import DeltaError

LARGEST_PROGRAM = 1 << 22  # bytes; reading one takes some 70 times as many
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch BFloat16Storage": torch.bfloat16,
    "torch HalfStorage": torch.float16,
    "torch LongStorage": torch.int64,
}
TENSOR, SIZE, ORDERED = "torch._utils _rebuild_tensor_v2", "torch Size", "collections OrderedDict"


@dataclass(frozen=True)
class Name:
    """A class or function that the file names; it is not looked up."""

    text: str


@dataclass
class Object:
    """An object of the caller's class: its attributes by name."""

    state: dict[Any, Any] | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not read yet: a view of some bytes in the archive.

    Attributes:
        dtype: one of `STORAGES`.
        record: which bytes.
        length: how many scalars these are.
        offset, shape, stride: the view, in scalars.
    """

    dtype: torch.dtype
    record: str
    length: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Scalars of the view."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    record: str
    length: int


class TorchArchive:
    """An open file of `torch.save`; use it in a `with` statement.

    Attributes:
        content: what was saved: numbers, text, lists, tuples, dicts, `StoredTensor` and `Object`.

    Args:
        path: of the file.
        class_name: module and name of the one class of which there may be objects.

    Raises:
        DeltaError: it is no such file, is damaged, or asks for anything else.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, class_name: str) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
            raise DeltaError(f"{path}: expected a file of torch.save, got another ({error})") from error
        try:
            self._records = self._checked_records()
            if self._records.get("byteorder") is not None and self._bytes("byteorder") != b"little":
                raise DeltaError(f"{path}: expected little endian numbers, got others")
            self.content = _run(self._bytes("data.pkl"), class_name, str(path))
        except DeltaError:
            self.close()
            raise

    def __enter__(self) -> TorchArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._zip.close()

    def _checked_records(self) -> dict[str, zipfile.ZipInfo]:
        """By name without the archive's own folder; stored as they are, so that none is larger than the file."""
        found: dict[str, zipfile.ZipInfo] = {}
        size = self.path.stat().st_size
        for info in self._zip.infolist():
            name = info.filename.partition("/")[2]
            plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1 and name not in found
            if not plain or info.file_size > size or not 0 <= info.header_offset < size:
                raise DeltaError(f"{self.path}: expected plain records, each once, got {name[:40]!r} in another way")
            found[name] = info
        if "data.pkl" not in found or found["data.pkl"].file_size > LARGEST_PROGRAM:
            raise DeltaError(f"{self.path}: expected a file of torch.save, it has no data.pkl of a usual size")
        return found

    def _bytes(self, name: str) -> bytes:
        try:
            return self._zip.read(self._records[name])
        except (KeyError, ValueError, EOFError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
            raise DeltaError(f"{self.path}: expected a record {name[:40]!r}, it is missing or damaged") from error

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor, on the CPU, contiguous, in memory of its own.

        Raises:
            DeltaError: it does not lie within its bytes.
        """
        last = stored.offset + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
        fits = stored.numel <= stored.length and (not stored.numel or last < stored.length)
        data = bytearray(self._bytes(f"data/{stored.record}"))
        if not fits or len(data) != stored.length * stored.dtype.itemsize:
            raise DeltaError(f"{self.path}: expected tensors within their bytes, got one that reaches beyond them")
        if not stored.numel:
            return torch.empty(stored.shape, dtype=stored.dtype, device="cpu")
        flat = torch.frombuffer(data, dtype=stored.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).clone(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------------- the machine

CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _run(program: bytes, class_name: str, where: str) -> Any:
    """The value that a pickle describes. Raises DeltaError for all that is not understood."""
    machine = _Machine(class_name)
    try:
        for command, argument, _ in pickletools.genops(program):
            if command.name == "STOP":
                (value,) = machine.stack
                return value
            machine.do(command.name, argument)
        raise ValueError("it has no end")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DeltaError(
            f"{where}: expected plain data and tensors, got a pickle of something else ({error})"
        ) from error


class _Machine:
    """A stack and a memory, as pickle has them.

    Its errors are ValueError, IndexError, KeyError, TypeError and AttributeError; none tells what a value is, which may
    be lists in lists without end.
    """

    def __init__(self, class_name: str) -> None:
        self.stack: list[Any] = []  # since the last mark
        self._below: list[list[Any]] = []  # what lay there at each mark
        self._memory: dict[int, Any] = {}
        self._class = class_name

    def do(self, command: str, argument: Any) -> None:
        """One command."""
        stack = self.stack
        if command == "MARK":
            self._below.append(stack)
            self.stack = []
        elif command in CONSTANTS:
            stack.append(CONSTANTS[command]())
        elif command in LITERALS:
            stack.append(argument)
        elif command in TUPLES:
            count = TUPLES[command]
            stack[-count:] = [tuple(stack[i] for i in range(-count, 0))]
        elif command == "TUPLE":
            taken = tuple(self._since_mark())
            self.stack.append(taken)
        elif command in ("BINPUT", "LONG_BINPUT"):
            self._memory[argument] = stack[-1]
        elif command in ("BINGET", "LONG_BINGET"):
            stack.append(self._memory[argument])
        elif command == "GLOBAL":
            stack.append(Name(argument))
        elif command in ("REDUCE", "NEWOBJ", "BINPERSID"):
            self._call(command)
        elif command in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            self._fill(command)
        elif command != "PROTO":
            raise ValueError(f"the command {command}")

    def _since_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self._below.pop()
        return taken

    def _call(self, command: str) -> None:
        arguments = self.stack.pop()
        if command == "BINPERSID":
            self.stack.append(_storage(*arguments))
            return
        function = self.stack.pop()
        name = function.text if isinstance(function, Name) else "a value"
        if not isinstance(arguments, tuple):
            raise ValueError(f"a call of {name}")
        if command == "NEWOBJ" and name == self._class and not arguments:
            self.stack.append(Object())
        elif command == "REDUCE" and name == TENSOR:
            self.stack.append(_tensor(*arguments))
        elif command == "REDUCE" and name == SIZE:
            self.stack.append(_whole_numbers(*arguments))
        elif command == "REDUCE" and name == ORDERED and not arguments:
            self.stack.append({})
        else:
            raise ValueError(f"a call of {name[:80]!r}")

    def _fill(self, command: str) -> None:
        """Puts what lies on top into what lies below."""
        if command == "BUILD":
            state, target = self.stack.pop(), self.stack[-1]
            if not isinstance(target, Object) or not isinstance(state, dict) or target.state is not None:
                raise ValueError("the state of another object")
            target.state = state
            return
        count = {"APPEND": 1, "SETITEM": 2}.get(command)
        items = self._since_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        target = self.stack[-1]
        if command.startswith("APPEND") and isinstance(target, list):
            target.extend(items)
        elif command.startswith("SETITEM") and isinstance(target, dict) and len(items) % 2 == 0:
            if not all(isinstance(key, str) for key in items[::2]):
                raise ValueError("a key that is no text")
            target.update(zip(items[::2], items[1::2], strict=True))
        else:
            raise ValueError(f"{command} on another value")


def _storage(kind: str, storage: Name, record: str, _device: str, length: int) -> _Storage:
    if kind != "storage" or not isinstance(record, str) or not record.isdecimal():
        raise ValueError("bytes of another kind")
    (checked,) = _whole_numbers((length,))
    return _Storage(STORAGES[storage.text], record, checked)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, _hooks: Any) -> StoredTensor:
    if not isinstance(storage, _Storage) or grad is not False:
        raise ValueError("a tensor of another kind")
    (start,) = _whole_numbers((offset,))
    sizes, steps = _whole_numbers(shape), _whole_numbers(stride)
    if len(sizes) != len(steps) or len(sizes) > 64 or math.prod(max(each, 1) for each in sizes) >= 2**63:
        raise ValueError("a tensor of another kind")
    return StoredTensor(storage.dtype, storage.record, storage.length, start, sizes, steps)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(each) is int and 0 <= each < 2**63 for each in values):
        raise ValueError("a size that is none")
    return values
