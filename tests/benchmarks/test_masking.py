"""The dense rival of the GPU benchmark does what ours does, so that their times compare."""

import subprocess
import sys

import pytest
import torch
from selective_peft import SelectiveAdamW

from benchmarks import ROOT
from benchmarks.masking import DenseMasking, best
from benchmarks.rivals import LR, SCORE, at_step
from benchmarks.shapes import MODELS, copies, random_tensors
from selective_kernels.testing import TOLERANCES

BUDGET, TOTAL = 700, 20


@pytest.fixture
def base():
    return random_tensors(MODELS["tiny"], 0.04, torch.float32, 0)


@pytest.mark.parametrize("done", [2, 10, 17])
def test_masks_and_values_are_those_of_ours(base, done):
    """Over some steps from a point of the run, with other gradients in each; one tensor has none in one of them."""
    dense, sparse = copies(base), copies(base)
    rival, ours = DenseMasking(dense, BUDGET, TOTAL, done), at_step(sparse, BUDGET, TOTAL, done)
    for step in range(3):
        grads = random_tensors(MODELS["tiny"], 1e-3, torch.float32, 1 + step)
        for i, (one, other, grad) in enumerate(zip(dense, sparse, grads, strict=True)):
            one.grad = other.grad = None if (i, step) == (4, 1) else grad
        rival.step()
        ours.step()
        assert all(param.grad is None or param.grad is grad for param, grad in zip(dense, grads, strict=True))
        mask, selected = rival.mask.split([param.numel() for param in dense]), 0
        for one, other, part in zip(dense, sparse, mask, strict=True):
            chosen = ours.selected_indices(other)
            assert torch.equal(part.nonzero().reshape(-1), chosen)
            torch.testing.assert_close(one, other, **TOLERANCES[torch.float32])
            selected += len(chosen)
        assert selected == BUDGET * (done + step) // TOTAL


def test_scores_beyond_a_call_of_topk_are_merged():
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    expected = set(scores.topk(130).indices.tolist())
    for chunk in (1000, 999, 100, 7):
        found = best(scores, 130, chunk).tolist()
        assert len(found) == 130
        assert set(found) == expected


def test_a_rival_and_ours_start_from_the_same_settings(base):
    rival = DenseMasking(copies(base), BUDGET, TOTAL, 2)
    ours = SelectiveAdamW(copies(base), lr=LR, budget=BUDGET, total_steps=TOTAL, score=SCORE)
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert rival.adamw.param_groups[0][name] == ours.param_groups[0][name]


def test_the_read_kernel_reads_every_word():
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        "import torch, numpy as np; from benchmarks import read_kernel as r;"
        "words = torch.randint(-2**31, 2**31 - 1, (3 * r.WORDS,), dtype=torch.int32);"
        "expected = np.bitwise_xor.reduce(words.numpy().reshape(3, -1), axis=1);"
        "assert r.read(words).tolist() == expected.tolist();"
        "words[5 + 2 * r.WORDS] ^= 64; expected[2] ^= 64;"
        "assert r.read(words).tolist() == expected.tolist(); print('read')"
    )
    environment = {"TRITON_INTERPRET": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "read", done.stderr
