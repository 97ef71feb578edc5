"""Dense masking at its best: scores that stay in the cache, no second gradient; and the same through torch.compile."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from benchmarks.masking import DenseMasking
from benchmarks.rivals import LR, SCORE

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults, which ours has, too
LIKELY = 1 << 20  # scalars of a tensor, for the compiler
SHORTEST_ROW, ROW_PER_K = 1 << 18, 256  # of `best_by_rows`; about the fastest from k = 60 to 3,000


def row_length(k: int, shortest: int = SHORTEST_ROW) -> int:
    """Of the rows from which torch.topk takes k each."""
    return max(shortest, 1 << (ROW_PER_K * k - 1).bit_length())


def best_by_rows(scores: Tensor, k: int, shortest: int = SHORTEST_ROW) -> tuple[Tensor, Tensor]:
    """Values and positions of at least min(k, n) scores, the k highest among them.

    torch.topk of one long vector uses one thread and, on a CPU, writes 16 bytes per score; of rows that fit a cache it
    is several times faster.

    Args:
        scores: a vector of n scores, float32.
        k: how many are wanted.
        shortest: power of two; least length of a row.
    """
    width = row_length(k, shortest)
    rows, count = scores.numel() // width, scores.numel()
    if rows < 2:
        found = scores.topk(min(k, count), sorted=False)
        return found.values, found.indices
    body, tail = scores[: rows * width], scores[rows * width :]
    inner, outer = body.view(rows, width).topk(k, sorted=False), tail.topk(min(k, tail.numel()), sorted=False)
    begins = torch.arange(0, rows * width, width, device=scores.device).unsqueeze(1)
    values = torch.cat([inner.values.reshape(-1), outer.values])
    return values, torch.cat([(inner.indices + begins).reshape(-1), outer.indices + rows * width])


def score_in_place(theta: Tensor, grad: Tensor, mask: Tensor, scores: Tensor) -> None:
    """D3 of what is not masked into float32 `scores`, 0 elsewhere; all of them vectors."""
    scores.copy_(theta).abs_().add_(SCORE.eps).pow_(SCORE.exp)
    torch.div(grad, scores, out=scores).abs_().masked_fill_(mask, 0.0)


class Pieces:
    """The best of a model's scores from pieces that fit the CPU's caches: each is scored, then gives its own best.

    Args:
        score: as `score_in_place`.
        device: on a GPU a piece is a whole tensor.
    """

    def __init__(self, score: Callable[[Tensor, Tensor, Tensor, Tensor], None], device: torch.device) -> None:
        self._score, self._device = score, device
        self._buffer = torch.empty(0, dtype=torch.float32, device=device)

    def best(self, parts: Iterable[tuple[int, Tensor, Tensor, Tensor]], k: int) -> Tensor:
        """Positions of the k best, int64, in no order.

        Args:
            parts: of each tensor the position of its first scalar, parameters, gradients and mask, as vectors.
            k: how many.
        """
        values, positions = [], []
        for first, theta, grad, mask in parts:
            length = torch.get_num_threads() * row_length(k) if self._device.type == "cpu" else theta.numel()
            for begin in range(0, theta.numel(), length):
                end = min(begin + length, theta.numel())
                count = end - begin
                if self._buffer.numel() < count:
                    self._buffer = torch.empty(count, dtype=torch.float32, device=self._device)
                scores = self._buffer[:count]
                self._score(theta[begin:end], grad[begin:end], mask[begin:end], scores)
                found = best_by_rows(scores, k)
                values.append(found[0])
                positions.append(found[1] + (first + begin))
        return torch.cat(positions)[torch.cat(values).topk(k, sorted=False).indices]


class InPlaceMasking(DenseMasking):
    """Scores in pieces, torch.topk of each and of what they give; masks gradients in place.

    The gradients are zero outside of the mask after a step.
    """

    spoils_gradients = True

    def __init__(self, params: Sequence[Tensor], budget: int, total_steps: int, done: int) -> None:
        super().__init__(params, budget, total_steps, done)
        self._pieces = Pieces(self._score, self.mask.device)

    @staticmethod
    def nbytes(scalars: int, itemsize: int) -> int:
        """Bytes that a step needs at its peak: mask and moments, and scores in float32 of a tensor, at most of all."""
        return scalars * (1 + 2 * itemsize + 4)

    @staticmethod
    def moved(scalars: int, itemsize: int) -> int:
        """Bytes that a step reads and writes at least, scores left in a cache.

        Scores: parameter, gradient and mask read. Masking: mask read, gradient read and written. AdamW as in
        `DenseMasking`.
        """
        return scalars * (2 * itemsize + 1 + 1 + 2 * itemsize + 7 * itemsize)

    def _best(self, k: int) -> Tensor:
        def parts() -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
            for i, param, mask in self._parts():
                assert param.grad is not None
                yield self._ends[i], param.detach().view(-1), param.grad.reshape(-1), mask

        return self._pieces.best(parts(), k)

    def _score(self, theta: Tensor, grad: Tensor, mask: Tensor, scores: Tensor) -> None:
        score_in_place(theta, grad, mask, scores)

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
def compiled(
    backend: str, dtype: torch.dtype, device: torch.device, threads: int
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Scores, and the masked update, of a tensor of any length, each compiled to one pass by that backend.

    The first call says how long tensors are likely to be: from a short one the compiler makes code for one thread.
    """
    made: list[Any] = []  # what torch.compile returns has no precise type
    for each in (_score, _adamw):
        # The compiler counts compilations by code object; all backends and dtypes together come to its limit.
        own = FunctionType(each.__code__.replace(), each.__globals__, each.__name__)
        made.append(torch.compile(own, dynamic=True, fullgraph=True, backend=backend))
    theta, grad, first, second = (torch.ones(LIKELY, dtype=dtype, device=device) for _ in range(4))
    mask = torch.zeros(LIKELY, dtype=torch.bool, device=device)
    scores, ones = torch.empty(LIKELY, device=device), [torch.ones((), device=device) for _ in range(2)]
    made[0](theta, grad, mask, scores)
    made[1](theta, grad, mask, first, second, *ones)
    return made[0], made[1]


def _alone(view: Tensor) -> Tensor:
    """The same memory, but nobody's view: a compiled function is compiled again for another kind of view."""
    return view.data


class CompiledMasking(InPlaceMasking):
    """The same with one compiled pass per tensor for the scores, and one for mask and AdamW together.

    Gradients are left as they are. There is no compiled torch.topk; it runs as it does outside.

    Args:
        params, budget, total_steps, done: as in `DenseMasking`.
        backend: of torch.compile; it may raise a RuntimeError here, say because it finds no compiler.
    """

    spoils_gradients = False

    def __init__(
        self, params: Sequence[Tensor], budget: int, total_steps: int, done: int, backend: str = "inductor"
    ) -> None:
        super().__init__(params, budget, total_steps, done)
        self._score_pass, self._adamw_pass = compiled(
            backend, params[0].dtype, self.mask.device, torch.get_num_threads()
        )
        self._taken = [0] * len(self._params)
        self._moments = [(torch.zeros_like(param).view(-1), torch.zeros_like(param).view(-1)) for param in params]

    @staticmethod
    def moved(scalars: int, itemsize: int) -> int:
        """Bytes that a step reads and writes at least, scores left in a cache.

        Scores: parameter, gradient and mask read. Update: parameter, gradient, mask and moments read, all but gradient
        and mask written.
        """
        return scalars * (2 * itemsize + 1 + 7 * itemsize + 1)

    def state_nbytes(self) -> int:
        """Bytes held between steps: mask and moments."""
        return self.mask.numel() + sum(2 * first.numel() * first.element_size() for first, _ in self._moments)

    def _score(self, theta: Tensor, grad: Tensor, mask: Tensor, scores: Tensor) -> None:
        self._score_pass(*map(_alone, (theta, grad, mask, scores)))

    def _update(self) -> None:
        sizes: dict[int, tuple[Tensor, Tensor]] = {}
        for i, param, mask in self._parts():
            assert param.grad is not None
            self._taken[i] += 1
            if self._taken[i] not in sizes:
                sizes[self._taken[i]] = self._sizes(self._taken[i])
            moments, size = self._moments[i], sizes[self._taken[i]]
            flat = map(_alone, (param.detach().view(-1), param.grad.reshape(-1), mask))
            self._adamw_pass(*flat, *moments, *size)

    def _sizes(self, step: int) -> tuple[Tensor, Tensor]:
        """Tensors, since a compiled function would be compiled again for another number."""
        numbers = LR / (1 - BETAS[0] ** step), math.sqrt(1 - BETAS[1] ** step)
        size, correction = (torch.tensor(number, device=self.mask.device) for number in numbers)
        return size, correction
