"""Models that are no plain transformers for text: fused experts, pictures, sound, state spaces, pairs of encoders."""

import copy

import pytest
import torch
from deltatests import assert_same_model
from families import snapshot, transformers
from selective_peft import SelectiveAdamW, SparseDelta

from selective_kernels.testing import assert_bitwise_equal

BUDGET, STEPS = 200, 3
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
SPEECH = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 60, "num_mel_bins": 8, "max_source_positions": 12,
    "max_target_positions": 12, "decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PICTURE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def tokens():
    return torch.randint(3, 60, (3, 7))


def pictures():
    return torch.randn(3, 3, 16, 16)


def mixtral():
    config = transformers.MixtralConfig(
        **TEXT, intermediate_size=24, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM(config), lambda: dict.fromkeys(("input_ids", "labels"), tokens())


def vit():
    config = transformers.ViTConfig(**PICTURE, image_size=16, patch_size=8, num_labels=3)
    model = transformers.ViTForImageClassification(config)
    return model, lambda: {"pixel_values": pictures(), "labels": torch.randint(3, (3,))}


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # its running statistics change without the optimizer
    return model, lambda: {"pixel_values": pictures(), "labels": torch.randint(3, (3,))}


def whisper():
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SPEECH))
    return model, lambda: {"input_features": torch.randn(3, 8, 24), "labels": tokens()}


def mamba():
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=60, state_size=4)
    return transformers.MambaForCausalLM(config), lambda: dict.fromkeys(("input_ids", "labels"), tokens())


def clip():
    config = transformers.CLIPConfig(
        text_config={**TEXT, "intermediate_size": 24, "projection_dim": 8, "max_position_embeddings": 12},
        vision_config={**PICTURE, "image_size": 16, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config)
    return model, lambda: {"input_ids": tokens(), "pixel_values": pictures(), "return_loss": True}


@pytest.mark.parametrize("make", [mixtral, vit, resnet, whisper, mamba, clip])
def test_a_budget_is_spent_and_the_rest_keeps_every_bit(make):
    """And a delta makes the tuned model of the base, and takes it back."""
    torch.manual_seed(0)
    model, batch = make()
    base = copy.deepcopy(model)
    optimizer = SelectiveAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.1, budget=BUDGET, total_steps=STEPS)
    before = snapshot(model)
    for _ in range(STEPS):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.num_selected == BUDGET
    moved = 0
    for name, param in model.named_parameters():
        frozen = torch.ones(param.numel(), dtype=torch.bool)
        frozen[optimizer.selected_indices(param)] = False
        old, new = before[name].flatten(), param.detach().flatten()
        assert_bitwise_equal(new[frozen], old[frozen], name)
        moved += int((new != old).sum())
    assert moved > 0.9 * BUDGET
    delta = SparseDelta.from_optimizer(optimizer, model)
    tuned, other = copy.deepcopy(model), copy.deepcopy(base)
    delta.apply_(other)
    assert_same_model(other, tuned)
    delta.revert_(other)
    assert_same_model(other, base)


def test_fused_experts_are_one_tensor_with_an_axis_more():
    """What makes them another case than a matrix for each expert."""
    model, _ = mixtral()
    assert {param.dim() for name, param in model.named_parameters() if "experts" in name} == {3}
