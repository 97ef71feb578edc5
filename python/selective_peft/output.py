"""A folder that a command fills: it appears with all its files, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from selective_peft.atomic import sync, umask
from selective_peft.errors import InputError


def check_output(folder: Path, argument: str = "--output") -> None:
    """Raises InputError, which names the argument, unless this is a new or an empty folder that can be written to."""
    if folder.exists() or folder.is_symlink():
        if not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"{argument} {folder}: expected a new or an empty folder, found something there")
        writable = folder
    else:
        writable = folder.parent
    if not writable.is_dir() or not os.access(writable, os.W_OK):
        raise InputError(f"{argument} {folder}: expected a folder that can be written to, {writable} is none")


def check_space(folder: Path, needed: int, argument: str = "--output") -> None:
    """Raises InputError unless the disk of a folder that `check_output` accepts has so many bytes left."""
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < needed:
        raise InputError(f"{argument} {folder}: expected {needed:,} bytes of free disk space, found {free:,}")


class Output:
    """A folder that appears with all its files, or not at all.

    Used in a `with` statement: files that were written before an error are gone after it. If the process is killed, a
    hidden folder beside it may be left over. A folder that exists already is kept, and its files appear one by one,
    unless something else has put files of their names there meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exists = folder.exists()  # it may be a mount, which cannot be replaced
        self._staging: Path | None = None
        self._moved: list[Path] = []

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._staging is not None and kind is not None:
            for path in [self._staging, *self._moved]:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def write(self, name: str, write: Callable[[Path], None]) -> Path:
        """Writes a file or a folder under another folder's name; returns where it lies until `publish`.

        The name may have folders before it, such as "a/b.json"; they are made.
        """
        path = self._stage() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        return path

    def fill(self, write: Callable[[Path], None]) -> None:
        """Lets something write its files into the folder in which they lie until `publish`."""
        write(self._stage())

    def _stage(self) -> Path:
        if self._staging is None:
            where = self.folder if self._exists else self.folder.parent
            self._staging = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=where))
        return self._staging

    def publish(self) -> None:
        """Gives the folder its name, with all that was written, once all of it is on the disk.

        Raises:
            InputError: the folder existed, and has got a file of a name that was written.
        """
        assert self._staging is not None
        allowed = ~umask()
        for each in self._staging.rglob("*"):
            each.chmod((0o777 if each.is_dir() else 0o666) & allowed)
            sync(each)
        if self._exists:
            paths = list(self._staging.iterdir())
            for path in paths:
                if os.path.lexists(self.folder / path.name):  # it was empty when this began
                    raise InputError(f"{self.folder / path.name}: expected nothing of this name, found another run's")
            for path in paths:
                path.rename(self.folder / path.name)
                self._moved.append(self.folder / path.name)
            self._staging.rmdir()
            sync(self.folder)
        else:
            self._staging.chmod(0o777 & allowed)
            sync(self._staging)
            self._staging.rename(self.folder)
            sync(self.folder.parent)
        self._staging = None
