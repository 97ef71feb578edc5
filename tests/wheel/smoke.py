"""Smoke suite of an installed wheel, without a test framework: `python -I tests/wheel/smoke.py`.

Each instruction set that the machine has gives the reference's selection and, over steps of training, its parameters;
frozen scalars keep every bit; a run that is resumed ends bit-equal. Prints one line per check.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from selective_peft import SelectiveAdamW

import selective_kernels
from selective_kernels import Score, _native, topk, topk_ref
from selective_kernels.testing import assert_bitwise_equal, isa_paths, use_isa

BUDGET, STEPS = 500, 6
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tensors(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Odd sizes, so that full vectors, rests and tensors below one vector all occur."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for size in (20_011, 1, 7, 4096, 0, 300)]


def run(
    dtype: torch.dtype, first: int = 0, last: int = STEPS, resume: dict | None = None, backend: str = "auto"
) -> tuple[list[torch.Tensor], SelectiveAdamW]:
    """Steps `first` to `last` of one training run; `resume` holds its parameters and its optimizer's state."""
    params = [torch.nn.Parameter(t.clone()) for t in (resume["params"] if resume else tensors(dtype, 0))]
    optimizer = SelectiveAdamW(params, lr=1e-2, weight_decay=0.1, budget=BUDGET, total_steps=STEPS, backend=backend)
    if resume:
        optimizer.load_state_dict(resume["optimizer"])
    for step in range(first, last):
        for param, grad in zip(params, tensors(dtype, 100 + step), strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params], optimizer


def check_selection(dtype: torch.dtype) -> None:
    """The reference's scalars, for each exponent with a path of its own."""
    params, grads = tensors(dtype, 1), tensors(dtype, 2)
    for exponent in (0.0, 0.5, 1.0, 2.0, 3.0):
        mine = topk(params, grads, BUDGET, Score(exponent, 0.5), backend="cpu")
        theirs = topk_ref(params, grads, BUDGET, Score(exponent, 0.5))
        assert mine.starts == theirs.starts
        assert torch.equal(mine.valid, theirs.valid)


def check_training(dtype: torch.dtype) -> None:
    """The reference's parameters to rounding, and frozen scalars as they were."""
    params, optimizer = run(dtype, backend="cpu")
    expected, _ = run(dtype, backend="reference")
    assert optimizer.num_selected == BUDGET
    handles = optimizer.param_groups[0]["params"]
    for before, after, other, handle in zip(tensors(dtype, 0), params, expected, handles, strict=True):
        torch.testing.assert_close(after, other, rtol=1e-2 if dtype != torch.float32 else 2e-5, atol=1e-6)
        frozen = torch.ones(before.numel(), dtype=torch.bool)
        frozen[optimizer.selected_indices(handle)] = False
        assert_bitwise_equal(after[frozen], before[frozen])


def check_resume(dtype: torch.dtype) -> None:
    """Bit for bit the run without a break."""
    half, optimizer = run(dtype, last=STEPS // 2)
    resumed, _ = run(dtype, first=STEPS // 2, resume={"params": half, "optimizer": optimizer.state_dict()})
    for mine, whole in zip(resumed, run(dtype)[0], strict=True):
        assert_bitwise_equal(mine, whole)


def openmp_libraries() -> set[str]:
    """Files of GNU OpenMP in this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {line.split()[-1] for line in lines if "libgomp" in line}


def main() -> int:
    """Exit code 0, or an exception."""
    installed = Path(selective_kernels.__file__).resolve().parent
    assert Path(sys.prefix).resolve() in installed.parents, f"imported from {installed}"
    print(f"selective_kernels {selective_kernels.__version__} in {installed}, torch {torch.__version__}")
    for isa in isa_paths():
        with use_isa(isa):
            assert _native.cpu().isa() == isa
            for dtype in DTYPES:
                for check in (check_selection, check_training, check_resume):
                    check(dtype)
        print(f"ok: {isa}")
    if sys.platform == "linux":
        found = openmp_libraries()
        assert len(found) == 1, f"one OpenMP runtime expected, found {sorted(found)}"
        print(f"ok: one OpenMP runtime, {found.pop()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
