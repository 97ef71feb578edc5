"""Dense masking at its best: no vector of all scores, no second gradient; and the same through torch.compile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from benchmarks.masking import DenseMasking
from benchmarks.rivals import LR, SCORE

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults, which ours has, too
SHORTEST_ROW, ROW_PER_K = 1 << 18, 256  # of `best_by_rows`; about the fastest from k = 60 to 3,000


def best_by_rows(scores: Tensor, k: int, shortest: int = SHORTEST_ROW) -> tuple[Tensor, Tensor]:
    """Values and positions of at least min(k, n) scores, the k highest among them.

    torch.topk of one long vector uses one thread and, on a CPU, writes 16 bytes per score; of rows that fit a cache it
    is several times faster.

    Args:
        scores: a vector of n scores, float32.
        k: how many are wanted.
        shortest: power of two; least length of a row.
    """
    width = max(shortest, 1 << (ROW_PER_K * k - 1).bit_length())
    rows, count = scores.numel() // width, scores.numel()
    if rows < 2:
        found = scores.topk(min(k, count), sorted=False)
        return found.values, found.indices
    body, tail = scores[: rows * width], scores[rows * width :]
    inner, outer = body.view(rows, width).topk(k, sorted=False), tail.topk(min(k, tail.numel()), sorted=False)
    begins = torch.arange(0, rows * width, width, device=scores.device).unsqueeze(1)
    values = torch.cat([inner.values.reshape(-1), outer.values])
    return values, torch.cat([(inner.indices + begins).reshape(-1), outer.indices + rows * width])


class InPlaceMasking(DenseMasking):
    """Scores of one tensor at a time in one buffer, torch.topk of each and of what they give; masks gradients in place.

    The gradients are zero outside of the mask after a step.
    """

    spoils_gradients = True

    def __init__(self, params: Sequence[Tensor], budget: int, total_steps: int, done: int) -> None:
        super().__init__(params, budget, total_steps, done)
        longest = max(param.numel() for param in params)
        self._buffer = torch.empty(longest, dtype=torch.float32, device=self.mask.device)

    @staticmethod
    def nbytes(scalars: int, itemsize: int) -> int:
        """Bytes that a step needs at its peak: mask and moments, and scores in float32 of a tensor, at most of all."""
        return scalars * (1 + 2 * itemsize + 4)

    @staticmethod
    def moved(scalars: int, itemsize: int) -> int:
        """Bytes that a step reads and writes at least, if the scores of a tensor do not stay in a cache.

        Scores: parameter and gradient read, divisor written and three times changed, quotient written, absolute
        values taken, masked, read. Mask: read twice. Gradient: read and written. AdamW as in `DenseMasking`.
        """
        return scalars * (2 * itemsize + 4 * (1 + 6 + 2 + 2 + 2 + 1) + 2 + 2 * itemsize + 7 * itemsize)

    def _best(self, k: int) -> Tensor:
        values, positions = [], []
        for i, param, mask in self._parts():
            assert param.grad is not None
            scores = self._buffer[: param.numel()]
            self._score(param.detach().view(-1), param.grad.reshape(-1), mask, scores)
            found = best_by_rows(scores, k)
            values.append(found[0])
            positions.append(found[1] + self._ends[i])
        return torch.cat(positions)[torch.cat(values).topk(k, sorted=False).indices]

    def _score(self, theta: Tensor, grad: Tensor, mask: Tensor, scores: Tensor) -> None:
        scores.copy_(theta).abs_().add_(SCORE.eps).pow_(SCORE.exp)
        torch.div(grad, scores, out=scores).abs_().masked_fill_(mask, 0.0)

    def _update(self) -> None:
        for _, param, mask in self._parts():
            assert param.grad is not None
            param.grad.mul_(mask.view_as(param))
        self.adamw.step()


def _score(theta: Tensor, grad: Tensor, mask: Tensor, scores: Tensor) -> None:
    divisor = (theta.float().abs() + SCORE.eps) ** SCORE.exp
    scores.copy_(torch.where(mask, 0.0, grad.float().abs() / divisor))


def _adamw(
    theta: Tensor, grad: Tensor, mask: Tensor, first: Tensor, second: Tensor, size: Tensor, correction: Tensor
) -> None:
    """AdamW without decay; `size` is lr / (1 - beta1^t), `correction` is sqrt(1 - beta2^t)."""
    masked = torch.where(mask, grad.float(), 0.0)
    mean = torch.lerp(first.float(), masked, 1 - BETAS[0])
    square = BETAS[1] * second.float() + (1 - BETAS[1]) * masked * masked
    first.copy_(mean)
    second.copy_(square)
    theta.copy_(theta.float() - size * mean / (square.sqrt() / correction + EPS))


@functools.cache
def compiled(backend: str, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    """Scores, and the masked update, of a tensor of any length, each compiled to one pass by that backend."""
    made: list[Any] = []  # what torch.compile returns has no precise type
    for each in (_score, _adamw):
        # The compiler counts compilations by code object; all backends and dtypes together come to its limit.
        own = FunctionType(each.__code__.replace(), each.__globals__, each.__name__)
        made.append(torch.compile(own, dynamic=True, fullgraph=True, backend=backend))
    return made[0], made[1]


def _alone(view: Tensor) -> Tensor:
    """The same memory, but nobody's view: a compiled function is compiled again for another kind of view."""
    return view.data


class CompiledMasking(InPlaceMasking):
    """The same with one compiled pass per tensor for the scores, and one for mask and AdamW together.

    Gradients are left as they are. There is no compiled torch.topk; it runs as it does outside.

    Args:
        params, budget, total_steps, done: as in `DenseMasking`.
        backend: of torch.compile; it may raise a RuntimeError in the first step, say because it finds no compiler.
    """

    spoils_gradients = False

    def __init__(
        self, params: Sequence[Tensor], budget: int, total_steps: int, done: int, backend: str = "inductor"
    ) -> None:
        super().__init__(params, budget, total_steps, done)
        self._score_pass, self._adamw_pass = compiled(backend, params[0].dtype)
        self._taken = [0] * len(self._params)
        self._moments = [(torch.zeros_like(param).view(-1), torch.zeros_like(param).view(-1)) for param in params]

    @staticmethod
    def moved(scalars: int, itemsize: int) -> int:
        """Bytes that a step reads and writes at least.

        Scores: parameter, gradient and mask read, score written and read. Update: parameter, gradient, mask and
        moments read, all but gradient and mask written.
        """
        return scalars * (2 * itemsize + 1 + 8 + 7 * itemsize + 1)

    def state_nbytes(self) -> int:
        """Bytes held between steps: mask and moments."""
        return self.mask.numel() + sum(2 * first.numel() * first.element_size() for first, _ in self._moments)

    def _score(self, theta: Tensor, grad: Tensor, mask: Tensor, scores: Tensor) -> None:
        self._score_pass(theta, grad, _alone(mask), _alone(scores))

    def _update(self) -> None:
        sizes: dict[int, tuple[Tensor, Tensor]] = {}
        for i, param, mask in self._parts():
            assert param.grad is not None
            self._taken[i] += 1
            if self._taken[i] not in sizes:
                sizes[self._taken[i]] = self._sizes(self._taken[i])
            moments, size = self._moments[i], sizes[self._taken[i]]
            flat = param.detach().view(-1), param.grad.reshape(-1), _alone(mask)
            self._adamw_pass(*flat, *moments, *size)

    def _sizes(self, step: int) -> tuple[Tensor, Tensor]:
        """Tensors, since a compiled function would be compiled again for another number."""
        numbers = LR / (1 - BETAS[0] ** step), math.sqrt(1 - BETAS[1] ** step)
        size, correction = (torch.tensor(number, device=self.mask.device) for number in numbers)
        return size, correction
