"""Columns of a recipe's splits, from the Hub or from local files, read by `datasets`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from selective_peft.errors import InputError, first_line
from selective_peft.recipes import Source

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
SAVED = "dataset_dict.json"  # in folders that `save_to_disk` wrote
UNREADABLE = (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, LookupError, RuntimeError)


@dataclass(frozen=True)
class Split:
    """Where the rows of a split are.

    Attributes:
        name: of the split.
        source: of the data.
        folder: of local files; None: from the source itself.
    """

    name: str
    source: Source
    folder: Path | None

    def __str__(self) -> str:
        return f"{self.source if self.folder is None else self.folder}, split {self.name!r}"

    def columns(self, names: Sequence[str]) -> tuple[dict[str, list[Any]], dict[str, list[str] | None]]:
        """The cells of these columns, and the names of the classes of those that are numbers of classes.

        Raises:
            InputError: no such split or column, or nothing that `datasets` can read.
        """
        with tempfile.TemporaryDirectory() as cache:
            table = self._remote() if self.folder is None else self._local(self.folder, cache)
            for column in names:
                if column not in table.column_names:
                    raise InputError(f"{self}: expected a column {column!r}, found {_listed(table.column_names)}")
            cells = {column: list(table[column]) for column in names}
            features = {column: table.features[column] for column in names}
        return cells, {name: getattr(getattr(it, "feature", it), "names", None) for name, it in features.items()}

    def _remote(self) -> Any:
        source = self.source
        try:
            if source.files:
                return datasets.load_dataset(
                    "json", data_files=f"{source.path}/{source.files[self.name]}", split="train"
                )
            return datasets.load_dataset(source.path, source.config, split=self.name, revision=source.revision)
        except UNREADABLE as error:
            raise InputError(
                f"{self}: cannot be loaded ({first_line(error)}); without a network, --data-folder takes a folder with "
                "the files of the splits"
            ) from error

    def _local(self, folder: Path, cache: str) -> Any:
        if not folder.is_dir():
            raise InputError(f"--data-folder {folder}: expected a folder, found none there")
        saved = (folder / SAVED).is_file()
        files = [] if saved else self._files(folder)
        try:
            if saved:
                return self._of(datasets.load_from_disk(str(folder)))
            kind = FORMATS[files[0].suffix]
            more = {"keep_default_na": False} if kind == "csv" else {}
            given = [str(file) for file in files]
            return datasets.load_dataset(kind, data_files=given, split="train", cache_dir=cache, **more)
        except UNREADABLE as error:
            raise InputError(f"{self}: cannot be read ({first_line(error.__cause__ or error)})") from error

    def _of(self, saved: Any) -> Any:
        if self.name not in saved:
            raise InputError(f"{self}: expected it there, found {_listed(saved)}")
        return saved[self.name]

    def _files(self, folder: Path) -> list[Path]:
        """Its files: where the source has it, named after the split, or in parts as on the Hub."""
        original = folder / self.source.files.get(self.name, "")
        if original.is_file():
            return [original]
        for ending in FORMATS:
            for pattern in (f"{self.name}{ending}", f"{self.name}-*{ending}", f"{self.name}/*{ending}"):
                if found := sorted(folder.glob(pattern)):
                    return found
        there = sorted(path.name for path in folder.iterdir() if path.suffix in FORMATS)
        raise InputError(f"{self}: expected {self.name}{', '.join(FORMATS)} there, found {_listed(there)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
