"""A SHiRA adapter of the PEFT library as a delta of its base."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from selective_peft.about import About, describe_model, public_name
from selective_peft.changes import Change
from selective_peft.container import Container, json_object
from selective_peft.delta import SparseDelta
from selective_peft.errors import DeltaError
from selective_peft.making_deltas import check_has_values, difference, state_of, with_ties
from selective_peft.naming import tied_names, unwrapped
from selective_peft.rawbytes import BITS, digest
from selective_peft.shira_export import CONFIG, PREFIX, WEIGHTS

LARGEST_CONFIG = 1 << 24  # bytes
VALUES, PLACES = ".shira_weight", ".shira_indices"


def import_shira(
    folder: str | Path,
    model: nn.Module,
    *,
    new: Collection[str] = (),
    base_model: str | None = None,
    base_revision: str | None = None,
) -> SparseDelta:
    """The delta that makes of a base what PEFT makes of it by `merge_and_unload`, bit for bit.

    It has the scalars that really differ: places that an adapter has without changing anything there are left out.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        model: the base, as the adapter names its modules, in the precision that it is to be used in; not modified.
        new: names of tensors that the base lacks, and that were drawn for this model (a head).
        base_model, base_revision: what the base is called; without, what the adapter says, or the model.

    Raises:
        DeltaError: it is damaged, no SHiRA adapter, not one of this model, or one that would untie tensors of it.
        OSError: it cannot be read.
    """
    path, bare = Path(folder), unwrapped(model)
    config = adapter_config(path / CONFIG)
    state = state_of(bare)
    changes: dict[str, Change] = {}
    ties = tied_names(bare)
    firsts = {each: name for name, others in ties.items() for each in others}
    digests: dict[str, str] = {}
    with Container(path / WEIGHTS) as container:
        for given, tuned in _tuned(container, bare, state, firsts):
            name, whole = firsts.get(given, given), PREFIX + given in container.tensors
            again, content = name in digests, digest(tuned)
            if digests.setdefault(name, content) != content or (again and not whole):
                raise DeltaError(f"{path}: expected one content for {name}, got two")
            change = None if again else difference(name, None if name in new else state[name], tuned, whole_above=0.5)
            if change is not None:
                changes[name] = change
                if whole:
                    _check_stays_tied(container, (name, *ties.get(name, ())))
    about = describe_model(
        bare,
        base_model if base_model is not None else _text(config, "base_model_name_or_path"),
        base_revision if base_revision is not None else _text(config, "revision"),
    )
    ordered = {name: changes[name] for name in state if name in changes}
    return SparseDelta(with_ties(ordered, bare), About(method="shira", hyperparameters={"r": config.get("r")}, **about))


def _check_stays_tied(container: Container, names: Sequence[str]) -> None:
    """Raises DeltaError unless a changed tensor is there under all its names: PEFT unties it otherwise."""
    lacking = [name for name in names if PREFIX + name not in container.tensors]
    if lacking:
        raise DeltaError(
            f"{container.path}: expected {', '.join(names)}, which the model ties, all with one content, got none for "
            f"{lacking[0]}: PEFT would untie it, which no delta can"
        )


def _text(config: Mapping[str, object], name: str) -> str | None:
    value = config.get(name)
    return public_name(value) if isinstance(value, str) and value else None


def adapter_config(path: Path) -> dict[str, object]:
    """What `adapter_config.json` says. Raises DeltaError unless it is that of a SHiRA adapter."""
    if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
        raise DeltaError(f"{path}: expected the configuration of an adapter of a usual size, found none")
    try:
        found = json_object(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise DeltaError(f"{path}: expected UTF-8 text, got other bytes") from error
    if found.get("peft_type") != "SHIRA":
        raise DeltaError(f"{path}: peft_type: expected 'SHIRA', got {str(found.get('peft_type'))[:40]!r}")
    return found


def _tuned(
    container: Container, model: nn.Module, state: Mapping[str, Tensor], firsts: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors as the adapter makes them, by the names that it has; `firsts`: what others are names of."""
    left = set(container.tensors)
    for key in container.tensors:
        if not key.startswith(PREFIX):
            raise DeltaError(f"{container.path}: expected names that begin with {PREFIX!r}, got {key[:80]!r}")
        if key not in left:
            continue
        name = key.removeprefix(PREFIX)
        module = name.removesuffix(VALUES).removesuffix(PLACES)
        if module == name:
            left.discard(key)
            yield name, _whole(container, key, firsts.get(name, name), state)
            continue
        pair = (f"{PREFIX}{module}{VALUES}", f"{PREFIX}{module}{PLACES}")
        if not left.issuperset(pair):
            raise DeltaError(f"{container.path}: expected {pair[0]!r} and {pair[1]!r}, one of them is missing")
        left -= set(pair)
        name = f"{module}.weight"
        yield name, _merged(container, pair, module, model, state.get(firsts.get(name, name)))


def _whole(container: Container, key: str, name: str, state: Mapping[str, Tensor]) -> Tensor:
    if name not in state:
        raise DeltaError(f"{container.path}: expected tensors of the model, it has no {name!r}")
    stored = container.read(key)
    expected = state[name]
    if stored.shape != expected.shape or stored.dtype not in BITS or expected.dtype not in BITS:
        given = f"{stored.dtype} {list(stored.shape)}"
        raise DeltaError(f"{name}: expected {expected.dtype} {list(expected.shape)}, got {given}")
    return stored.to(expected.dtype)  # as PEFT copies it into the model


def _merged(container: Container, pair: tuple[str, str], name: str, model: nn.Module, weight: Tensor | None) -> Tensor:
    """A linear map's matrix with the adapter's numbers added, by the operation that PEFT uses."""
    module = dict(model.named_modules(remove_duplicate=False)).get(name)
    if not isinstance(module, nn.Linear) or weight is None:
        raise DeltaError(f"{container.path}: expected modules nn.Linear of the model, it has no such {name!r}")
    check_has_values(name, weight)
    if weight.dtype not in BITS:
        raise DeltaError(f"{name}: expected float32, bfloat16 or float16, got {weight.dtype}")
    values, places = (container.read(key) for key in pair)
    if values.dim() != 1 or values.dtype not in BITS or not bool(values.isfinite().all()):
        raise DeltaError(f"{pair[0]}: expected a vector of finite numbers, got others")
    if places.shape != (2, len(values)):
        raise DeltaError(f"{pair[1]}: expected int32 [2, {len(values)}], got {places.dtype} {list(places.shape)}")
    whole = places.to(torch.int32)  # PEFT stores them as float32 on Windows
    limits = torch.tensor([[weight.shape[0]], [weight.shape[1]]], device="cpu")
    if not torch.equal(whole.to(places.dtype), places) or bool(((whole < 0) | (whole >= limits)).any()):
        raise DeltaError(f"{pair[1]}: expected rows and columns of {list(weight.shape)}, got others")
    tuned = weight.detach().cpu().clone(memory_format=torch.contiguous_format)
    tuned += torch.sparse_coo_tensor(whole, values.float(), tuned.shape, check_invariants=True)
    return tuned
