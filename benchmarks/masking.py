"""The dense way to ID3, as one writes it in PyTorch: scores of everything, a mask, and torch's AdamW."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.harness import Contender
from benchmarks.rivals import LR, SCORE, GradSets, stepping

CHUNK = 1 << 30  # scores per call of torch.topk, which counts in 32 bits in places


class DenseMasking:
    """AdamW on masked gradients; the mask grows by the best D3 scores over all tensors.

    This is the obvious way: the scores of all tensors in one vector, and products of gradients and masks beside the
    gradients, which are left as they are.

    Args:
        params: parameters.
        budget, total_steps, done: as in `rivals.at_step`; the first step selects what `done` steps would have.
    """

    spoils_gradients = False

    def __init__(self, params: Sequence[Tensor], budget: int, total_steps: int, done: int) -> None:
        self._params = list(params)
        self._ends = [0]
        for param in self._params:
            self._ends.append(self._ends[-1] + param.numel())
        self.mask = torch.zeros(self._ends[-1], dtype=torch.bool, device=self._params[0].device)
        self.adamw = torch.optim.AdamW(self._params, lr=LR, weight_decay=0.0, fused=True)
        self._budget, self._total_steps, self._step = budget, total_steps, done
        self._selected = 0

    @staticmethod
    def nbytes(scalars: int, itemsize: int) -> int:
        """Bytes that a step needs at its peak: mask, moments and masked gradients, and scores in float32."""
        return scalars * (1 + 3 * itemsize + 4)

    @staticmethod
    def moved(scalars: int, itemsize: int) -> int:
        """Bytes that a step reads and writes at least.

        Scores: parameter and gradient read, score written, masked and read again. Mask: read twice. Masked gradient:
        gradient read, product written. AdamW: parameter and moments read and written, gradient read.
        """
        return scalars * (2 * itemsize + 4 * 4 + 2 + 2 * itemsize + 7 * itemsize)

    def state_nbytes(self) -> int:
        """Bytes held between steps: mask and moments."""
        state = [value for each in self.adamw.state.values() for value in each.values() if torch.is_tensor(value)]
        return self.mask.numel() + sum(tensor.numel() * tensor.element_size() for tensor in state)

    @torch.no_grad()
    def step(self) -> None:
        """Unmasks this step's share and updates what is unmasked."""
        wanted = self._budget * self._step // self._total_steps
        if wanted > self._selected:
            self.mask.index_fill_(0, self._best(wanted - self._selected), True)
            self._selected = wanted
        self._step += 1
        self._update()

    def _parts(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each parameter with a gradient: number, parameter, and its part of the mask as a vector."""
        for i, (param, (begin, end)) in enumerate(zip(self._params, pairwise(self._ends), strict=True)):
            if param.grad is not None:
                yield i, param, self.mask[begin:end]

    def _best(self, k: int) -> Tensor:
        """Positions of the k best over all tensors, int64."""
        scores = torch.zeros(self._ends[-1], device=self.mask.device)
        for i, param, _ in self._parts():
            assert param.grad is not None
            write_scores(param.detach().reshape(-1), param.grad.reshape(-1), scores[self._ends[i] : self._ends[i + 1]])
        return best(scores.masked_fill_(self.mask, 0.0), k)

    def _update(self) -> None:
        grads = [param.grad for param in self._params]
        for _, param, mask in self._parts():
            assert param.grad is not None
            param.grad = param.grad * mask.view_as(param)
        self.adamw.step()
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad


def write_scores(theta: Tensor, grad: Tensor, scores: Tensor) -> None:
    """D3 of every scalar into float32 `scores` of the same shape."""
    scores.copy_(theta).abs_().add_(SCORE.eps).pow_(SCORE.exp)
    torch.div(grad.float().abs(), scores, out=scores)


def masking_contender(
    name: str, params: Sequence[Tensor], grads: GradSets, optimizer: DenseMasking, rounds: int | None = None
) -> Contender:
    """The step of dense masking; if it overwrites gradients it gets fresh copies, outside the timing."""
    if not optimizer.spoils_gradients:
        return stepping(name, params, grads, optimizer.step, rounds)
    own = [torch.empty_like(grad) for grad in grads[0]]

    def prepare(number: int) -> None:
        for param, grad, copy in zip(params, grads[number % len(grads)], own, strict=True):
            param.grad = copy.copy_(grad)

    return Contender(name, optimizer.step, prepare, rounds)


def best(scores: Tensor, k: int, chunk: int = CHUNK) -> Tensor:
    """Positions of the k highest scores, int64, in no order; which of equal ones is left to torch.topk."""
    if scores.numel() <= chunk:
        return scores.topk(k, sorted=False).indices
    values, positions = [], []
    for number, part in enumerate(torch.split(scores, chunk)):
        found = part.topk(min(k, part.numel()), sorted=False)
        values.append(found.values)
        positions.append(found.indices + number * chunk)
    return torch.cat(positions)[torch.cat(values).topk(k, sorted=False).indices]
