"""Which matrices of a delta go into a SHiRA adapter sparse, and which modules it has to store whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from selective_peft.addends import addends, in_two, is_lost
from selective_peft.changes import Change
from selective_peft.errors import DeltaError
from selective_peft.naming import tied_names
from selective_peft.rawbytes import bits

ENTRY = 12  # bytes of an adapter's scalar: float32 value, int32 row and column


@dataclass(frozen=True)
class Entries:
    """The scalars of one matrix.

    Attributes:
        shape: of the matrix: outputs, inputs.
        indices: int32, flat, ascending; only of scalars that really differ, twice for those that take two numbers.
        numbers: float32, what is added to each.
        scalars: how many differ.
    """

    shape: tuple[int, ...]
    indices: Tensor
    numbers: Tensor
    scalars: int

    @property
    def per_rank(self) -> int:
        """Scalars that an adapter has of it for each unit of `r`."""
        return sum(self.shape)

    @property
    def rank(self) -> int:
        """The smallest `r` with room for all."""
        return -(-len(self.indices) // self.per_rank)

    def fits(self, r: int) -> bool:
        """Whether PEFT takes this `r`, and all scalars have room."""
        return self.rank <= r and r * self.per_rank <= self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class ShiraPlan:
    """What an adapter holds.

    Attributes:
        r: one for all matrices, as SHiRA wants it.
        sparse: by module.
        whole: modules stored whole with all that is in them, as `modules_to_save` names them.
        covered: all modules that PEFT takes for one of these, which it does by the ends of names.
        reasons: by module of `whole`, why it is.
    """

    r: int
    sparse: Mapping[str, Entries]
    whole: tuple[str, ...]
    covered: tuple[str, ...]
    reasons: Mapping[str, str]


def plan_shira(changes: Mapping[str, Change], model: nn.Module, *, dense: bool) -> ShiraPlan:
    """Decides it: matrices of linear maps sparse, what else differs whole; `r` such that the file is smallest.

    Args:
        changes: of a delta of this model.
        model: the base, bare.
        dense: modules may be stored whole.

    Raises:
        DeltaError: nothing could be sparse, something can be neither, or has to be whole and may not be.
    """
    reasons, sparse = _sorted_out(changes, model)
    if reasons and not dense:
        name, why = next(iter(reasons.items()))
        raise DeltaError(
            f"delta: expected changes that a SHiRA adapter holds as single scalars, got {name}: {why} ({len(reasons)} "
            f"modules in all); store them whole, or train without them"
        )
    found = [
        plan for r in sorted({each.rank for each in sparse.values()}) if (plan := _with(r, sparse, reasons, model))
    ]
    if not dense:
        found = [plan for plan in found if not plan.whole]
    if not found:
        why = "no r has room for the scalars of all" if sparse else "none is a matrix of a linear map"
        raise DeltaError(f"delta: expected single scalars that a SHiRA adapter can hold, {why}; merge it instead")
    return min(found, key=lambda plan: _nbytes(plan, model))


def _sorted_out(changes: Mapping[str, Change], model: nn.Module) -> tuple[dict[str, str], dict[str, Entries]]:
    modules, ties = dict(model.named_modules(remove_duplicate=False)), tied_names(model)
    state = model.state_dict(keep_vars=True)
    reasons: dict[str, str] = {}
    sparse: dict[str, Entries] = {}
    for name, change in changes.items():
        for each in (name, *ties.get(name, ())):
            owner, _, last = each.rpartition(".")
            if not owner:
                raise DeltaError(f"{each}: expected a tensor of a module within the model, got one of the model itself")
            if each not in state:
                raise DeltaError(
                    f"model: expected no wrapped modules in it, since PEFT has to find {each!r} by its name"
                )
            found = f"{last} is tied" if name in ties else _entries(modules[owner], last, change, state[each])
            if isinstance(found, str):
                reasons.setdefault(owner, found)
            elif found is not None:
                sparse[owner] = found
    return reasons, {name: each for name, each in sparse.items() if name not in reasons}


def _entries(module: nn.Module, last: str, change: Change, base: Tensor) -> Entries | str | None:
    """A matrix's scalars, or why it has none that an adapter can hold; None if nothing differs."""
    if last != "weight" or type(module) is not nn.Linear:  # subclasses may use their weight by other ways
        return f"{last} of {type(module).__name__}"
    if change.indices is None:
        return "changed whole"
    before = base.detach().cpu().contiguous().view(-1)[change.indices.long()]
    other = bits(before) != bits(change.values)
    if not bool(other.any()):
        return None
    after = change.values[other]
    before = before[other]
    numbers, right = addends(before, after)
    lost = int(is_lost(before, after, right).sum())
    if lost:
        return f"{lost} of its new values are -0, which no sum is"
    times, both = in_two(before, after, numbers, right)
    return Entries(change.shape, change.indices[other].repeat_interleave(times), both, len(after))


def _with(r: int, sparse: Mapping[str, Entries], reasons: Mapping[str, str], model: nn.Module) -> ShiraPlan | None:
    """The plan for one `r`; None if nothing is sparse in it."""
    why = dict(reasons) | {name: f"no room with r = {r}" for name, each in sparse.items() if not each.fits(r)}
    whole = outermost(why)
    covered = outermost(
        name for name, _ in model.named_modules(remove_duplicate=False) if any(name.endswith(end) for end in whole)
    )
    left = {name: each for name, each in sparse.items() if not any(within(name, outer) for outer in covered)}
    return ShiraPlan(r, left, whole, covered, {name: why[name] for name in whole}) if left else None


def outermost(names: Iterable[str]) -> tuple[str, ...]:
    """Those names of modules that are in no other one of them, sorted."""
    given = sorted(set(names))
    return tuple(name for name in given if not any(within(name, other) for other in given if other != name))


def within(name: str, module: str) -> bool:
    """Whether a name is that of a module or of something in it."""
    return name == module or name.startswith(f"{module}.")


def _nbytes(plan: ShiraPlan, model: nn.Module) -> int:
    modules = (model.get_submodule(name) for name in plan.covered)
    whole = (tensor for module in modules for tensor in module.state_dict().values())
    dense: int = sum(tensor.numel() * tensor.element_size() for tensor in whole)
    return dense + sum(ENTRY * plan.r * each.per_rank for each in plan.sparse.values())
