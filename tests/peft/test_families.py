"""Every method on every model family: two steps, and what is not selected keeps every bit (C7)."""

import pytest
import torch
from families import FAMILIES, backward, batch, snapshot, tiny
from selective_peft import SelectiveAdamW, fisher_scores, methods

from selective_kernels.testing import assert_bitwise_equal

BUDGET = 200  # 2 to 4 % of these models
STEPS = 2
WARMUP = 1
VARIANTS = {"diff": ["diff", "diff-warmup"]}  # given a tuned model, or a warm-up that makes one
UNBUDGETED = ("bitfit", "full")
WITHOUT_BIASES = ("t5", "llama")
METHODS = [name for method in methods() for name in VARIANTS.get(method, [method])]
CASES = [(family, method) for family in FAMILIES for method in METHODS]
CASES = [case for case in CASES if case not in [(family, "bitfit") for family in WITHOUT_BIASES]]


def seeded(model, draw, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {name: draw(param.shape, generator=generator) for name, param in model.named_parameters()}


def arguments(method, family, model):
    """The keyword arguments of a method that it cannot do without."""
    if method in UNBUDGETED:
        return {"method": method, "budget": None}
    budget = {"budget": BUDGET, "total_steps": STEPS}
    if method == "fish":
        scores = fisher_scores(model, [batch(family)], num_samples=2, progress=False)
        return {**budget, "method": "fish", "method_kwargs": {"scores": scores}}
    if method == "diff":
        moves = seeded(model, torch.randn)
        tuned = {name: param.detach() + moves[name] for name, param in model.named_parameters()}
        return {**budget, "method": "diff", "method_kwargs": {"tuned": tuned}}
    if method == "diff-warmup":
        return {**budget, "method": "diff", "total_steps": WARMUP + STEPS, "method_kwargs": {"warmup_steps": WARMUP}}
    return {**budget, "method": method}


def selected(method, optimizer, name, param):
    """Which entries of a parameter the method trains, by its definition or by what the optimizer says."""
    if method in UNBUDGETED:
        return torch.full((param.numel(),), method == "full" or name.endswith("bias"))
    mask = torch.zeros(param.numel(), dtype=torch.bool)
    mask[optimizer.selected_indices(param)] = True
    return mask


@pytest.mark.parametrize(("family", "method"), CASES)
def test_two_steps(family, method):
    model = tiny(family)
    before = snapshot(model)
    optimizer = SelectiveAdamW(model.named_parameters(), lr=0.01, weight_decay=0.1, **arguments(method, family, model))
    params = dict(model.named_parameters())
    trained = {name: torch.zeros(param.numel(), dtype=torch.bool) for name, param in params.items()}
    pushed = {name: mask.clone() for name, mask in trained.items()}  # trained entries that had a gradient
    warmup = WARMUP if method == "diff-warmup" else 0
    for step in range(warmup + STEPS):
        loss = backward(model, family, step)
        assert torch.isfinite(loss)
        optimizer.step()
        for name, param in params.items():
            if step >= warmup:
                mask = selected(method, optimizer, name, param)
                trained[name] |= mask
                if param.grad is not None:
                    pushed[name] |= mask & (param.grad.flatten() != 0)
        optimizer.zero_grad()
    if method not in UNBUDGETED:
        assert optimizer.num_selected == optimizer.budget == BUDGET
        total = sum(int(mask.sum()) for mask in trained.values())
        assert BUDGET <= total <= STEPS * BUDGET if method == "d3-repeat" else total == BUDGET
    still = moved = 0
    for name, param in params.items():
        now, old = param.detach().flatten(), before[name].flatten()
        assert_bitwise_equal(now[~trained[name]], old[~trained[name]], name)
        changed = now[pushed[name]] != old[pushed[name]]
        moved += int(changed.sum())
        still += int((~changed).sum())
    assert still <= 0.01 * moved
    assert moved > 0.6 * sum(int(mask.sum()) for mask in trained.values())


@pytest.mark.parametrize("family", WITHOUT_BIASES)
def test_bitfit_needs_biases(family):
    assert not [name for name, _ in tiny(family).named_parameters() if name.endswith("bias")]
    with pytest.raises(ValueError, match=r"(?s)bias.*(shared|embed_tokens)"):  # what is there instead
        SelectiveAdamW(tiny(family).named_parameters(), lr=0.01, method="bitfit")
