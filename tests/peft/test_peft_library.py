"""On top of the PEFT library: its adapters are trained selectively, the base model keeps every bit."""

import copy

import pytest
import torch
from families import backward, batch, snapshot, tiny
from selective_peft import D3, SelectiveAdamW

from selective_kernels.testing import assert_bitwise_equal

peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")

STEPS = 4
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value", "q_proj", "v_proj"]}
IA3 = {
    "target_modules": ["key", "value", "output.dense", "k_proj", "v_proj", "down_proj"],
    "feedforward_modules": ["output.dense", "down_proj"],
}
# A configuration, the kinds of parameters that it trains, the kind that starts at zero, and those that have no gradient
# as long as that one is zero.
METHODS = {
    "lora": (lambda: peft.LoraConfig(**LORA), {"lora_A", "lora_B"}, "lora_B", {"lora_A"}),
    "dora": (
        lambda: peft.LoraConfig(use_dora=True, **LORA),
        {"lora_A", "lora_B", "lora_magnitude_vector"},
        "lora_B",
        {"lora_A"},
    ),
    "adalora": (
        lambda: peft.AdaLoraConfig(init_r=4, target_r=2, tinit=1, tfinal=1, deltaT=1, total_step=STEPS,
                                   lora_alpha=8, target_modules=LORA["target_modules"]),
        {"lora_A", "lora_B", "lora_E"},
        "lora_E",
        {"lora_A", "lora_B"},
    ),
    "ia3": (lambda: peft.IA3Config(**IA3), {"ia3_l"}, None, set()),
}  # fmt: skip


def adapted(family, method, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = METHODS[method][0]()
        for name, value in options.items():
            setattr(config, name, value)
        return peft.get_peft_model(tiny(family, hidden_dropout_prob=0.0), config)


def kind(name):
    """The ending of METHODS that a parameter belongs to."""
    return next(part for part in name.split(".") if part.startswith(("lora_", "ia3_")))


def trainable(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def selected_mask(optimizer, param):
    mask = torch.zeros(param.numel(), dtype=torch.bool)
    mask[optimizer.selected_indices(param)] = True
    return mask.reshape(param.shape)


def assert_only_selected_changed(model, before, optimizer, tolerated=0):
    """Base weights and unselected entries keep every bit; all selected entries but a few moved."""
    still = 0
    for name, param in model.named_parameters():
        if not param.requires_grad:
            assert_bitwise_equal(param.detach(), before[name], name)
            continue
        mask = selected_mask(optimizer, param)
        assert_bitwise_equal(param.detach()[~mask], before[name][~mask], name)
        still += int((param.detach()[mask] == before[name][mask]).sum())
    assert still <= tolerated


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_selective_training_of_peft_adapters(method, family):
    model = adapted(family, method)
    params = trainable(model)
    assert {kind(name) for name in params} == METHODS[method][1]
    before = snapshot(model)
    optimizer = SelectiveAdamW(
        [(name, param) for name, param in model.named_parameters() if param.requires_grad],
        lr=0.01, weight_decay=0.1, budget=40, total_steps=STEPS,
    )  # fmt: skip
    for step in range(STEPS):
        assert torch.isfinite(backward(model, family, step))
        optimizer.step()
        if method == "adalora":
            model.base_model.update_and_allocate(step)  # takes whole ranks away by zeroing them
        optimizer.zero_grad()
    assert optimizer.selected_per_step().tolist() == [10] * STEPS
    ranks = [param for name, param in params.items() if kind(name) == "lora_E"]
    taken = sum(int((param[selected_mask(optimizer, param)] == 0).sum()) for param in ranks)
    assert (taken > 0) == (method == "adalora")
    assert_only_selected_changed(model, before, optimizer, tolerated=taken)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_zero_matrices_are_selected_through_eps(method, family):
    """Their score is |g| / eps^exp; what gets no gradient while they are zero is not selectable (C3), later it is."""
    _, _, zero, waiting = METHODS[method]
    model = adapted(family, method)
    params = trainable(model)
    zeros = {name for name in params if kind(name) == zero}
    quota = sum(params[name].numel() for name in zeros) // 2
    exp, eps = 2.0, 2**-5  # small, so that zeros come before everything else that has a gradient
    optimizer = SelectiveAdamW(params.items(), lr=0.01, budget=4 * quota, total_steps=4, score=D3(exp, eps))
    backward(model, family)
    assert not any(params[name].any() for name in zeros)
    for name, param in params.items():
        assert bool(param.grad.any()) == (kind(name) not in waiting), name
    scores = {name: (p.grad.abs() / (p.detach().abs() + eps) ** exp).flatten() for name, p in params.items()}
    for name in zeros:
        assert torch.equal(scores[name], (params[name].grad.abs() / eps**exp).flatten())
    best = torch.sort(torch.cat(list(scores.values())), descending=True, stable=True).indices[:quota]
    wanted = torch.zeros(sum(param.numel() for param in params.values()), dtype=torch.bool)
    wanted[best] = True

    optimizer.step()
    masks = {name: selected_mask(optimizer, param) for name, param in params.items()}
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), wanted)
    assert sum(int(masks[name].sum()) for name in zeros) > quota / 2
    assert not any(mask.any() for name, mask in masks.items() if kind(name) in waiting)

    for step in range(1, 4):
        optimizer.zero_grad()
        backward(model, family, step)
        for name, param in params.items():
            if kind(name) in waiting:  # the same layer's zeros have to have moved
                moved = params[name.replace(kind(name), zero)].any()
                assert bool(param.grad.any()) == bool(moved), name
        optimizer.step()
    assert optimizer.selected_per_step().tolist() == [quota] * 4
    assert any(len(optimizer.selected_indices(param)) for name, param in params.items() if kind(name) in waiting)


def test_a_saved_head_is_trained_whole_outside_the_budget():
    model = adapted("bert", "lora", modules_to_save=["classifier"])
    before = snapshot(model)
    params = trainable(model)
    head = {name: param for name, param in params.items() if ".modules_to_save." in name}
    lora = {name: param for name, param in params.items() if name not in head}
    assert sorted(name.rpartition(".")[2] for name in head) == ["bias", "weight"]
    groups = [{"params": lora.items()}, {"params": head.items(), "selective": False}]
    optimizer = SelectiveAdamW(groups, lr=0.01, weight_decay=0.1, budget=0.1, total_steps=2)
    for step in range(2):
        backward(model, "bert", step)
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.num_selected == sum(param.numel() for param in lora.values()) // 10
    for name, param in model.named_parameters():
        if name in head:
            assert bool((param != before[name]).all()), name
        elif name not in lora:
            assert_bitwise_equal(param.detach(), before[name], name)


def test_float32_adapters_on_a_bfloat16_model():
    """PEFT keeps adapters in float32 there; only those are the optimizer's business."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny("llama").to(torch.bfloat16), METHODS["lora"][0]())
    before = snapshot(model)
    params = trainable(model)
    assert {param.dtype for param in params.values()} == {torch.float32}
    optimizer = SelectiveAdamW(params.items(), lr=0.01, weight_decay=0.1, budget=40, total_steps=2)
    for step in range(2):
        backward(model, "llama", step)
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.num_selected == 40
    assert "master" not in optimizer.state_dict()["state"]["selective"]["arrays"]
    assert_only_selected_changed(model, before, optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_selective_run_over_lora_saves_as_an_ordinary_adapter(dtype, tmp_path):
    """PEFT's own files and loading: the same matrices, bit for bit, of which only what was selected differs from the
    drawn ones; and a model that answers the same, merged or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = tiny("llama").to(dtype)
        model = peft.get_peft_model(copy.deepcopy(base), METHODS["lora"][0]())
    drawn = snapshot(model)
    optimizer = SelectiveAdamW(trainable(model).items(), lr=0.01, budget=40, total_steps=STEPS)
    for step in range(STEPS):
        backward(model, "llama", step)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(tmp_path))
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).peft_type == peft.PeftType.LORA
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    params = dict(loaded.named_parameters())
    moved = 0
    for name, param in model.named_parameters():
        assert_bitwise_equal(params[name].detach(), param.detach(), name)
        moved += int((params[name].detach() != drawn[name]).sum())
    assert moved == 40
    inputs = batch("llama")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        assert torch.equal(loaded.eval()(**inputs).logits, expected)
        merged, other = loaded.merge_and_unload(), model.merge_and_unload()
        assert torch.equal(merged(**inputs).logits, other(**inputs).logits)
