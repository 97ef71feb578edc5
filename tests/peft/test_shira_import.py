"""SHiRA adapters as deltas: what PEFT merges, bit for bit; adapters that do not fit are refused."""

import copy
import json
import shutil

import pytest
import torch
from deltatests import assert_same_model
from families import backward, tiny
from safetensors.torch import load_file, save_file
from selective_peft import DeltaError, shira_import
from selective_peft.exchange import export_shira, import_shira
from shiratests import assert_same_state, merged, model_and_delta

peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")

WEIGHTS = "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


def trained_by_peft(folder, dtype=torch.float32, **more):
    """A base, and an adapter that PEFT itself made, trained and saved, with a head stored whole."""
    base = tiny("bert").to(dtype)
    config = peft.ShiraConfig(r=2, target_modules=["query", "value"], random_seed=3, **more)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad], lr=1e-2)
    for step in range(3):
        backward(model, "bert", step)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(str(folder))
    return base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_of_peft(dtype, tmp_path):
    base = trained_by_peft(tmp_path / "a", dtype, modules_to_save=["classifier"])
    before = copy.deepcopy(base.state_dict())
    delta = import_shira(tmp_path / "a", base, base_model="org/tiny")
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in delta.changes} == {"query", "value", "classifier"}
    assert (delta.about.method, delta.about.base_model) == ("shira", "org/tiny")
    expected = merged(base, tmp_path / "a")
    delta.apply_(base)
    assert_same_state(base, expected)
    delta.revert_(base)
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_there_and_back(family, dtype, tmp_path):
    """Export, then import: the same changes; filling and modules that were stored whole leave no trace."""
    counts = {
        "bert": {"query.weight": 20, "LayerNorm.bias": 2, "value.bias": 1},
        "t5": {"q.weight": 20, "shared.weight": 9},
        "llama": {"q_proj.weight": 20, "norm.weight": 3},
    }[family]
    base, _, delta = model_and_delta(family, counts, dtype, base_model="org/tiny", base_revision="abc")
    export_shira(delta, base, tmp_path / "a")
    found = import_shira(tmp_path / "a", base)
    assert list(found.changes) == list(delta.changes)
    for name, change in delta.changes.items():
        again = found.changes[name]
        assert torch.equal(again.indices, change.indices)
        assert torch.equal(again.values, change.values)
        assert torch.equal(again.originals, change.originals)
        assert (again.digest, again.tied) == (change.digest, change.tied)
    assert (found.about.base_model, found.about.base_revision) == ("org/tiny", "abc")


def test_a_head_that_the_base_lacks(tmp_path):
    base = trained_by_peft(tmp_path / "a", modules_to_save=["classifier"])
    new = {"classifier.weight", "classifier.bias"}
    delta = import_shira(tmp_path / "a", base, new=new)
    assert {name for name, change in delta.changes.items() if change.is_new} == new
    expected = merged(base, tmp_path / "a")
    delta.apply_(base)
    assert_same_model(base, expected)


def test_a_base_in_another_precision(tmp_path):
    """PEFT adds in the adapter's float32, rounds, and copies what is whole into the base's dtype."""
    base = trained_by_peft(tmp_path / "a", modules_to_save=["classifier"]).bfloat16()
    delta = import_shira(tmp_path / "a", base)
    assert {change.dtype for change in delta.changes.values()} == {torch.bfloat16}
    expected = merged(base, tmp_path / "a")
    delta.apply_(base)
    assert_same_state(base, expected)


def test_places_that_were_written_as_floats(tmp_path):
    """PEFT does so on Windows."""
    base = trained_by_peft(tmp_path / "a")
    first = import_shira(tmp_path / "a", base)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    changed = {name: t.float() if t.dtype == torch.int32 else t for name, t in tensors.items()}
    save_file(changed, tmp_path / "a" / WEIGHTS)
    second = import_shira(tmp_path / "a", base)
    assert all(torch.equal(second.changes[name].indices, change.indices) for name, change in first.changes.items())


def stored(folder, tensors):
    """An adapter with these tensors."""
    folder.mkdir()
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "SHIRA", "r": 1}))
    return folder


def other(tensor, place):
    changed = tensor.detach().clone()
    changed.view(-1)[place] = 5.0
    return changed


@pytest.mark.parametrize("second", ["other place", "as the base", "sparse"])
def test_one_tensor_with_two_contents(second, tmp_path):
    """PEFT gives each name its own, or adds twice; a delta has one tensor."""
    base = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(2)))
    base[1].weight = base[0].weight
    weight = base[0].weight.detach().clone()
    values, places = torch.zeros(1), torch.zeros(2, 1, dtype=torch.int32)
    tensors = {
        "other place": {"0.weight": other(weight, 3), "1.weight": other(weight, 9)},
        "as the base": {"0.weight": other(weight, 3), "1.weight": weight},
        "sparse": {
            f"{i}.shira_{what}": t.clone() for i in (0, 1) for what, t in (("weight", values), ("indices", places))
        },
    }[second]
    with pytest.raises(DeltaError, match=r"expected one content for 0\.weight, got two"):
        import_shira(stored(tmp_path / "a", tensors), base)
    both = {"0.weight": other(weight, 3), "1.weight": other(weight, 3)}
    assert import_shira(stored(tmp_path / "c", both), base).changes["0.weight"].indices.tolist() == [3]


def test_a_sparse_and_a_whole_content(tmp_path):
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    twice = {"0.weight": other(base[0].weight, 3), "0.shira_weight": torch.ones(1)}
    twice["0.shira_indices"] = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(DeltaError, match=r"expected one content for 0\.weight, got two"):
        import_shira(stored(tmp_path / "a", twice), base)


def test_an_adapter_that_unties(tmp_path):
    """One of two tied tensors stored whole is another tensor after PEFT's merge."""
    base = tiny("llama")
    base.lm_head.weight = base.model.embed_tokens.weight
    config = peft.ShiraConfig(r=1, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.save_pretrained(str(tmp_path / "same"))
    assert "lm_head.weight" not in import_shira(tmp_path / "same", base).changes
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight[0, 0] += 1
    model.save_pretrained(str(tmp_path / "a"))
    found = merged(base, tmp_path / "a")
    assert not torch.equal(found.lm_head.weight, found.model.embed_tokens.weight)
    with pytest.raises(DeltaError, match=r"got none for model\.embed_tokens\.weight: PEFT would untie it"):
        import_shira(tmp_path / "a", base)


def test_a_base_without_values(tmp_path):
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    sparse = {"0.shira_weight": torch.ones(1), "0.shira_indices": torch.zeros(2, 1, dtype=torch.int32)}
    for name, tensors in (("a", sparse), ("b", {"0.bias": torch.ones(4)})):
        with pytest.raises(DeltaError, match="expected a tensor with values, got one on meta"):
            import_shira(stored(tmp_path / name, tensors), copy.deepcopy(base).to("meta"))


def damage(folder, what):
    """One thing in an adapter made wrong."""
    tensors = load_file(folder / WEIGHTS)
    values, places = f"{QUERY}.shira_weight", f"{QUERY}.shira_indices"
    if what == "row":
        tensors[places][0, 3] = 16
    elif what == "negative":
        tensors[places][1, 3] = -1
    elif what == "half a place":
        tensors[places] = tensors[places].float() + 0.5
    elif what == "nan":
        tensors[values][2] = float("nan")
    elif what == "fewer":
        tensors[values] = tensors[values][:-1].clone()
    elif what == "a matrix":
        tensors[values] = tensors[values].view(-1, 1).clone()
    elif what == "no places":
        del tensors[places]
    elif what == "no module":
        tensors["base_model.model.other.shira_weight"] = tensors.pop(values)
        tensors["base_model.model.other.shira_indices"] = tensors.pop(places)
    elif what == "no tensor":
        tensors["base_model.model.other.weight"] = torch.ones(2)
    elif what == "shape":
        tensors["base_model.model.classifier.bias"] = torch.ones(5)
    elif what == "prefix":
        tensors["other"] = torch.ones(2)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("row", r"expected rows and columns of \[16, 16\]"),
        ("negative", r"expected rows and columns of \[16, 16\]"),
        ("half a place", r"expected rows and columns of \[16, 16\]"),
        ("nan", "expected a vector of finite numbers"),
        ("fewer", r"expected int32 \[2, 63\]"),
        ("a matrix", "expected a vector of finite numbers"),
        ("no places", "one of them is missing"),
        ("no module", "it has no such 'other'"),
        ("no tensor", "it has no 'other.weight'"),
        ("shape", r"classifier.bias: expected torch.float32 \[3\], got torch.float32 \[5\]"),
        ("prefix", "expected names that begin with 'base_model.model.'"),
    ],
)
def test_damaged_adapters(what, message, tmp_path):
    base = trained_by_peft(tmp_path / "a")
    damage(tmp_path / "a", what)
    with pytest.raises(DeltaError, match=message):
        import_shira(tmp_path / "a", base)


def test_other_folders(tmp_path, monkeypatch):
    base = trained_by_peft(tmp_path / "a")
    with pytest.raises(DeltaError, match="expected the configuration of an adapter of a usual size, found none"):
        import_shira(tmp_path, base)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    config = tmp_path / "b" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "LORA"}))
    with pytest.raises(DeltaError, match="peft_type: expected 'SHIRA', got 'LORA'"):
        import_shira(tmp_path / "b", base)
    with monkeypatch.context() as patched:
        patched.setattr(shira_import, "LARGEST_CONFIG", config.stat().st_size - 1)
        with pytest.raises(DeltaError, match="expected the configuration of an adapter of a usual size, found none"):
            import_shira(tmp_path / "b", base)
    config.write_bytes(b"\xff")
    with pytest.raises(DeltaError, match="expected UTF-8 text"):
        import_shira(tmp_path / "b", base)
    (tmp_path / "a" / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(DeltaError, match="expected a safetensors file"):
        import_shira(tmp_path / "a", base)
