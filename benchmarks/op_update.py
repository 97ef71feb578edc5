"""An AdamW update of the selected scalars, against torch's AdamW of them, of all, and of masked gradients.

Gradients of the selected scalars are gathered before, for ours and for the rival that needs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.gate import Mismatch
from benchmarks.harness import Contender
from benchmarks.op_problem import ALL, NONE, Made, Problem, line_bytes
from benchmarks.shapes import copies
from selective_kernels import AdamGroup, SparseIndex, Table, Update, adam_, gather
from selective_kernels.testing import TOLERANCES

LR, BETAS, EPS = 3e-4, (0.9, 0.999), 1e-8
FUSED, FOREACH, MASKED = "AdamW fused, dense", "AdamW foreach, dense", "AdamW fused, masked gradients"
LISTED = "AdamW fused of the selected, index_copy_"
RIVALS: dict[str, dict[str, bool]] = {
    LISTED: {"listed": True},
    FUSED: {"fused": True},
    FOREACH: {"foreach": True},
    MASKED: {"fused": True, "masked": True},
}
SLOW = (FOREACH,)
ROUNDS = {FOREACH: 3, MASKED: 5}  # they take tens of times longer
MOMENTS_ROUNDED = 0.03  # of a step: what moments in bfloat16 change


class Ours:
    """The selected scalars' moments, and one update of copies of the parameters by gathered gradients."""

    def __init__(self, problem: Problem, backend: str) -> None:
        self.params = [param.clone() for param in problem.params]
        self.index, self.table, self._backend = problem.index, Table(self.params), backend
        self._grads = gather(problem.grads, self.index, backend=backend)
        half = self.params[0].element_size() == 2
        self.master = gather(self.table, self.index, backend=backend) if half else None
        self._exp_avg, self._exp_avg_sq = torch.zeros_like(self._grads), torch.zeros_like(self._grads)
        self.prepare(0)

    def prepare(self, number: int) -> None:
        """The next step is that after `number` others."""
        count = len(self.params)
        self._update = Update(
            self.table, self.index, range(count), self._grads, self.master, [0] * count, [number + 1] * count
        )

    def run(self) -> None:
        """One step."""
        groups = [AdamGroup(LR, *BETAS, EPS)]
        adam_(self._update, self._exp_avg, self._exp_avg_sq, groups, backend=self._backend)


class Dense:
    """torch's AdamW on copies of the parameters; with a mask, on gradients that are multiplied by it in the step."""

    def __init__(self, problem: Problem, *, masked: bool = False, **options: bool) -> None:
        self.params = copies(problem.params)
        self._grads = problem.grads
        self._optimizer = torch.optim.AdamW(self.params, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, **options)
        self._masks = masks(problem.index, problem.params) if masked else None
        for param, grad in zip(self.params, self._grads, strict=True):
            param.grad = grad

    def run(self) -> None:
        """One step."""
        if self._masks is not None:
            for param, grad in zip(self.params, torch._foreach_mul(self._grads, self._masks), strict=True):
                param.grad = grad
        self._optimizer.step()


class Listed:
    """torch's AdamW on a vector of the selected scalars, which then go to their places in one flat tensor of all."""

    def __init__(self, problem: Problem) -> None:
        sizes = [param.numel() for param in problem.params]
        self._flat = torch.cat([param.reshape(-1) for param in problem.params])
        views = zip(torch.split(self._flat, sizes), problem.params, strict=True)
        self.params = [view.view_as(param) for view, param in views]
        self._positions = problem.flat
        self._selected = self._flat.index_select(0, problem.flat).requires_grad_()
        self._selected.grad = torch.cat([grad.reshape(-1) for grad in problem.grads]).index_select(0, problem.flat)
        self._optimizer = torch.optim.AdamW([self._selected], lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def run(self) -> None:
        """One step."""
        self._optimizer.step()
        self._flat.index_copy_(0, self._positions, self._selected.detach())


def rival(problem: Problem, *, listed: bool = False, **options: bool) -> Dense | Listed:
    """One of RIVALS, by its options."""
    return Listed(problem) if listed else Dense(problem, **options)


def made(problem: Problem) -> Made:
    """All of them take the same steps on the selected scalars; some move the others, too.

    torch's AdamW keeps moments in the parameters' type; float16 cannot hold squares of such gradients, so it has no
    rivals here.
    """
    index, ours, item = problem.index, Ours(problem, problem.backend), problem.params[0].element_size()
    # Offset and gradient read, two moments and the master copy of a 16-bit parameter read and written.
    nbytes = 2 * line_bytes(ours.params, index) + (4 + 4 + 2 * 2 * 4 + (2 * 4 if item == 2 else 0)) * index.count
    rivals = {name: options for name, options in RIVALS.items() if problem.rivals == ALL or name not in SLOW}
    if problem.rivals == NONE or problem.params[0].dtype == torch.float16:
        rivals = {}
    others = [
        Contender(name, rival(problem, **options).run, rounds=ROUNDS.get(name)) for name, options in rivals.items()
    ]
    contenders = [Contender("ours", ours.run, ours.prepare), *others]
    return Made(contenders, nbytes, "copy", lambda: check(problem, rivals))


def check(problem: Problem, rivals: Mapping[str, Mapping[str, bool]], steps: int = 2) -> None:
    """Takes some steps with ours, the reference and every rival.

    Raises:
        Mismatch: the selected scalars differ by more than rounding, or ours moved another one.
    """
    ours, reference = Ours(problem, problem.backend), Ours(problem, "reference")
    for each in (ours, reference):
        for number in range(steps):
            each.prepare(number)
            each.run()
    expected = at(ours.params, problem.index)
    tolerance = TOLERANCES[problem.params[0].dtype]
    _close("ours", at(reference.params, problem.index), expected, tolerance["rtol"], tolerance["atol"])
    for mine, before, mask in zip(ours.params, problem.params, masks(problem.index, problem.params), strict=True):
        if not torch.equal(mine[~mask], before[~mask]):
            raise Mismatch("update, ours: scalars changed without being selected")
    slack = 0.0 if problem.params[0].dtype == torch.float32 else MOMENTS_ROUNDED * LR * steps
    for name, options in rivals.items():  # one at a time: each takes a model's moments
        other = rival(problem, **options)
        for _ in range(steps):
            other.run()
        _close(name, at(other.params, problem.index), expected, tolerance["rtol"], tolerance["atol"] + slack)


def at(tensors: Sequence[Tensor], index: SparseIndex) -> Tensor:
    """The values at an index."""
    return gather([tensor.detach() for tensor in tensors], index, backend="reference")


def masks(index: SparseIndex, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of each tensor: whether an entry is selected."""
    found = [torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device) for tensor in tensors]
    for i, mask in enumerate(found):
        mask.view(-1)[index.of(i).long()] = True
    return found


def _close(name: str, actual: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    try:
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise Mismatch(f"update, {name}: {error}") from error
