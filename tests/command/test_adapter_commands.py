"""`selective-peft export` and `import` from the command line to the files."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from deltafolders import json_of, pair, ran, refused
from safetensors.torch import load_file
from selective_optimizers import load_store
from selective_optimizers.wrap import get_selective_optimizer
from selective_peft import SparseDelta, adapter_options
from selective_peft.cli import main, parser
from transformers import BertForSequenceClassification, BertModel

peft = pytest.importorskip("peft", reason="peft is not installed: pip install '.[test]'")

QUERY, NORM = "bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.LayerNorm.weight"
CLASS = "BertForSequenceClassification"


def classifier(folder, **more):
    torch.manual_seed(1)
    return BertForSequenceClassification.from_pretrained(folder, **more)


@pytest.fixture
def tuned(tiny_model):
    """A model with a head of three classes, and some scalars of its body changed."""
    model = classifier(tiny_model, num_labels=3)
    with torch.no_grad():
        model.get_parameter(QUERY)[3, :9] += 0.1
        model.get_parameter(NORM)[2:4] += 0.1
        model.classifier.bias += 1
    return model


@pytest.fixture
def delta(tiny_model, tuned, tmp_path):
    base = {f"bert.{name}": tensor for name, tensor in BertModel.from_pretrained(tiny_model).state_dict().items()}
    found = SparseDelta.from_models(base, tuned, base_model="org/tiny")
    found.save(tmp_path / "delta")
    return tmp_path / "delta"


def same_parameters(a, b):
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_export_and_import(tiny_model, tuned, delta, tmp_path, capsys):
    """PEFT makes the tuned model of the base's folder; the adapter is the same delta again."""
    found = json_of(capsys, "export", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "a")
    assert (found["command"], found["checked"], found["r"]) == ("export", True, 1)
    assert found["scalars"] == {QUERY.removesuffix(".weight"): 9}
    assert found["padding"] == 64 - 9
    assert set(found["whole"]) == {"bert.embeddings.LayerNorm", "classifier"}
    assert found["whole_scalars"] == 2 * 32 + 3 * 32 + 3
    assert found["nbytes"] == (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    merged = peft.PeftModel.from_pretrained(classifier(tiny_model, num_labels=3), tmp_path / "a").merge_and_unload()
    assert same_parameters(merged, tuned)

    given = ["import", tmp_path / "a", "--base", tiny_model, "--labels", 3, "--out", tmp_path / "again", "--compact"]
    found = json_of(capsys, *given)
    assert (found["command"], found["kind"], found["scalars"]) == ("import", "shira", 11)
    first, second = SparseDelta.load(delta), SparseDelta.load(tmp_path / "again")
    assert first.changes.keys() == second.changes.keys()
    for name, change in first.changes.items():
        assert torch.equal(change.values, second.changes[name].values)
        assert change.digest == second.changes[name].digest
    assert second.about.base_model == "org/tiny"
    model = classifier(tiny_model, num_labels=3)
    second.apply_(model)
    assert same_parameters(model, tuned)


def test_options_of_export(tiny_model, delta, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    given = ["export", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "a"]
    refused(
        capsys, "weight of LayerNorm (2 modules in all); store them whole, or train without them", *given, "--no-dense"
    )
    refused(capsys, "expected a class of models of transformers, got BertConfig", *given, "--model-class", "BertConfig")
    refused(capsys, "cannot be loaded ('BertConfig' object has no", *given, "--model-class", "GPT2LMHeadModel")
    refused(capsys, "it has none (4 are missing)", *given, "--model-class", "BertModel")
    assert not (tmp_path / "a").exists()
    code, out, error = ran(capsys, *given, "--no-check")
    assert (code, error) == (0, "")
    assert "PEFT did not merge it" in " ".join(out.split())
    assert "bert.embeddings.LayerNorm (weight of LayerNorm)" in " ".join(out.split())


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_that_names_code(name, tiny_model, delta, tmp_path, capsys):
    """A delta may be anybody's: transformers fetches kernels from the Hub that a configuration asks for."""
    found = SparseDelta.load(delta)
    config = {**found.about.model_config, name: "somebody/kernels"}
    SparseDelta(found.changes, replace(found.about, model_config=config)).save(delta)
    json_of(capsys, "export", "--base", tiny_model, "--delta", delta, "--out", tmp_path / "a")


def test_the_precision_that_it_was_trained_in(tiny_model, tmp_path, capsys):
    """The base's files are float32; the delta, and what is to be imported, are bfloat16."""
    base = classifier(tiny_model, num_labels=3).bfloat16()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.get_parameter(QUERY)[3, :9] += 0.1
    delta = SparseDelta.from_models(base, tuned)
    delta.save(tmp_path / "delta")
    json_of(capsys, "export", "--base", tiny_model, "--delta", tmp_path / "delta", "--out", tmp_path / "a")
    given = ["import", tmp_path / "a", "--base", tiny_model, "--labels", 3, "--dtype", "bfloat16", "--no-originals"]
    found = json_of(capsys, *given, "--base-revision", "v2", "--out", tmp_path / "again")
    assert found["originals"] is False
    again = SparseDelta.load(tmp_path / "again")
    assert again.changes.keys() == {QUERY}
    assert torch.equal(again.changes[QUERY].values, delta.changes[QUERY].values)
    assert again.changes[QUERY].digest == delta.changes[QUERY].digest
    assert not again.has_originals
    assert again.about.base_revision == "v2"


def test_a_base_of_pickles_is_not_loaded(tiny_model, delta, tmp_path, capsys):
    shutil.copytree(tiny_model, tmp_path / "base")
    (weights,) = (tmp_path / "base").glob("*.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    given = ["export", "--base", tmp_path / "base", "--delta", delta, "--out", tmp_path / "a"]
    refused(capsys, "cannot be loaded (Error no file named model.safetensors", *given)


def test_several_deltas(tiny_model, tmp_path, capsys):
    a, b = pair(tmp_path, tiny_model)
    given = ["export", "--base", tiny_model, "--delta", a, b, "--out", tmp_path / "out"]
    refused(capsys, "--on-conflict first or last decides", *given)
    found = json_of(capsys, *given, "--on-conflict", "first")
    assert found["conflicts"] > 0
    assert "encoder.layer.1.output.dense" in found["whole"]


def summary_of(model, path):
    """A summary of one step of the toolkit's ID3, its head trained whole."""
    groups = [
        {"params": list(model.bert.parameters())},
        {"params": list(model.classifier.parameters()), "choose_all": True},
    ]
    kind = get_selective_optimizer(torch.optim.AdamW, "id3")
    optimizer = kind(groups, lr=1e-2, budget=150, max_steps=1, verify=False)
    model(input_ids=torch.tensor([[3, 4, 5], [5, 6, 7]]), labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    assert load_store.write_summary_to_disk(str(path), optimizer.get_summary(model))


def test_import_of_a_summary(tiny_model, tmp_path, capsys):
    trained = classifier(tiny_model, num_labels=3).eval()
    before = copy.deepcopy(trained)
    summary_of(trained, tmp_path / "summary")
    assert not same_parameters(before, trained)
    given = ["import", tmp_path / "summary", "--base", tiny_model, "--out", tmp_path / "delta"]
    refused(capsys, "expected", *given)  # the base's own class has no head
    error = "classifier.weight: expected the shape [2, 32], got another; --labels says how many classes the head has"
    refused(capsys, error, *given, "--model-class", CLASS)
    found = json_of(capsys, *given, "--model-class", CLASS, "--labels", 3, "--base-model", "org/tiny")
    assert found["kind"] == "selective-optimizers"
    assert set(found["whole"]) >= {"classifier.weight", "classifier.bias"}
    delta = SparseDelta.load(tmp_path / "delta")
    assert delta.changes["classifier.weight"].is_new
    assert delta.about.base_model == "org/tiny"
    delta.apply_(before)
    assert same_parameters(before, trained)


def test_what_import_refuses(tiny_model, tmp_path, capsys):
    given = ["--base", tiny_model, "--out", tmp_path / "out"]
    refused(capsys, "expected the folder of a SHiRA adapter or a summary's file", "import", tmp_path / "none", *given)
    (tmp_path / "text").write_text("text")
    refused(capsys, "expected a file of torch.save", "import", tmp_path / "text", *given)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    refused(capsys, "peft_type: expected 'SHIRA', got 'LORA'", "import", tmp_path / "lora", *given)
    given[1] = tmp_path
    refused(capsys, "expected a folder with a config.json", "import", tmp_path / "text", *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", adapter_options.COMMANDS)
def test_help(name, capsys):
    """Its examples are commands that are understood."""
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    examples = [line.split()[1:] for line in out.splitlines() if line.startswith("  selective-peft ")]
    assert examples
    assert all(parser().parse_args(example).command == name for example in examples)
