"""Which stored tensor a delta's name means: checkpoints of a bare base model lack its prefix, or have one more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from selective_peft.container import Stored
from selective_peft.errors import DeltaError

IN_MEMORY = "a model whose weights have other names or shapes in memory than on disk is to be patched in memory"


@dataclass(frozen=True)
class Naming:
    """How the model's names and those in the files differ; at most one of both is set.

    Attributes:
        less: a prefix of the model's names that the files lack, such as "bert.".
        more: one of the files' names that the model lacks.
    """

    less: str = ""
    more: str = ""

    def stored(self, name: str) -> str:
        """The name in the files of a tensor of the model."""
        return self.more + name.removeprefix(self.less)

    def model(self, name: str) -> str | None:
        """The name in the model of a stored tensor; None if it is no part of it."""
        return self.less + name.removeprefix(self.more) if name.startswith(self.more) else None


def find_naming(
    needed: Mapping[str, tuple[int, ...]], known: Mapping[str, Stored], where: str, spared: Iterable[str] = ()
) -> Naming:
    """The naming under which all tensors are there, with the right shapes.

    That is no prefix at all if possible, else the only one that does it.

    Args:
        needed: shapes by the model's names.
        known: the stored tensors.
        where: for messages.
        spared: of `needed`, those that need not be there if nothing else helps: tied ones, stored under another name.

    Raises:
        DeltaError: there is none, or several.
    """
    for left_out in (set(), set(spared)):
        names = {name: shape for name, shape in needed.items() if name not in left_out}
        plain = Naming()
        if _fits(plain, names, known):
            return plain
        found = [naming for naming in _namings(names, known) if _fits(naming, names, known)]
        if len(found) == 1:
            return found[0]
        if found:
            prefixes = " and ".join(repr(naming.less or naming.more) for naming in found)
            raise DeltaError(f"{where}: expected names with one prefix more or less than the delta's, got {prefixes}")
    lost = [name for name in needed if name not in known]
    if not lost:
        name = next(name for name, shape in needed.items() if known[name].shape != shape)
        raise DeltaError(f"{name}: expected {list(needed[name])} as in the delta, got {list(known[name].shape)}")
    raise DeltaError(
        f"{where}: expected a tensor {lost[0]!r}, there is none ({len(lost)} are missing), nor do all have the same "
        f"prefix more or less; {IN_MEMORY}"
    )


def _fits(naming: Naming, needed: Mapping[str, tuple[int, ...]], known: Mapping[str, Stored]) -> bool:
    found = (known.get(naming.stored(name)) for name in needed)
    return all(
        stored is not None and stored.shape == shape for stored, shape in zip(found, needed.values(), strict=True)
    )


def _namings(needed: Mapping[str, tuple[int, ...]], known: Mapping[str, Stored]) -> list[Naming]:
    less = {Naming(less=prefix) for name in needed for prefix in prefixes(name)}
    first = next(iter(needed), None)
    ends = [name.removesuffix(first) for name in known if name.endswith(f".{first}")] if first is not None else []
    more = {Naming(more=prefix) for prefix in ends if not is_numbered(prefix)}
    return sorted(less | more, key=lambda naming: (naming.less, naming.more))


def prefixes(name: str) -> Iterator[str]:
    """What a name begins with, up to each dot, without numbers: "a.b." and "a." of "a.b.0.c"."""
    parts = name.split(".")[:-1]
    for i, part in enumerate(parts):
        if part.isdecimal():
            return
        yield ".".join(parts[: i + 1]) + "."


def is_numbered(name: str) -> bool:
    """Whether a name has a number between dots: it is in one of several layers."""
    return any(part.isdecimal() for part in name.split("."))
