"""Scores of the FISH mask: how much the loss, or the model's own prediction, hangs on each scalar."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SAMPLE_TYPES = ("label", "expected")
GRAD_TYPES = {"square": 2, "absolute": 1}  # power of the gradient's size
BLOCK = 1 << 18  # scalars that are added at once, so that no temporary is as large as a parameter
NOT_CLASSES = ("regression", "multi_label_classification")  # problem types of transformers


def fisher_scores(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Tensor]],
    num_samples: int = 1024,
    sample_type: str = "label",
    grad_type: str = "square",
    *,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: the mean over rows of each row's squared gradient.

    Each row goes through the model alone, in evaluation mode. Besides one row's gradients only the result is held.
    Afterwards modes, parameters, their `.grad` and torch's global random numbers are as they were.

    Args:
        model: called as `model(**row)`; gives an object or mapping with the items "loss" or "logits", as the models of
            transformers do.
        dataloader: batches, each a mapping of tensors with a common first dimension. Rows are taken one by one and
            moved to the device of the model's first parameter. How they are batched makes no difference.
        num_samples: at most so many rows.
        sample_type: "label", the gradient of the model's loss on the row's own label; or "expected", the mean over the
            model's own distribution of classes: sum of p(class) times the squared gradient of log p(class), which
            needs no labels but a backward pass per class, and logits of shape (1, classes).
        grad_type: "square", or "absolute" for the mean of the gradients' sizes instead.
        progress: whether to show a progress bar, which needs tqdm.

    Returns:
        Scores by name, of each parameter that requires a gradient: float32, of its shape, on its device; zeros for one
        that no row depends on. A tied parameter counts once, under its first name.

    Raises:
        TypeError: batches or outputs of another form, or a sparse gradient.
        ValueError: an argument out of range, no rows, or nothing to compute gradients of.
        FloatingPointError: a gradient is inf, NaN or too large to be added up in float32.

    Warns:
        UserWarning: there are fewer rows than `num_samples`.

    Source: Sung, Nair, Raffel, "Training Neural Networks with Fixed Sparse Masks" (FISH mask, NeurIPS 2021);
    defaults as in the baselines of the ID3 paper.
    """
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(f"num_samples: expected an integer >= 1, got {num_samples!r}")
    if sample_type not in SAMPLE_TYPES:
        raise ValueError(f"sample_type: expected one of {list(SAMPLE_TYPES)}, got {sample_type!r}")
    if grad_type not in GRAD_TYPES:
        raise ValueError(f"grad_type: expected one of {list(GRAD_TYPES)}, got {grad_type!r}")
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not named:
        raise ValueError("model: expected parameters that require a gradient, got none")
    done = 0
    with _undisturbed(model), torch.enable_grad(), _bar(num_samples, progress) as advance:
        sums = _Sums(named, GRAD_TYPES[grad_type], num_samples)
        for row in _rows(dataloader, num_samples, next(model.parameters()).device):
            sums.add_row(_targets(model(**row), sample_type, model), done)
            done += 1
            advance()
    if not done:
        raise ValueError("dataloader: expected one row or more, got none")
    if done < num_samples:
        warnings.warn(f"dataloader: it gave {done} of the {num_samples} rows of num_samples", stacklevel=2)
    return {name: total.div_(done) for name, total in sums.totals.items()}


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module's own mode and torch's random numbers are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({param.get_device() for param in model.parameters() if param.is_cuda})
    with torch.random.fork_rng(devices):  # a loader draws a seed even if it does not shuffle
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def _bar(rows: int, progress: bool) -> Iterator[Callable[[], object]]:
    """What to call after each row."""
    if not progress:
        yield lambda: None
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=rows, desc="Fisher", unit="row", leave=False) as bar:
        yield bar.update


def _rows(batches: Iterable[Mapping[str, Tensor]], limit: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The first `limit` rows, each a batch of one; no batch is asked for after the last of them.

    Raises:
        TypeError, ValueError: a batch is no mapping of tensors with a common first dimension.
    """
    left = limit
    for batch in batches:
        for row in range(min(left, _length(batch))):
            yield {key: value[row : row + 1].to(device) for key, value in batch.items()}
            left -= 1
        if not left:
            return


def _length(batch: object) -> int:
    wanted = "dataloader: expected batches that are mappings of tensors with a common first dimension"
    if not isinstance(batch, Mapping):
        raise TypeError(f"{wanted}, got {type(batch).__name__}")
    for key, value in batch.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{wanted}, got {type(value).__name__} for {key!r}")
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"{wanted}, got shapes {shapes}")
    return int(lengths.pop()[0])


def _targets(output: object, sample_type: str, model: nn.Module) -> list[tuple[float, Tensor]]:
    """Weights and the scalars to differentiate.

    Raises:
        TypeError, ValueError: the model's output has no loss, or no row of class logits.
    """
    if sample_type == "label":
        loss = _item(output, "loss", "do the rows have labels?")
        if loss.numel() != 1:
            raise ValueError(f"model: expected a loss of one number, got shape {tuple(loss.shape)}")
        return [(1.0, loss.reshape(()))]
    logits = _item(output, "logits", 'sample_type "expected" takes classes')
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if logits.dim() != 2 or logits.shape[0] != 1 or logits.shape[1] < 2 or problem in NOT_CLASSES:
        raise ValueError(
            'sample_type: expected "label" for this model ("expected" takes logits of shape (1, classes) per row, two '
            f"classes or more), got {sample_type!r} and logits of shape {tuple(logits.shape)}"
            + (f" of a model for {problem}" if problem in NOT_CLASSES else "")
        )
    log_p = logits[0].float().log_softmax(dim=0)
    return list(zip(log_p.detach().exp().tolist(), log_p.unbind(), strict=True))


def _item(output: object, name: str, hint: str) -> Tensor:
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"model: expected an output with {name} ({hint}), got {type(output).__name__} with {name} = {value!r:.60}"
        )
    return value


class _Sums:
    """Sums over rows of the gradients' sizes to some power.

    Attributes:
        totals: float32, by name of the parameter.
    """

    def __init__(self, named: Mapping[str, Tensor], power: int, rows: int) -> None:
        self._params = list(named.values())
        self._power = power
        self._largest = (torch.finfo(torch.float32).max / rows) ** (1 / power)  # no sum of so many rows overflows
        self.totals = {name: torch.zeros_like(p, dtype=torch.float32).detach() for name, p in named.items()}

    def add_row(self, targets: Sequence[tuple[float, Tensor]], row: int) -> None:
        """Adds weight * |gradient|^power of each target.

        Raises:
            TypeError, ValueError, FloatingPointError: see `fisher_scores`.
        """
        if not all(target.requires_grad for _, target in targets):
            raise ValueError("model: expected an output that depends on parameters that require a gradient, got none")
        for number, (weight, target) in enumerate(targets, start=1):
            again = number < len(targets)
            grads = torch.autograd.grad(target, self._params, retain_graph=again, allow_unused=True)
            for (name, total), grad in zip(self.totals.items(), grads, strict=True):
                if grad is not None and grad.numel():
                    self._check(grad, name, row)
                    self._add(grad, total, weight)
            del grads, grad  # or they would stand beside the next ones

    def _check(self, grad: Tensor, name: str, row: int) -> None:
        if grad.layout != torch.strided:
            raise TypeError(f"gradient of {name}: expected a dense tensor, got layout {grad.layout}")
        largest = float(torch.linalg.vector_norm(grad, ord=float("inf")))
        if not largest <= self._largest:  # also NaN
            raise FloatingPointError(
                f"gradient of {name}, row {row}: expected finite values of at most {self._largest:.1e}, got {largest}"
            )

    def _add(self, grad: Tensor, total: Tensor, weight: float) -> None:
        for sums, block in zip(_blocks(total), _blocks(grad), strict=True):
            size = block.float().abs() if self._power == 1 else block.float().square()
            sums.add_(size, alpha=weight)


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of about BLOCK scalars each, whatever the strides."""
    if tensor.dim() == 0:
        return (tensor,)
    longest = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
    return torch.split(tensor, max(1, BLOCK * tensor.shape[longest] // tensor.numel()), dim=longest)
