"""Steps whose outcome nobody has waited for: whether a gradient was inf or NaN is on the device only (C9).

Updates look at a flag there before they write. The host goes on as if the step had been made, and takes its counters
back later, if it was not: at the start of the next step, or when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from selective_kernels.hostcopy import HostCopy
from selective_peft.selection import Selection


class Verdict:
    """Whether this step's gradients are finite, as far as it is known.

    Args:
        grads: the dense groups' gradients.
        device: where the flag is wanted.
        defers: whether the step may go on without knowing.

    Attributes:
        flag: int32, shape (1,), on the device: not zero if a gradient seen so far is inf or NaN. None if every step
            waits for its outcome.
        open: whether the step goes on without knowing.
        starts: of the index before such a step selected; None if it did not.
        threshold: of the selection before it did.
    """

    def __init__(self, grads: Sequence[Tensor], device: torch.device, defers: bool) -> None:
        self.flag = dense_flag(grads, device) if defers else None
        self.open = False
        self.starts: list[int] | None = None
        self.threshold: float | None = None
        self._any_dense = bool(grads)
        self._finite = defers or all(bool(torch.isfinite(grad).all()) for grad in grads)
        self._copy: HostCopy | None = None

    @property
    def dense_flag(self) -> Tensor | None:
        """The flag, if the dense groups' gradients have had a say in it."""
        return self.flag if self._any_dense else None

    @property
    def skip(self) -> Tensor | None:
        """The flag that updates have to look at; None if they need not."""
        return self.flag if self.open else None

    def leave_open(self) -> None:
        """The step goes on without knowing, if it may."""
        self.open = self.flag is not None

    def ask(self) -> None:
        """The step has to know: whether the dense groups' gradients are finite goes to the host while it scans."""
        if self.flag is not None and self._any_dense:
            self._copy = HostCopy(self.flag)

    def dense_finite(self) -> bool:
        """Whether the gradients of the dense groups are finite; waits for them if `ask` was called. True if open."""
        return self._finite if self._copy is None else not int(self._copy.wait())


def dense_flag(grads: Sequence[Tensor], device: torch.device) -> Tensor:
    """int32, shape (1,), on `device`: 1 if a gradient is inf or NaN, else 0. Nobody waits for it."""
    grads = [torch.view_as_real(grad) if grad.is_complex() else grad for grad in grads if grad.numel()]
    if not grads:
        return torch.zeros(1, dtype=torch.int32, device=device)
    largest = get_total_norm(grads, float("inf"))
    return largest.isfinite().logical_not().to(device=device, dtype=torch.int32).reshape(1)


@dataclass
class Pending:
    """A step that may turn out to be skipped.

    Attributes:
        flag: its flag, on the way to the host.
        tensors: numbers of the tensors that had a gradient.
        missed: numbers of those that the step counts as missed for.
        dense: the state of the dense groups' parameters before the step, by parameter; the tensors in it keep their
            values in a skipped step.
        starts, threshold: see `Verdict`.
    """

    flag: HostCopy
    tensors: Sequence[int]
    missed: Sequence[int]
    dense: Mapping[Tensor, dict[str, Any]]
    starts: list[int] | None
    threshold: float | None

    def skipped(self) -> bool:
        """Whether the step was skipped; waits for it."""
        return bool(int(self.flag.wait()))

    def take_back(self, selection: Selection, state: dict[Tensor, Any]) -> None:
        """Makes counters and selection those before the step."""
        selection.step -= 1
        if self.starts is not None:
            selection.take_out(self.starts)
            selection.threshold = self.threshold
        selection.uncount_updates(self.tensors, self.missed)
        for param, before in self.dense.items():
            if before:
                state[param] = before
            else:
                state.pop(param, None)
