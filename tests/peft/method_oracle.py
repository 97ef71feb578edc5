"""Each method of the paper written for clarity: a key per scalar on top of the dense oracle."""

from fractions import Fraction

import torch
from oracle import Oracle

LARGEST_BITS = 0x7F7FFFFF


class ByMagnitude(Oracle):
    """Smallest |theta| first; a gradient is not needed."""

    def key(self, i, grad):
        bits = self.frozen[i].float().abs().contiguous().view(torch.int32)
        return (LARGEST_BITS - bits).clamp_min(0).view(torch.float32)


class ByProduct(Oracle):
    """Largest |g theta|."""

    def key(self, i, grad):
        theta = self.frozen[i].float()
        return torch.zeros_like(theta) if grad is None else grad.float().abs() * theta.abs()


class ByGiven(Oracle):
    """Scores that the test sets: a list with one tensor per parameter."""

    def __init__(self, *args, scores, **options):
        super().__init__(*args, **options)
        self.scores = scores

    def key(self, i, grad):
        return self.scores[i].float()


class PerTensor(Oracle):
    """D3 within each tensor; shares by Webster's quotients, one seat after the other."""

    def best(self, keys, wanted):
        sizes = [mask.numel() for mask in self.masks]
        shares = webster(min(self.count + wanted, sum(sizes)), sizes)
        chosen = []
        for key, mask, share in zip(keys, self.masks, shares, strict=True):
            chosen.append(super().best([key], max(0, share - int(mask.sum()))))
        return torch.cat(chosen)


def webster(total, sizes):
    """Seats one by one: the highest quotient size / (seats + 1/2) wins, among equals the first."""
    shares = [0] * len(sizes)
    for _ in range(total):
        quotients = [Fraction(2 * size, 2 * share + 1) for size, share in zip(sizes, shares, strict=True)]
        shares[quotients.index(max(quotients))] += 1
    return shares


class Repeat(Oracle):
    """A fresh set in each step; the moments of all scalars see gradients masked to that step's set."""

    def select(self, grads):
        for mask in self.masks:
            mask.zero_()
        return super().select(grads)

    def forget(self, value, mask):
        """Moments go on for all scalars."""

    def visible(self, i):
        return self.values[i].detach()
