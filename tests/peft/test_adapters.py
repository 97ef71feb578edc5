"""Bottleneck adapters: where they stand, that they start as the identity, and that the base model stays as it was."""

import copy
import pickle

import pytest
import torch
from families import FAMILIES, WIDTH, backward, batch, snapshot, tiny
from selective_peft import SelectiveAdamW
from selective_peft.adapters import BottleneckAdapter, adapter_state, add_adapters, load_adapter_state, remove_adapters
from torch import nn

from selective_kernels.testing import assert_bitwise_equal

SIZE = 5
PARTS = ["down.weight", "down.bias", "up.weight", "up.bias"]
# family: where its first layer gets them: after attention (Houlsby only), after the feed-forward sublayer
OWNERS = {
    "bert": ("bert.encoder.layer.0.attention.output", "bert.encoder.layer.0.output"),
    "roberta": ("roberta.encoder.layer.0.attention.output", "roberta.encoder.layer.0.output"),
    "deberta-v3": ("deberta.encoder.layer.0.attention.output", "deberta.encoder.layer.0.output"),
    "t5": ("encoder.block.0.layer.0", "encoder.block.0.layer.1"),
    "gpt2": ("transformer.h.0.attn", "transformer.h.0.mlp"),
    "llama": ("model.layers.0.self_attn", "model.layers.0.mlp"),
    "qwen2": ("model.layers.0.self_attn", "model.layers.0.mlp"),
}
NUMBER = {
    "pfeiffer": dict.fromkeys(FAMILIES, 2) | {"t5": 4},
    "houlsby": dict.fromkeys(FAMILIES, 4) | {"t5": 10},
}


def logits(model, family):
    with torch.no_grad():
        return model.eval()(**batch(family)).logits


def randomize(model, seed=0):
    """Adapters that do something: all their parameters from N(0, 1/4)."""
    generator = torch.Generator().manual_seed(seed)
    state = adapter_state(model)
    load_adapter_state(model, {name: torch.randn(old.shape, generator=generator) / 2 for name, old in state.items()})


def by_hand(adapter, x):
    inner = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
    return x + inner @ adapter.up.weight.T + adapter.up.bias


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_no_output(family, placement):
    model = tiny(family)
    before = logits(model, family)
    names = add_adapters(model, placement, SIZE)
    assert_bitwise_equal(logits(model, family), before)
    assert len(names) == len(PARTS) * NUMBER[placement][family]
    randomize(model)
    assert (logits(model, family) - before).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_sizes(family):
    """The base model's parameters keep their names, the new ones follow from the module they stand in."""
    model = tiny(family)
    before = dict(model.named_parameters())
    names = add_adapters(model, "houlsby", SIZE)
    after = dict(model.named_parameters())
    assert names == [name for name in after if name not in before]
    assert all(after[name] is param for name, param in before.items())
    for owner in OWNERS[family]:
        assert {f"{owner}.adapter.{part}" for part in PARTS} <= set(names)
    sizes = {"down.weight": (SIZE, WIDTH), "down.bias": (SIZE,), "up.weight": (WIDTH, SIZE), "up.bias": (WIDTH,)}
    for name in names:
        assert after[name].shape == sizes[name.partition(".adapter.")[2]]
    assert all(param.requires_grad for param in after.values())  # nothing is frozen unasked
    pfeiffer = add_adapters(tiny(family), "pfeiffer", SIZE)
    assert f"{OWNERS[family][1]}.adapter.up.bias" in pfeiffer
    assert not [name for name in pfeiffer if name.startswith(OWNERS[family][0] + ".adapter")]


def expected_output(family, owner, plain, args, adapter):
    """What a sublayer gives if the adapter stands right before the residual connection."""
    if family in ("bert", "roberta", "deberta-v3"):
        hidden, residual = args
        return owner.LayerNorm(by_hand(adapter, owner.dense(hidden)) + residual)
    if family == "t5":  # its sublayers add the residual themselves
        return args[0] + by_hand(adapter, plain - args[0])
    return by_hand(adapter, plain)  # Llama, Qwen2, GPT-2: the layer adds the residual to this


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_stands_before_the_residual_connection(family):
    bare = tiny(family, use_cache=False).eval()
    model = copy.deepcopy(bare)
    add_adapters(model, "houlsby", SIZE)
    randomize(model)
    for path in OWNERS[family]:
        owner, plain_owner = model.get_submodule(path), bare.get_submodule(path)
        calls = []

        def keep(module, args, kwargs, output, calls=calls):
            calls.append((args, kwargs, output))

        with torch.no_grad():
            handle = owner.register_forward_hook(keep, with_kwargs=True)
            model(**batch(family))
            handle.remove()
            ((args, kwargs, output),) = calls
            inputs = args or (kwargs["hidden_states"],)
            plain = plain_owner(*args, **kwargs)
            output, plain = (x[0] if isinstance(x, tuple) else x for x in (output, plain))
            expected = expected_output(family, owner, plain, inputs, owner.adapter)
        assert (output - plain).abs().max() > 0.1, path
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_the_adapter_of_bert_follows_its_dropout():
    """As in Houlsby's code; with dropout on, the other order would give other numbers."""
    model = tiny("bert", hidden_dropout_prob=0.5)
    add_adapters(model, "pfeiffer", SIZE)
    randomize(model)
    output = model.bert.encoder.layer[1].output
    hidden, residual = torch.randn(3, 24), torch.randn(3, WIDTH)
    torch.manual_seed(7)
    actual = output(hidden, residual)
    torch.manual_seed(7)
    dropped = nn.functional.dropout(output.dense(hidden), 0.5)
    assert (dropped == 0).any()
    torch.testing.assert_close(actual, output.LayerNorm(by_hand(output.adapter, dropped) + residual))


def test_a_decoder_gets_adapters_after_its_cross_attention():
    names = add_adapters(tiny("bert", is_decoder=True, add_cross_attention=True), "houlsby", SIZE)
    assert "bert.encoder.layer.1.crossattention.output.adapter.up.weight" in names
    assert "decoder.block.1.layer.1.adapter.up.weight" in add_adapters(tiny("t5"), "houlsby", SIZE)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", nn.ReLU()), ("gelu", nn.GELU()), ("silu", nn.SiLU()), ("tanh", nn.Tanh())],
)
def test_activations(activation, function):
    model = tiny("bert")
    add_adapters(model, size=SIZE, activation=activation)
    randomize(model)
    adapter = model.bert.encoder.layer[0].output.adapter
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(adapter(x), x + adapter.up(function(adapter.down(x))))


def test_first_values_come_from_the_seed():
    """N(0, 0.01) cut off at two deviations, from a generator of its own."""
    state = torch.random.get_rng_state()
    models = [tiny("bert") for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        add_adapters(model, size=500, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, same, other = (adapter_state(model) for model in models)
    layers = [f"bert.encoder.layer.{i}.output.adapter" for i in (0, 1)]
    for name in first:
        assert_bitwise_equal(first[name], same[name], name)
        if not name.endswith("down.weight"):
            assert not first[name].any()
    down = [first[f"{layer}.down.weight"] for layer in layers]
    assert not torch.equal(down[0], down[1])
    assert not torch.equal(down[0], other[f"{layers[0]}.down.weight"])
    values = torch.cat(down).flatten()  # 16,000 of them
    assert values.abs().max() <= 0.02
    assert abs(float(values.std()) - 0.0088) < 0.0002  # a normal cut off at two deviations has 0.880 of its deviation
    assert abs(float(values.mean())) < 0.0004


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_adapters_take_the_dtype_of_the_layer(family):
    model = tiny(family).to(torch.bfloat16)
    before = logits(model, family)
    add_adapters(model, "houlsby", SIZE)
    wanted = tiny(family)
    add_adapters(wanted, "houlsby", SIZE)
    for name, value in adapter_state(model).items():
        assert value.dtype == torch.bfloat16, name
        assert_bitwise_equal(value, adapter_state(wanted)[name].bfloat16(), name)
    assert_bitwise_equal(logits(model, family), before)
    assert not [module for module in model.modules() if isinstance(module, BottleneckAdapter) and module.training]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_a_copy_uses_its_own_adapters(family, duplicate):
    model = tiny(family)
    bare = logits(model, family)
    add_adapters(model, "houlsby", SIZE)
    randomize(model)
    before = logits(model, family)
    twin = duplicate(model)
    assert_bitwise_equal(logits(twin, family), before)
    randomize(twin, seed=1)
    assert_bitwise_equal(logits(model, family), before)
    assert not torch.equal(logits(twin, family), before)
    remove_adapters(model)
    assert not torch.equal(logits(twin, family), bare)
    remove_adapters(twin)
    assert_bitwise_equal(logits(twin, family), bare)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its successor is too new
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_changes_no_gradient(family):
    found = []
    for checkpointing in (False, True):
        model = tiny(family)
        add_adapters(model, "houlsby", SIZE, freeze_base=True)
        randomize(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backward(model, family)
        found.append({name: param.grad for name, param in model.named_parameters() if param.requires_grad})
    assert found[0].keys() == found[1].keys() == adapter_state(model).keys()
    for name, grad in found[0].items():
        assert grad.any(), name
        assert_bitwise_equal(found[1][name], grad, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_selective_training_of_adapters_leaves_the_base_alone(family):
    model = tiny(family)
    names = add_adapters(model, "houlsby", SIZE, freeze_base=True)
    before = snapshot(model)
    params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    assert [name for name, _ in params] == names
    optimizer = SelectiveAdamW(params, lr=0.01, weight_decay=0.1, budget=40, total_steps=2)
    for step in range(2):
        backward(model, family, step)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:  # the second matrix is zero, so the first one gets no gradient yet
            assert not [name for name, p in params if ".down." in name and len(optimizer.selected_indices(p))]
    assert optimizer.selected_per_step().tolist() == [20, 20]
    for name, param in model.named_parameters():
        chosen = optimizer.selected_indices(param) if name in names else []
        trained = torch.zeros(param.numel(), dtype=torch.bool)
        trained[chosen] = True
        now, old = param.detach().flatten(), before[name].flatten()
        assert_bitwise_equal(now[~trained], old[~trained], name)
        assert bool((now[trained] != old[trained]).all()), name


def test_freezing_and_taking_away():
    model = tiny("bert")
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    output, bits = logits(model, "bert"), snapshot(model)
    flags = {name: param.requires_grad for name, param in model.named_parameters()}
    names = add_adapters(model, size=SIZE, freeze_base=True, train_fully=["classifier", "LayerNorm.bias"])
    trainable = {name for name, param in model.named_parameters() if param.requires_grad}
    norms = {name for name in bits if name.endswith("LayerNorm.bias")}
    assert len(norms) == 5
    assert trainable == {*names, "classifier.weight", "classifier.bias", *norms}
    randomize(model)
    remove_adapters(model)
    assert {name: param.requires_grad for name, param in model.named_parameters()} == flags
    for name, value in snapshot(model).items():
        assert_bitwise_equal(value, bits[name], name)
    assert_bitwise_equal(logits(model, "bert"), output)
    assert vars(model).keys() == vars(tiny("bert")).keys()
    assert add_adapters(model, size=SIZE) == names


def test_saving_and_loading(tmp_path):
    model, other = tiny("llama"), tiny("llama")
    for each in (model, other):
        add_adapters(each, "houlsby", SIZE, seed=3)
    randomize(model)
    kept = adapter_state(model)
    torch.save(kept, tmp_path / "adapters.pt")
    randomize(model, seed=1)
    assert not torch.equal(logits(model, "llama"), logits(other, "llama"))
    load_adapter_state(other, torch.load(tmp_path / "adapters.pt", weights_only=True))
    load_adapter_state(model, kept)  # not changed by what the model did since
    assert_bitwise_equal(logits(model, "llama"), logits(other, "llama"))
    assert kept.keys() == {name for name, _ in model.named_parameters() if ".adapter." in name}
