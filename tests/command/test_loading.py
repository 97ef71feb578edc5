"""Models whose files do not fit together, and heads: nothing is trained on that nobody asked for."""

import json
import shutil

import pytest
import torch
from reviewfiles import reviews, write_csv
from selective_peft import loading
from selective_peft.cli import main
from selective_peft.errors import InputError
from transformers import AutoConfig, RobertaConfig, RobertaForSequenceClassification

HEAD = {"classifier.weight", "classifier.bias"}


def copied(tiny_model, tmp_path, **settings):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_no_tokenizer_files(tiny_model, tmp_path):
    """transformers makes one up that knows no word: all texts of a length would be the same."""
    folder = copied(tiny_model, tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"expected the files of a tokenizer|cannot be loaded"):
        loading.load(str(folder), 0, ["a", "b"])


@pytest.mark.parametrize("settings", [{"intermediate_size": 48}, {"num_hidden_layers": 4}])
def test_a_body_that_does_not_fit_its_configuration(settings, tiny_model, tmp_path):
    """Only a head may be drawn at random, never a layer."""
    with pytest.raises(InputError, match=r"expected weights that fit its config.json, found \d+ tensors"):
        loading.load(str(copied(tiny_model, tmp_path, **settings)), 0, ["a", "b"])


def test_a_tokenizer_with_more_words_than_the_model(tiny_model, tmp_path):
    folder = copied(tiny_model, tmp_path)
    tokenizer = loading.load(str(folder), 0, ["a", "b"]).tokenizer
    tokenizer.add_tokens([f"word{i}" for i in range(50)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="expected a tokenizer of at most 17 tokens, found 67"):
        loading.load(str(folder), 0, ["a", "b"])


def saved_with_head(tiny_model, tmp_path, classes):
    loaded = loading.load(str(tiny_model), 0, classes)
    folder = tmp_path / "with head"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder, loaded.model.classifier.weight.detach()


def test_a_head_keeps_the_order_of_its_classes(tiny_model, tmp_path):
    """Not the alphabet's: else each answer would count as another one."""
    folder, weight = saved_with_head(tiny_model, tmp_path, ["rotten", "fresh"])
    assert loading.known_classes(str(folder)) == ["rotten", "fresh"]
    kept = loading.load(str(folder), 1, ["rotten", "fresh"])
    assert kept.new == frozenset()
    assert torch.equal(kept.model.classifier.weight, weight)
    output = tmp_path / "out"
    given = ["--data", str(write_csv(tmp_path / "a.csv", reviews(60))), "--output", str(output), "--steps", "2"]
    assert main(["train", "--model", str(folder), "--budget", "50", *given]) == 0
    assert json.loads((output / "metrics.json").read_text())["classes"] == ["rotten", "fresh"]


@pytest.mark.parametrize("classes", [["x", "y"], ["fresh", "rotten"], ["a", "b", "c"], None])
def test_a_head_for_other_classes_is_drawn_anew(classes, tiny_model, tmp_path):
    folder, weight = saved_with_head(tiny_model, tmp_path, ["rotten", "fresh"])
    loaded, again, other = (loading.load(str(folder), seed, classes) for seed in (1, 1, 2))
    assert loaded.new == HEAD
    fresh = loaded.model.classifier.weight
    assert fresh.shape != weight.shape or not torch.equal(fresh, weight)
    assert torch.equal(fresh, again.model.classifier.weight)
    assert not torch.equal(fresh, other.model.classifier.weight)
    body = dict(loading.load(str(tiny_model), 0, ["x", "y"]).model.bert.encoder.named_parameters())
    assert all(torch.equal(p, body[name]) for name, p in loaded.model.bert.encoder.named_parameters())


def test_positions_of_roberta(tiny_model, tmp_path):
    """It counts from behind its padding token's number."""
    config = RobertaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=18, pad_token_id=1,
    )  # fmt: skip
    folder = tmp_path / "roberta"
    RobertaForSequenceClassification(config).save_pretrained(folder)
    loading.load(str(tiny_model), 0, ["a", "b"]).tokenizer.save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).max_position_embeddings == 18
    loaded = loading.load(str(folder), 0, ["a", "b"])
    assert loaded.positions == 16
    loaded.model(input_ids=torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError), match="index"):
        loaded.model(input_ids=torch.full((1, 17), 5))
