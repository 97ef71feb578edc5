"""Deltas on the Hugging Face Hub, through huggingface_hub: it knows tokens, caches, mirrors and HF_HUB_OFFLINE.

It is needed for repositories only, and imported when one is asked for.
"""

from __future__ import annotations

import importlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TypeVar

import selective_kernels
from selective_peft import delta_card
from selective_peft.about import About
from selective_peft.changes import Change
from selective_peft.delta_card import HUB_NAME, LIBRARY
from selective_peft.delta_file import CARD, CONFIG, FILE
from selective_peft.errors import first_line

Delta = TypeVar("Delta", bound="OnHub")
PULL_REQUESTS = "refs/pr/"


@dataclass(frozen=True)
class Pushed:
    """Where a delta is now.

    Attributes:
        repo_id: the repository, with its owner.
        commit: 40 hex digits; as `revision` it gives this very delta, whatever is pushed later.
        url: of the commit, for people.
        pull_request: its address, if one was opened.
    """

    repo_id: str
    commit: str
    url: str
    pull_request: str | None = None


class OnHub(ABC):
    """What can be written as a delta's folder, read again, and so lie in a repository of the Hub."""

    changes: Mapping[str, Change]
    about: About

    @abstractmethod
    def save(self, folder: str | Path, *, compact: bool = False, originals: bool = True) -> None:
        """See `SparseDelta.save`."""

    @classmethod
    @abstractmethod
    def load(cls: type[Delta], folder: str | Path) -> Delta:
        """See `SparseDelta.load`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        subfolder: str = "",
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload sparse delta",
        create_pr: bool = False,
        card: bool = True,
        compact: bool = False,
        originals: bool = True,
        endpoint: str | None = None,
    ) -> Pushed:
        """Puts the delta's files into a repository of the Hugging Face Hub, in one commit; the page is docs/hub.md.

        Args:
            repo_id: "user/name", or "name" for the token's owner; made if it is not there.
            revision: the branch, made if it is not there; without, "main".
            subfolder: where in the repository.
            private: of a new repository.
            token: as huggingface_hub takes it: None for the one that is saved, False for none.
            commit_message, create_pr: of the commit.
            card: write README.md, too; one that is there is replaced.
            compact, originals: as in `save`.
            endpoint: another Hub than HF_ENDPOINT says.

        Raises:
            ValueError: no name of a repository or of a folder in it, or an empty text.
            DeltaError: no file can hold the delta; like the former, before anything is sent.
            ImportError: huggingface_hub is not installed.
            PermissionError: the token may not write there.
            OSError: offline, or the Hub refuses it otherwise; what else huggingface_hub raises without a connection.
        """
        inside = _inside(subfolder)
        _check_some(revision=revision, commit_message=commit_message)
        library = _library("push_to_hub")
        _check_name(library, repo_id, "repo_id")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save(folder, compact=compact, originals=originals)
            api = library.HfApi(
                endpoint=endpoint, token=token, library_name=LIBRARY, library_version=selective_kernels.__version__
            )
            try:
                found = api.create_repo(repo_id, private=private, exist_ok=True)
                name = repo_id if "/" in repo_id else found.repo_id
                if revision is not None and not create_pr and not revision.startswith(PULL_REQUESTS):
                    api.create_branch(name, branch=revision, exist_ok=True)
                text = delta_card.card(self.changes, self.about, name, str(inside or ""))
                (folder / CARD).write_text(text, encoding="utf-8")
                files = [FILE, CONFIG, *([CARD] if card else [])]
                done = api.create_commit(
                    name,
                    [library.CommitOperationAdd(_path(inside, file), str(folder / file)) for file in files],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
            except library.errors.HfHubHTTPError as error:
                if error.response.status_code not in (401, 403):
                    raise
                given = "none" if token is False else "none, or one that may not"
                raise PermissionError(
                    f"token: expected one that may write to {repo_id!r}, got {given} ({first_line(error)})"
                ) from error
        return Pushed(name, done.oid, done.commit_url, done.pr_url)

    @classmethod
    def from_pretrained(
        cls: type[Delta],
        source: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        endpoint: str | None = None,
    ) -> Delta:
        """Reads and checks a delta that is in a repository of the Hub, or on disk. One file is fetched, and cached.

        Args:
            source: a folder or a file as for `load`; if there is none, the repository "user/name".
            revision: branch, tag or commit; without, "main".
            subfolder: where in the repository or folder.
            token, endpoint: as in `push_to_hub`.
            cache_dir: where downloads are kept, instead of huggingface_hub's own cache.

        Raises:
            DeltaError, OSError: as `load`; no such repository, revision or delta, or no connection and not cached.
            ValueError, ImportError: as `push_to_hub`; a revision of something on disk.
        """
        file = _find(
            source, revision=revision, subfolder=subfolder, token=token, cache_dir=cache_dir, endpoint=endpoint
        )
        return cls.load(file)


def _find(
    source: str | Path,
    *,
    revision: str | None,
    subfolder: str,
    token: str | bool | None,
    cache_dir: str | Path | None,
    endpoint: str | None,
) -> Path:
    """The delta's file, downloaded if need be; see `SparseDelta.from_pretrained`."""
    inside = _inside(subfolder)
    _check_some(revision=revision)
    if Path(source).exists():
        if revision is not None:
            raise ValueError(f"revision: expected none for what is on this disk, got {revision!r} for {str(source)!r}")
        return _on_disk(Path(source), inside)
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        raise FileNotFoundError(
            f"source: expected a folder that is there, or a repository such as 'user/name', got {str(source)!r}"
        )
    library = _library("from_pretrained")
    _check_name(library, source, "source")
    errors, file = library.errors, _path(inside, FILE)
    try:
        path = library.hf_hub_download(
            source,
            file,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            endpoint=endpoint,
            library_name=LIBRARY,
            library_version=selective_kernels.__version__,
        )
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"revision: expected a branch, a tag or a commit of {source!r}, got {revision!r}"
        ) from error
    except errors.GatedRepoError as error:
        raise PermissionError(f"token: expected one that may read {source!r}, which is gated, got another") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"source: expected a folder, or a repository that the token may read, got {source!r}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        why = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise FileNotFoundError(
            f"source: expected {file} of {source!r} from the Hub or in the cache, got neither{why}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"source: expected a repository with {file} in it, got {source!r} (revision {revision or 'main'!r}), "
            "which has none"
        ) from error
    return Path(path)


def _on_disk(path: Path, inside: PurePosixPath | None) -> Path:
    if inside is not None:
        path = path / inside
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"source: expected a folder with {FILE} in it, got {str(path)!r}, which has none")
    return file


def _inside(subfolder: str) -> PurePosixPath | None:
    """A folder within a repository; None for the repository itself."""
    path = PurePosixPath(subfolder)
    strange = "\\" in subfolder or not subfolder.isprintable()
    if path.is_absolute() or strange or not {"..", ".git"}.isdisjoint(path.parts):
        raise ValueError(f"subfolder: expected a folder within the repository such as 'delta', got {subfolder!r}")
    return path if path.parts else None


def _check_some(**given: str | None) -> None:
    for argument, text in given.items():
        if text is not None and not text.strip():
            raise ValueError(f"{argument}: expected some text, got {text!r}")


def _path(inside: PurePosixPath | None, file: str) -> str:
    return str(inside / file if inside else file)


def _check_name(library: ModuleType, repo_id: str, argument: str) -> None:
    try:
        library.utils.validate_repo_id(repo_id)
    except library.errors.HFValidationError as error:
        raise ValueError(
            f"{argument}: expected a repository such as 'user/name', got {repo_id!r} ({first_line(error)})"
        ) from error


def _library(needed_by: str) -> ModuleType:
    try:
        library = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
        importlib.import_module("huggingface_hub.utils")
    except ImportError as error:
        raise ImportError(
            f"{needed_by} needs huggingface_hub for what is not on this disk ({first_line(error)}); "
            "pip install 'selective-kernels[hub]'"
        ) from error
    return library
