"""The only checks of kernel arguments. Each message names the argument, what was expected and what was given."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from selective_kernels.index import SparseIndex
from selective_kernels.score import FAMILIES, Score

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST_NORMAL = 2.0**-126
LARGEST = torch.finfo(torch.float32).max
MAX_NUMEL = 2**31


def check_param(param: Tensor, name: str) -> None:
    """Refuses a tensor that the kernels cannot address: only dense, contiguous float32, bfloat16 or float16.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: sparse, not contiguous, or 2^31 entries or more.
    """
    if not isinstance(param, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(param).__name__}")
    if param.dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype float32, bfloat16 or float16, got {param.dtype}")
    if param.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense (strided) tensor, got layout {param.layout}")
    if param.numel() >= MAX_NUMEL:
        raise ValueError(f"{name}: expected fewer than 2^31 entries (offsets are int32), got {param.numel()}")
    if not param.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous tensor, got shape {tuple(param.shape)} with strides {param.stride()}; "
            "replace its data by .contiguous()"
        )


def check_grad_form(grad: Tensor, param: Tensor, name: str) -> None:
    """Checks that a gradient is of its parameter's kind.

    Raises:
        TypeError: another dtype than the parameter's (torch allows that through `grad_dtype`).
        ValueError: sparse, on another device, or of another shape.
    """
    if grad.dtype is not param.dtype:
        raise TypeError(f"{name}: expected a gradient of dtype {param.dtype} as its parameter, got {grad.dtype}")
    if grad.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense (strided) gradient, got layout {grad.layout}")
    if grad.shape != param.shape:
        raise ValueError(f"{name}: expected a gradient of shape {tuple(param.shape)}, got {tuple(grad.shape)}")
    if grad.device != param.device:
        raise ValueError(f"{name}: expected a gradient on {param.device}, got {grad.device}")


def check_grad(grad: Tensor, param: Tensor, name: str) -> Tensor:
    """Returns the gradient, copied if it is not contiguous; for the errors see `check_grad_form`."""
    check_grad_form(grad, param, name)
    return grad if grad.is_contiguous() else grad.contiguous()


def check_score(score: Score) -> None:
    """Refuses an exponent or eps whose power is not a normal float32 (C2), an unknown family, and a seed out of range.

    Raises:
        ValueError: exp not finite; eps not positive; eps or eps^exp outside the normal float32 range; family not one of
            `score.FAMILIES`; seed not in [0, 2^64).
    """
    if score.family not in FAMILIES:
        raise ValueError(f"family: expected one of {list(FAMILIES)}, got {score.family!r}")
    if not 0 <= score.seed < 2**64:
        raise ValueError(f"seed: expected an integer in [0, 2^64), got {score.seed}")
    exponent, eps = float(score.exponent), float(score.eps)
    if not abs(exponent) < float("inf"):
        raise ValueError(f"exp: expected a finite number, got {score.exponent}")
    if not eps > 0.0:
        raise ValueError(f"eps: expected a number > 0, got {score.eps}")
    if not SMALLEST_NORMAL <= eps <= LARGEST:
        raise ValueError(f"eps: expected a normal float32 (2^-126 or more), got {score.eps}")
    try:
        power = float(torch.tensor(eps, dtype=torch.float32, device="cpu")) ** exponent
    except OverflowError:
        power = float("inf")
    if not SMALLEST_NORMAL <= power <= LARGEST:
        raise ValueError(f"eps: expected eps^exp to be a normal float32, got {score.eps}^{score.exponent} = {power}")


def check_numbers(tensors: Sequence[int], n_tensors: int) -> None:
    """Raises ValueError unless `tensors` are ascending distinct numbers of tensors."""
    numbers = list(tensors)
    if numbers == list(range(n_tensors)):  # all of them, as in almost every step
        return
    if numbers != sorted(set(numbers)) or (numbers and (numbers[0] < 0 or numbers[-1] >= n_tensors)):
        raise ValueError(f"tensors: expected ascending distinct numbers below {n_tensors}, got {numbers}")


def check_added_once(tensors: Sequence[int], added: Collection[int]) -> None:
    """Raises ValueError if a scan has read one of the tensors before: it would be selected from twice."""
    twice = sorted(number for number in tensors if number in added)
    if twice:
        raise ValueError(f"tensors: expected each tensor once per scan, got {twice} again")


def check_k(k: int | Sequence[int], n_tensors: int) -> None:
    """Raises ValueError for a negative k, or a list of them that does not have one for each tensor."""
    if not isinstance(k, Sequence):
        if k < 0:
            raise ValueError(f"k: expected an integer >= 0, got {k}")
    elif len(k) != n_tensors or any(each < 0 for each in k):
        raise ValueError(f"k: expected {n_tensors} integers >= 0, one per tensor, got {list(k)}")


def check_sources(score: Score, grads: Sequence[Tensor] | None, grads_out: Tensor | None) -> None:
    """Checks that a scan is given what its score reads.

    Raises:
        ValueError: no gradients for a score that needs them, or gradients to gather where none are read.
    """
    if grads is None and score.needs_grad:
        raise ValueError(f"grads: expected gradients for a score of family {score.family!r}, got None")
    if grads is not None and not score.needs_grad:
        raise ValueError(f"grads: expected None for a score of family {score.family!r}, which reads none")
    if grads_out is not None and (grads is None or score.family == "given"):
        raise ValueError(
            f"grads_out: expected None for a score of family {score.family!r}, whose scan sees no gradient"
        )


def check_gathers(score: Score) -> None:
    """Raises ValueError if a scan by this score has read no gradients."""
    if not score.needs_grad or score.family == "given":
        raise ValueError(f"gather: expected a scan that reads gradients, got one by a score of family {score.family!r}")


def check_keys(keys: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """The caller's own scores of some tensors, contiguous.

    Raises:
        TypeError: not float32.
        ValueError: another number, shape, layout or device.
    """
    if len(keys) != len(params):
        raise ValueError(f"grads: expected {len(params)} tensors of scores, got {len(keys)}")
    for key, param in zip(keys, params, strict=True):
        if key.dtype is not torch.float32:
            raise TypeError(f"grads: expected scores of dtype float32, got {key.dtype}")
        if key.layout is not torch.strided or key.shape != param.shape or key.device != param.device:
            raise ValueError(
                f"grads: expected dense scores of shape {tuple(param.shape)} on {param.device}, got "
                f"{tuple(key.shape)} on {key.device}"
            )
    return [key.contiguous() for key in keys]


def check_index(index: SparseIndex, numels: list[int], device: torch.device) -> None:
    """Checks an index against the sizes of its tensors, in O(number of tensors), unless it passed for them before.

    Raises:
        ValueError: another device or number of tensors, or an offset past the end of its tensor.
    """
    if index.offsets.device != device:
        raise ValueError(f"index: expected offsets on {device} as the tensors, got {index.offsets.device}")
    if index.checked_for is numels:
        return
    if index.n_tensors != len(numels):
        raise ValueError(f"index: expected an index over {len(numels)} tensors, got one over {index.n_tensors}")
    if len(index.offsets) < index.count or index.offsets.dtype != torch.int32:
        raise ValueError(
            f"index: expected {index.count} int32 offsets, got {len(index.offsets)} of {index.offsets.dtype}"
        )
    starts = torch.tensor(index.starts, device="cpu")
    if bool((starts.diff() < 0).any()) or index.starts[0] != 0:
        raise ValueError(f"index: expected ascending starts from 0, got {index.starts}")
    used = starts.diff() > 0
    valid = index.valid.cpu()
    first, last = valid[starts[:-1][used]], valid[starts[1:][used] - 1]
    sizes = torch.tensor(numels, dtype=torch.int64, device="cpu")[used]
    outside = ((first < 0) | (last >= sizes)).nonzero().reshape(-1)
    if len(outside):
        bad = int(outside[0])
        raise ValueError(
            f"index: expected offsets in [0, {int(sizes[bad])}), got {int(first[bad])} to {int(last[bad])} for tensor "
            f"{int(used.nonzero()[bad])}"
        )
    index.checked_for = numels


def check_entries(array: Tensor, dtype: torch.dtype | None, count: int, device: torch.device, name: str) -> None:
    """Checks a per-entry array: contiguous, of 4-byte items, at least `count` long.

    Raises:
        TypeError: another dtype.
        ValueError: too short, not contiguous, or on another device.
    """
    if dtype is not None and array.dtype is not dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {array.dtype}")
    if array.element_size() != 4:
        raise TypeError(f"{name}: expected 4-byte items, got {array.dtype}")
    if array.dim() != 1 or len(array) < count or not array.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous vector of {count} items or more, got shape {tuple(array.shape)}"
        )
    if array.device != device:
        raise ValueError(f"{name}: expected a vector on {device}, got one on {array.device}")


def check_host_vector(vector: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A vector that is read from or goes into a file, contiguous.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: another number of dimensions, not dense, or not on the CPU.
    """
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(vector).__name__}")
    if vector.dtype is not dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {vector.dtype}")
    if vector.layout is not torch.strided or vector.dim() != 1:
        raise ValueError(f"{name}: expected a dense vector, got {vector.layout} of shape {tuple(vector.shape)}")
    if not vector.is_cpu:
        raise ValueError(f"{name}: expected a vector on the CPU, where files are read, got one on {vector.device}")
    return vector.contiguous()
