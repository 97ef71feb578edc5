"""Single scalars of a list of tensors by flat position: read, write, exchange, and merging of index lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selective_kernels import dispatch
from selective_kernels.checks import check_entries, check_index
from selective_kernels.index import SparseIndex
from selective_kernels.prelude import Insertion
from selective_kernels.ranges import ranged
from selective_kernels.table import Table, as_table

MergeArrays = Sequence[tuple[Tensor, Tensor | None]]
INT_OF_SIZE = {2: torch.int16, 4: torch.int32}


def gather(
    tensors: Sequence[Tensor] | Table, index: SparseIndex, *, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """The values at `index`, widened to float32, shape (count,); written to the front of `out` if it is given."""
    table = as_table(tensors)
    check_index(index, table.numels, table.device)
    out = torch.empty(index.count, dtype=torch.float32, device=index.offsets.device) if out is None else out
    check_entries(out, torch.float32, index.count, table.device, "out")
    dispatch.serving("gather", table, backend)(table, index, out=out)
    return out[: index.count]


def gather_bits(tensors: Sequence[Tensor] | Table, index: SparseIndex, *, backend: str = "auto") -> Tensor:
    """The raw bits at `index`, zero-extended to int32, shape (count,)."""
    table = as_table(tensors)
    check_index(index, table.numels, table.device)
    bits: Tensor = dispatch.serving("gather_bits", table, backend)(table, index)
    return bits


@ranged("gather")
def gather_grads(
    table: Table,
    index: SparseIndex,
    tensors: Sequence[int],
    grads: Sequence[Tensor],
    out: Tensor,
    *,
    flag: Tensor | None = None,
    backend: str = "auto",
) -> bool:
    """Gathers the gradients of the tensors numbered `tensors` at `index` into `out` (float32, at their places).

    Args:
        table, index, tensors: all tensors, the entries, and which tensors have gradients.
        grads: their gradients.
        out: float32, shape (index.count,) or longer.
        flag: int32, shape (1,), on the tensors' device: set to 1 if a gathered gradient is inf or NaN, else left as it
            is. Nobody waits for it.
        backend: "auto" or a backend's name.

    Returns:
        Whether all of them are finite; True if that goes into `flag`.
    """
    check_index(index, table.numels, table.device)
    check_entries(out, torch.float32, index.count, table.device, "out")
    checked = table.check_grads(tensors, grads)
    if flag is not None:
        check_entries(flag, torch.int32, 1, table.device, "flag")
    finite = dispatch.serving("gather_grads", table, backend)(table, index, tensors, checked, out, flag)
    return bool(finite)


def scatter_(tensors: Sequence[Tensor] | Table, index: SparseIndex, values: Tensor, *, backend: str = "auto") -> None:
    """Writes float32 values, shape (count,), to the positions of `index`, rounded to nearest even."""
    table = as_table(tensors)
    check_index(index, table.numels, table.device)
    check_entries(values, torch.float32, index.count, table.device, "values")
    dispatch.serving("scatter_", table, backend)(table, index, values)


def swap_(tensors: Sequence[Tensor] | Table, index: SparseIndex, bits: Tensor, *, backend: str = "auto") -> None:
    """Exchanges raw bits with the tensors: `bits` (int32, shape (count,)) receives what stood at `index`.

    Doing it twice restores both, bit for bit.
    """
    table = as_table(tensors)
    check_index(index, table.numels, table.device)
    check_entries(bits, torch.int32, index.count, table.device, "bits")
    dispatch.serving("swap_", table, backend)(table, index, bits)


@ranged("merge")
def merge_(index: SparseIndex, new: SparseIndex, arrays: MergeArrays, *, backend: str = "auto") -> None:
    """Inserts the entries of `new` into `index` and their values into per-entry arrays, all in place.

    Args:
        index: has room for `new.count` more offsets; has no entry in common with `new`.
        new: an index over the same tensors.
        arrays: pairs (array, values of the new entries or None for zeros); arrays of 4-byte items that are ordered
            like `index` and have room.

    Raises:
        ValueError, TypeError: no room, or arrays of another size or device.
    """
    check_merge(index, new, arrays)
    dispatch.implementation("merge_", index.offsets.device, backend)(index, new, arrays)
    if new.checked_for is not index.checked_for:
        index.checked_for = None


def check_merge(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> None:
    """Raises what `merge_` says."""
    total, device = index.count + new.count, index.offsets.device
    if new.n_tensors != index.n_tensors:
        raise ValueError(f"new: expected an index over {index.n_tensors} tensors, got one over {new.n_tensors}")
    check_entries(index.offsets, torch.int32, total, device, "index.offsets")
    check_entries(new.offsets, torch.int32, new.count, device, "new.offsets")
    for i, (data, fresh) in enumerate(arrays):
        check_entries(data, None, total, device, f"arrays[{i}][0]")
        if fresh is not None:
            check_entries(fresh, data.dtype, new.count, device, f"arrays[{i}][1]")


def begin_insertion(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> Insertion:
    """The first half of `merge_`, on the host: the index counts the new entries from now on.

    The other half is `insert`, or an update that does it before; until then nobody may read offsets or arrays.

    Raises:
        ValueError, TypeError: see `merge_`.
    """
    check_merge(index, new, arrays)
    insertion = Insertion(index, list(index.starts), new, arrays)
    index.starts[:] = [a + b for a, b in zip(index.starts, new.starts, strict=True)]
    if new.checked_for is not index.checked_for:
        index.checked_for = None
    return insertion


@ranged("merge")
def insert(insertion: Insertion, *, backend: str = "auto") -> None:
    """The second half of `merge_`."""
    index, starts, new, arrays = insertion
    before = SparseIndex(index.offsets, starts)
    dispatch.implementation("merge_", index.offsets.device, backend)(before, new, arrays)


def _each(tensors: Sequence[Tensor] | Table, index: SparseIndex) -> list[tuple[Tensor, Tensor, slice]]:
    """Per tensor with entries: (flat view, int64 positions, slice of the per-entry arrays)."""
    params = as_table(tensors).params
    starts = index.starts
    return [
        (param.detach().view(-1), index.of(i).long().to(param.device), slice(starts[i], starts[i + 1]))
        for i, param in enumerate(params)
        if starts[i] < starts[i + 1]
    ]


def gather_ref(tensors: Sequence[Tensor] | Table, index: SparseIndex, *, out: Tensor | None = None) -> Tensor:
    """`gather` in plain PyTorch."""
    out = torch.empty(index.count, device=index.offsets.device, dtype=torch.float32) if out is None else out
    for flat, positions, entries in _each(tensors, index):
        out[entries] = flat[positions].float().to(out.device)
    return out[: index.count]


def gather_bits_ref(tensors: Sequence[Tensor] | Table, index: SparseIndex) -> Tensor:
    """`gather_bits` in plain PyTorch."""
    out = torch.empty(index.count, dtype=torch.int32, device=index.offsets.device)
    for flat, positions, entries in _each(tensors, index):
        size = flat.element_size()
        bits = flat.view(INT_OF_SIZE[size])[positions].int()
        out[entries] = (bits & 0xFFFF if size == 2 else bits).to(out.device)
    return out


def gather_grads_ref(
    table: Table,
    index: SparseIndex,
    tensors: Sequence[int],
    grads: Sequence[Tensor],
    out: Tensor,
    flag: Tensor | None = None,
) -> bool:
    """`gather_grads` in plain PyTorch."""
    finite = True
    for i, grad in zip(tensors, grads, strict=True):
        entries = slice(index.starts[i], index.starts[i + 1])
        out[entries] = grad.reshape(-1)[index.of(i).long().to(grad.device)].float().to(out.device)
        finite &= bool(out[entries].isfinite().all())
    return finite if flag is None else raised(flag, finite)


def raised(flag: Tensor, finite: bool) -> bool:
    """Puts what a gather has seen into its flag; True, as for every gather with a flag."""
    if not finite:
        flag.fill_(1)
    return True


def scatter_ref_(tensors: Sequence[Tensor] | Table, index: SparseIndex, values: Tensor) -> None:
    """`scatter_` in plain PyTorch."""
    for flat, positions, entries in _each(tensors, index):
        flat[positions] = values[entries].to(flat.device).to(flat.dtype)


def swap_ref_(tensors: Sequence[Tensor] | Table, index: SparseIndex, bits: Tensor) -> None:
    """`swap_` in plain PyTorch."""
    before = gather_bits_ref(tensors, index)
    for flat, positions, entries in _each(tensors, index):
        as_int = INT_OF_SIZE[flat.element_size()]
        flat.view(as_int)[positions] = bits[entries].to(flat.device).to(as_int)
    bits[: index.count] = before


def merge_ref_(index: SparseIndex, new: SparseIndex, arrays: MergeArrays) -> None:
    """`merge_` in plain PyTorch."""
    total = index.count + new.count
    owners = torch.cat([index.tensor_ids(), new.tensor_ids()]).to(index.offsets.device)
    offsets = torch.cat([index.valid, new.valid])
    order = torch.argsort((owners << 32) + offsets)
    index.offsets[:total] = offsets[order]
    for data, fresh in arrays:
        added = torch.zeros(new.count, dtype=data.dtype, device=data.device) if fresh is None else fresh[: new.count]
        data[:total] = torch.cat([data[: index.count], added])[order]
    index.starts[:] = [a + b for a, b in zip(index.starts, new.starts, strict=True)]
