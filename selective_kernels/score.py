"""The scores of single scalars, and their plain PyTorch form: what ranks the scalars of a top-k.

Each gives float32 keys, more is better; only finite keys > 0 are selectable (C3). All but D3 with an exponent other
than 0, 1/2, 1 and 2 have the same bits on every backend.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selective_kernels.hostcopy import to_device

FAMILIES = ("d3", "product", "magnitude", "random", "given")  # in the order of csrc/score.h
LARGEST_BITS = 0x7F7FFFFF  # of the largest finite float32
_MASK32, _MASK64 = 2**32 - 1, 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Score(NamedTuple):
    """What ranks the scalars.

    Attributes:
        exponent, eps: of D3; eps is rounded to float32 before use.
        family: "d3", |g| / (|theta| + eps)^exponent (paper Eq. 1); "product", |g theta| (SNIP); "magnitude", smallest
            |theta| first (PaFi); "random", a hash of seed, tensor and offset (R-Mask); "given", the caller's own keys,
            float32, in the place of the gradients.
        seed: of "random", in [0, 2^64).
    """

    exponent: float = 2.0
    eps: float = 1.0
    family: str = "d3"
    seed: int = 0

    @property
    def needs_grad(self) -> bool:
        """Whether a tensor without a gradient (or keys in its place) cannot be scored."""
        return self.family not in ("magnitude", "random")

    @property
    def reads_gradients(self) -> bool:
        """Whether a scan sees this step's gradients: keys of the caller's own in their place do not count."""
        return self.needs_grad and self.family != "given"


def score_ref(grad: Tensor | None, param: Tensor, score: Score, tensor: int = 0) -> Tensor:
    """Scores of all entries of a tensor in float32, each operation correctly rounded.

    Args:
        grad: any shape, float32, bfloat16 or float16; for "given" the keys, float32; None if the score needs none.
        param: same shape.
        score: see `Score`.
        tensor: number of the tensor, for "random".

    Returns:
        float32, same shape. NaN and inf come out where inputs have them; they are not selectable.

    Raises:
        ValueError: the score needs a gradient and there is none.
    """
    if score.family == "random":
        salt = tensor_salt(score.seed, tensor)
        offsets = torch.arange(param.numel(), device=param.device).reshape(param.shape)
        return _random_keys(offsets, salt & _MASK32, salt >> 32)
    if score.family == "magnitude":
        bits = param.detach().float().abs().contiguous().view(torch.int32)
        return (LARGEST_BITS - bits).clamp_min(0).view(torch.float32)
    if grad is None:
        raise ValueError(f"grad: expected a tensor for the score {score.family!r}, got None")
    if score.family == "given":
        return grad.detach()
    magnitude = grad.detach().float().abs()
    if score.family == "product":
        return magnitude * param.detach().float().abs()
    return _d3(magnitude, param, score)


def score_at(
    grads: Tensor | None, values: Tensor, score: Score, owners: Tensor, offsets: Tensor, n_tensors: int
) -> Tensor:
    """`score_ref` of single entries of several tensors, for every family but "given".

    Args:
        grads: float32, shape (n,); None if the score needs none.
        values: float32, shape (n,): parameters.
        score: see `Score`.
        owners: int64, shape (n,): numbers of the entries' tensors, below `n_tensors`.
        offsets: integers, shape (n,): their places there.

    Returns:
        float32, shape (n,), where `values` is; nobody has waited for it.
    """
    if score.family != "random":
        return score_ref(grads, values, score)
    known = [tensor_salt(score.seed, i) for i in range(n_tensors)]
    halves = torch.tensor(
        [[salt & _MASK32 for salt in known], [salt >> 32 for salt in known]], dtype=torch.int64, device="cpu"
    )
    low, high = to_device(halves, values.device)[:, owners]
    return _random_keys(offsets.long(), low, high)


def _d3(magnitude: Tensor, param: Tensor, score: Score) -> Tensor:
    eps = float(torch.tensor(score.eps, dtype=torch.float32, device="cpu"))
    denominator = param.detach().float().abs() + eps
    if score.exponent == 0.0:
        return magnitude
    if score.exponent == 0.5:
        return magnitude / denominator.double().sqrt().float()  # torch's float32 sqrt is off by a bit at times
    if score.exponent == 1.0:
        return magnitude / denominator
    if score.exponent == 2.0:
        return magnitude / (denominator * denominator)
    return magnitude / denominator.double().pow(score.exponent).float()


def _mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _mix32(x: Tensor) -> Tensor:
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        # 32 by 32 bits do not fit int64 with its sign: the factor's halves one by one
        x = x ^ (x >> shift)
        x = (x * (factor & 0xFFFF) + ((x * (factor >> 16) & 0xFFFF) << 16)) & _MASK32
    return x ^ (x >> 15)


def tensor_salt(seed: int, tensor: int) -> int:
    """What makes the random scores of a tensor its own: 64 bits."""
    return _mix64((_mix64((seed + _GOLDEN) & _MASK64) + (tensor + 1) * _GOLDEN) & _MASK64)


def _random_keys(offsets: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Keys of int64 offsets; `low` and `high` are the halves of their tensors' salts."""
    mixed = _mix32((_mix32(offsets ^ low) + high) & _MASK32)
    return ((mixed >> 2) + 0x20000000).to(torch.int32).view(torch.float32)
