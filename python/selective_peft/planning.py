"""Which stored tensors a delta changes, and whether they are those that it was made for; nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from selective_peft.changes import Change
from selective_peft.checkpoint_files import Checkpoint, Reader, modern
from selective_peft.container import CODES, Stored
from selective_peft.errors import DeltaError
from selective_peft.patching import already_applied, not_applied, not_the_base, not_undone
from selective_peft.stored_names import IN_MEMORY, Naming, find_naming, is_numbered
from selective_peft.streaming import Meter, digest_of, is_constant, undone

Changes = Mapping[str, Change]


@dataclass(frozen=True)
class Plan:
    """What becomes of a checkpoint's tensors.

    Attributes:
        naming: how its names and the model's differ.
        edits: by stored name, the delta's name of the change; tied tensors that are stored twice are in it twice.
        added: likewise, under the names that they get.
        removed: stored names.
    """

    naming: Naming
    edits: Mapping[str, str]
    added: Mapping[str, str]
    removed: frozenset[str]


@dataclass
class Planner:
    """Finds the stored tensors of a delta's names.

    Attributes:
        checkpoint: what is to be changed.
        changes: of the delta.
        reader: of the checkpoint.
        undo: the checkpoint has the changes, which are to be undone.
        config: of the changed model, if it is known.
    """

    checkpoint: Checkpoint
    changes: Changes
    reader: Reader
    undo: bool
    config: Mapping[str, Any] | None
    naming: Naming = field(default_factory=Naming)
    edits: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._where = str(self.checkpoint.folder)
        self._digests: dict[str, str] = {}
        self.stored = self.checkpoint.tensors
        self._keys: dict[str, str] = {}  # stored names by those that transformers knows
        for key in self.stored:
            if modern(key) in self._keys:
                raise DeltaError(
                    f"{self._where}: expected {modern(key)} once, got it as {self._keys[modern(key)]}, too"
                )
            self._keys[modern(key)] = key

    def plan(self) -> Plan:
        """The plan.

        Raises:
            DeltaError: a name has no stored tensor, or one of another shape or dtype; or originals were not kept.
        """
        self.naming = self._find_naming()
        missing = []
        for name, change in self.changes.items():
            if self.undo and change.originals is None and change.digest:
                raise DeltaError(f"delta: expected the base's values of {name}, they were not kept")
            key = self._keys.get(self.naming.stored(name))
            if key is None:
                missing.append(name)
            elif key in self.edits:
                raise DeltaError(f"{name}: expected a tensor of its own, got that of {self.edits[key]}: {key!r}")
            else:
                self._check_fits(name, change, self.stored[key])
                self.edits[key] = name
        for name in missing:
            self._settle_missing(name, self.changes[name])
        for key, name in list(self.edits.items()):  # transformers unties those of which only one is changed
            self.edits |= dict.fromkeys(self._tied(name, self.changes[name], key), name)
        edits = {key: self.edits[key] for key in self.stored if key in self.edits}  # as they are read best
        removed = frozenset(key for key, name in edits.items() if self.undo and not self.changes[name].digest)
        return Plan(self.naming, edits, self.added, removed)

    def _find_naming(self) -> Naming:
        known = {name: self.stored[key] for name, key in self._keys.items()}
        all_shapes = {name: change.shape for name, change in self.changes.items()}
        spared = [name for name in all_shapes if not is_numbered(name)]
        if self.undo:
            return find_naming(all_shapes, known, self._where, spared)
        certain = {name: shape for name, shape in all_shapes.items() if not self.changes[name].is_whole}
        if certain:
            return find_naming(certain, known, self._where, spared)
        try:  # whole tensors only: some of the base, or a head that it lacks
            return find_naming(all_shapes, known, self._where)
        except DeltaError:
            return Naming()

    def _check_fits(self, name: str, change: Change, stored: Stored) -> None:
        if stored.shape != change.shape or stored.code != CODES[change.dtype]:
            wanted = f"{CODES[change.dtype]} {list(change.shape)}"
            hint = "; load the base in the dtype that it is stored in, or store it in this one"
            raise DeltaError(
                f"{name}: expected {wanted} as in the delta, got {stored.code} {list(stored.shape)}"
                f"{hint if stored.shape == change.shape else ''}"
            )

    def _settle_missing(self, name: str, change: Change) -> None:
        """A tensor under another name, because it is tied, or a new one."""
        copies = self._tied(name, change, None)
        if copies:
            self.edits |= dict.fromkeys(copies, name)
        elif self.undo or not change.is_whole or self._belongs_to_a_layer(name, change):
            raise DeltaError(f"{self._where}: expected a tensor {name!r}, there is none; {IN_MEMORY}")
        else:
            if change.digest:
                self._check_no_other_name(name, change)
            self.added[self.naming.stored(name)] = name

    def _belongs_to_a_layer(self, name: str, change: Change) -> bool:
        """Whether the base had it, in a layer that is stored: then it is there in another form."""
        parts = self.naming.stored(name).split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is None or not change.digest:
            return False
        layer = ".".join(parts[: at + 1]) + "."
        return any(known.startswith(layer) for known in self._keys)

    def _check_no_other_name(self, name: str, change: Change) -> None:
        for key in self._alike(change):
            if self._holds(key, change):
                raise DeltaError(f"{self._where}: expected a tensor {name!r}, got the same one as {key!r}; {IN_MEMORY}")

    def _alike(self, change: Change) -> Iterator[str]:
        """Stored tensors of the same shape and dtype that no change is for."""
        for key, stored in self.stored.items():
            if key not in self.edits and stored.shape == change.shape and stored.code == CODES[change.dtype]:
                yield key

    def _tied(self, name: str, change: Change, key: str | None) -> list[str]:
        """Other stored tensors that are the same one, because the model ties them.

        The delta names them, if it comes from a model. If it does not, they are embeddings and heads, in no layer, with
        the same content.

        Args:
            name, change: of the delta.
            key: of the tensor itself; None if it is stored under other names only.
        """
        if change.tied is not None:
            named = self._under_other_names(name, change, change.tied)
            if named or key is not None:
                return named
        ties = self._ties()
        if is_numbered(name) or ties is False:
            return []
        others = [other for other in self._alike(change) if not is_numbered(other)]
        if key is None:
            return [other for other in others if self._holds(other, change)]
        same = [other for other in others if self._digest(other) == self._digest(key)]
        if not same or self._is_constant(key):
            return []
        if ties is None:
            raise DeltaError(
                f"{self._where}: expected a config.json with tie_word_embeddings, true or false, got none: {key!r} and "
                f"{same[0]!r} are equal, and may be one tensor or two"
            )
        return same

    def _under_other_names(self, name: str, change: Change, others: Iterable[str]) -> list[str]:
        """The stored tensors of the names that the model ties to this one."""
        keys = [self._keys.get(self.naming.stored(other)) for other in others]
        found = [key for key in keys if key is not None and key not in self.edits]
        for key in found:
            self._check_fits(name, change, self.stored[key])
        return found

    def _ties(self) -> bool | None:
        """Whether the model ties tensors; None if no configuration is known."""
        for config in (self.config, self.checkpoint.config):
            if config is not None:
                text = config.get("text_config")
                inner = text.get("tie_word_embeddings", True) if isinstance(text, Mapping) else True
                return bool(config.get("tie_word_embeddings", inner))
        return None

    def _holds(self, key: str, change: Change) -> bool:
        """Whether a stored tensor is the one that is to be changed, and not by chance."""
        if self.undo:
            same, without = undone(self.reader.pieces(key), change)
            found = same and without == change.digest
        else:
            found = bool(change.digest) and self._digest(key) == change.digest
        return found and not self._is_constant(key)

    def _digest(self, key: str) -> str:
        if key not in self._digests:
            self._digests[key] = digest_of(self.reader.pieces(key))
        return self._digests[key]

    def _is_constant(self, key: str) -> bool:
        """Whether all its scalars are equal: such tensors are alike by chance."""
        stored = self.stored[key]
        return not stored.nbytes or is_constant(self.reader.pieces(key), stored.nbytes // math.prod(stored.shape))


def check_contents(plan: Plan, changes: Changes, reader: Reader, undo: bool, meter: Meter) -> None:
    """Reads each tensor that is to be changed.

    Raises:
        DeltaError: one is not what the delta was made for.
    """
    for key, name in plan.edits.items():
        change = changes[name]
        pieces = meter.counting(reader.pieces(key), f"checking {name}")
        if undo:
            same, without = undone(pieces, change)
            if not same:
                raise not_applied(name)
            if not change.is_whole and without != change.digest:
                raise not_undone(name)
        elif not change.is_whole and digest_of(pieces) != change.digest:
            raise already_applied(name) if undone(reader.pieces(key), change)[0] else not_the_base(name)
