"""The dense rivals do what ours does, so that their times compare."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from selective_peft import SelectiveAdamW

from benchmarks import ROOT, masking_tuned, rivals, step_cases, step_memory
from benchmarks.masking import DenseMasking, best
from benchmarks.masking_tuned import CompiledMasking, InPlaceMasking, best_by_rows
from benchmarks.rivals import LR, SCORE, at_step
from benchmarks.shapes import MODELS, copies, random_tensors
from selective_kernels.testing import TOLERANCES

BUDGET, TOTAL = 700, 20
# Without code of its own the backend "eager" runs what was traced: the same arithmetic, without a compiler's seconds.
WAYS = {"obvious": DenseMasking, "in place": InPlaceMasking, "compiled": partial(CompiledMasking, backend="eager")}


@pytest.fixture
def base():
    return random_tensors(MODELS["tiny"], 0.04, torch.float32, 0)


def compare(way, base, done, dtype=torch.float32, steps=3):
    """Over some steps from a point of the run, with other gradients in each; one tensor has none in one of them."""
    dense, sparse = copies(base), copies(base)
    rival, ours = way(dense, BUDGET, TOTAL, done), at_step(sparse, BUDGET, TOTAL, done)
    for step in range(steps):
        grads = random_tensors(MODELS["tiny"], 1e-3, dtype, 1 + step)
        for i, (one, other, grad) in enumerate(zip(dense, sparse, grads, strict=True)):
            one.grad, other.grad = (None, None) if (i, step) == (4, 1) else (grad.clone(), grad)
        rival.step()
        ours.step()
        mask, selected = rival.mask.split([param.numel() for param in dense]), 0
        for one, other, grad, part in zip(dense, sparse, grads, mask, strict=True):
            chosen = ours.selected_indices(other)
            assert torch.equal(part.nonzero().reshape(-1), chosen)
            torch.testing.assert_close(one, other, **TOLERANCES[dtype])
            left = grad * part.view_as(grad) if rival.spoils_gradients else grad
            assert one.grad is None or torch.equal(one.grad, left)
            selected += len(chosen)
        assert selected == BUDGET * (done + step) // TOTAL


@pytest.mark.parametrize("done", [2, 10, 17])
@pytest.mark.parametrize("way", WAYS)
def test_masks_and_values_are_those_of_ours(base, way, done):
    compare(WAYS[way], base, done)


@pytest.mark.parametrize("way", WAYS)
def test_masks_and_values_are_those_of_ours_in_16_bits(base, way):
    """In a first step: later ones differ, since ours keeps float32 copies of what it trains, and the rivals do not."""
    halves = [param.bfloat16() for param in base]
    grads = random_tensors(MODELS["tiny"], 1e-3, torch.bfloat16, 1)
    scores = torch.cat(
        [(g.float().abs() / (p.float().abs() + 1) ** 2).view(-1) for p, g in zip(halves, grads, strict=True)]
    )
    ordered = scores.sort(descending=True).values
    assert ordered[BUDGET // 2 - 1] > ordered[BUDGET // 2]  # no tie where the selection ends
    compare(WAYS[way], halves, TOTAL // 2, torch.bfloat16, steps=1)


def test_the_default_compiler_gives_what_ours_gives(base):
    try:
        compare(CompiledMasking, base, 10)
    except RuntimeError as error:
        pytest.skip(f"torch.compile has no working compiler here: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("way", WAYS)
def test_state_is_a_mask_and_two_moments(base, way):
    params = copies(base)
    for param in params:
        param.grad = torch.ones_like(param)
    rival = WAYS[way](params, BUDGET, TOTAL, 2)
    rival.step()
    scalars = sum(param.numel() for param in params)
    steps = 4 * len(params) if way != "compiled" else 0  # torch counts steps in a tensor per parameter
    assert rival.state_nbytes() == 9 * scalars + steps


@pytest.mark.parametrize("count", [1, 63, 64, 127, 128, 129, 1000])
@pytest.mark.parametrize("k", [1, 2, 5, 1000])
def test_the_best_of_rows_are_the_best_of_all(monkeypatch, count, k):
    monkeypatch.setattr(masking_tuned, "ROW_PER_K", 8)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(count))
    values, positions = best_by_rows(scores, k, 16)
    assert torch.equal(scores[positions], values)
    assert len(set(positions.tolist())) == len(positions)
    assert set(scores.topk(min(k, count)).indices.tolist()) <= set(positions.tolist())
    if (k, count) == (1, 1000):
        assert len(positions) == 63  # of 62 rows of 16, and of what is left


def test_scores_beyond_a_call_of_topk_are_merged():
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    expected = set(scores.topk(130).indices.tolist())
    for chunk in (1000, 999, 100, 7):
        found = best(scores, 130, chunk).tolist()
        assert len(found) == 130
        assert set(found) == expected


def test_a_rival_and_ours_start_from_the_same_settings(base, monkeypatch):
    taken = []
    monkeypatch.setattr(rivals, "stepping", lambda name, params, grads, step, *more: taken.append(step.__self__))
    for name in (step_cases.FUSED, step_cases.FOREACH):
        step_cases.torch_adamw(name, base, [base])
    rival = DenseMasking(copies(base), BUDGET, TOTAL, 2)
    ours = SelectiveAdamW(copies(base), lr=LR, budget=BUDGET, total_steps=TOTAL, score=SCORE)
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert rival.adamw.param_groups[0][name] == ours.param_groups[0][name]
        for dense in (*taken, step_memory._fused(copies(base), 0)):
            assert dense.param_groups[0][name] == ours.param_groups[0][name]
    assert (ours.defaults["betas"], ours.defaults["eps"]) == (masking_tuned.BETAS, masking_tuned.EPS)


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
