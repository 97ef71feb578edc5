"""Tokens and labels of each task, token by token."""

import pytest
from selective_peft import data, encoding, loading
from selective_peft.errors import InputError
from selective_peft.metrics import IGNORED
from selective_peft.tasks import TASKS
from tinymodels import MODELS, byte_tokenizer, saved
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tasks = {"bert": "token", "t5": "seq2seq", "llama": "causal", "gpt2": "causal"}
    classes = {"bert": ["O", "X", "Y"]}
    return {
        name: loading.load(str(make(folder / name)), 0, classes.get(name), TASKS[tasks[name]].kind)
        for name, make in MODELS.items()
    }


def decoded(loaded, tokens):
    return loaded.tokenizer.convert_ids_to_tokens(tokens)


def test_parts_of_words_after_the_first_have_no_label(loaded):
    examples = data.Examples([["Anna", "likes", "Bonn"], ["liked", "likes"]], None, [[1, 0, 2], [1, 2]], None)
    first, second = encoding.tagged(examples, loaded["bert"], 32)
    assert decoded(loaded["bert"], first["input_ids"]) == ["Anna", "likes", "Bonn", "[SEP]"]
    assert first["labels"] == [1, 0, 2, IGNORED]
    assert decoded(loaded["bert"], second["input_ids"]) == ["like", "##d", "likes", "[SEP]"]
    assert second["labels"] == [1, IGNORED, 2, IGNORED]
    short = {"input_ids": [3], "attention_mask": [1], "labels": [1]}
    batch = TASKS["token"].collator(loaded["bert"])([{key: second[key] for key in short}, short])
    assert batch["labels"].tolist() == [second["labels"], [1, IGNORED, IGNORED, IGNORED]]


def test_a_row_of_words_is_cut(loaded):
    examples = data.Examples([["Anna"] * 50, ["liked"] * 50], None, [[1] * 50, [2] * 50], None)
    first, second = encoding.tagged(examples, loaded["bert"], 5)
    assert first["labels"] == [1, 1, 1, 1, IGNORED]
    assert second["labels"] == [2, IGNORED, 2, IGNORED, IGNORED]
    assert len(encoding.tagged(examples, loaded["bert"], 999)[0]["labels"]) == 32  # the model's positions


def test_words_are_tokenised_as_running_text(tmp_path):
    """For a tokenizer of bytes a word after a space is another one; the space alone has no label."""
    words, vocabulary = byte_tokenizer("</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>", model_max_length=32)
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    folder = saved(tmp_path / "roberta", RobertaModel(config, add_pooling_layer=False), tokenizer)
    loaded = loading.load(str(folder), 0, ["X", "Y"], loading.TOKEN)
    row = encoding.tagged(data.Examples([["ab", "c d", "e"]], None, [[0, 1, 0]], None), loaded, 32)[0]
    assert decoded(loaded, row["input_ids"]) == ["a", "b", "Ġ", "c", "Ġ", "d", "Ġ", "e"]
    assert row["labels"] == [0, IGNORED, IGNORED, 1, IGNORED, IGNORED, IGNORED, 0]
    assert "offset_mapping" not in row


def test_a_row_without_a_known_word(loaded):
    examples = data.Examples([["Anna"], ["\u200b"]], None, [[1], [1]], None)
    tokenizer = loaded["bert"].tokenizer
    made = tokenizer.backend_tokenizer.normalizer
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    try:
        with pytest.raises(InputError, match=r"expected some that the tokenizer knows, found none in"):
            encoding.tagged(examples, loaded["bert"], 32)
    finally:
        tokenizer.backend_tokenizer.normalizer = made


def test_sequences_end_and_are_cut_on_both_sides(loaded):
    examples = data.Examples(["Anna", "Ben " * 60], None, ["lives in Bonn", "the " * 60], None)
    first, second = encoding.targets(examples, loaded["t5"], 6)
    assert decoded(loaded["t5"], first["labels"]) == ["lives", "in", "Bonn", "</s>"]
    assert [len(second[key]) for key in ("input_ids", "labels")] == [6, 6]
    assert second["labels"][-1] == loaded["t5"].tokenizer.eos_token_id
    batch = TASKS["seq2seq"].collator(loaded["t5"])([first, second])
    assert batch["labels"][0].tolist() == [*first["labels"], IGNORED, IGNORED]
    assert batch["decoder_input_ids"][0].tolist()[:5] == [0, *first["labels"]]


# model, prompt or None, continuation, most tokens -> tokens, how many of the first ones have no label
CONTINUATIONS = {
    "with its start": ("llama", "the Anna", "lives in", 32, "<s> the Anna lives in </s>", 3),
    "without a prompt": ("llama", None, "lives in", 32, "<s> lives in </s>", 1),
    "space before": ("gpt2", "a", "bc", 32, "a Ġ b c <|end|>", 1),
    "no start token": ("gpt2", None, "bc", 32, "b c <|end|>", 0),
    "prompt cut": ("llama", "the the Anna Ben", "lives in", 5, "<s> Ben lives in </s>", 2),
    "prompt gone": ("llama", "the the Anna Ben", "lives in", 4, "<s> lives in </s>", 1),
    "answer cut": ("llama", "the Anna", "lives in the the", 3, "<s> lives in", 1),
    "answer cut, no start": ("gpt2", "ab", "cde", 3, "b Ġ c", 1),
    "text cut": ("gpt2", None, "abcde", 3, "a b c", 0),
}


@pytest.mark.parametrize("name", CONTINUATIONS)
def test_only_continuations_have_labels(name, loaded):
    model, prompt, answer, most, tokens, known = CONTINUATIONS[name]
    examples = data.Examples(None if prompt is None else [prompt], None, [answer], None)
    row = encoding.continuations(examples, loaded[model], most)[0]
    assert decoded(loaded[model], row["input_ids"]) == tokens.split()
    assert row["labels"] == [IGNORED] * known + row["input_ids"][known:]
    assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_padding_comes_after_a_continuation(loaded):
    examples = data.Examples(["the", "the Anna Ben"], None, ["lives", "in the"], None)
    rows = encoding.continuations(examples, loaded["llama"], 32)
    batch = TASKS["causal"].collator(loaded["llama"])(rows)
    assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * 3, [1] * 7]
    assert batch["labels"][0].tolist() == [IGNORED, IGNORED, *rows[0]["input_ids"][2:], *[IGNORED] * 3]


def test_causal_models_must_not_look_ahead(tmp_path):
    """An encoder with a head for words would see what it is to predict."""
    import tinymodels
    from transformers import BertConfig, BertLMHeadModel

    folder = tinymodels.llama(tmp_path / "model")
    config = BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    BertLMHeadModel(config).save_pretrained(folder)
    with pytest.raises(InputError, match="expected one that reads from left to right, found one that looks ahead"):
        loading.load(str(folder), 0, None, loading.CAUSAL)


def test_causal_models_need_an_end_token(tmp_path):
    import tinymodels

    folder = tinymodels.gpt2(tmp_path / "model")
    words, _ = byte_tokenizer("<|end|>")
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|end|>").save_pretrained(folder)
    with pytest.raises(InputError, match="expected a tokenizer with an end token, found none"):
        loading.load(str(folder), 0, None, loading.CAUSAL)


@pytest.mark.parametrize(("model", "kind"), [("llama", loading.CAUSAL), ("t5", loading.SEQ2SEQ)])
def test_no_weight_of_a_model_that_writes_is_made_up(model, kind, tmp_path):
    import tinymodels
    from safetensors.torch import load_file, save_file

    folder = tinymodels.MODELS[model](tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "layer" in name or name.startswith("lm_head"))
    weights.pop(gone)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"expected weights that fit its config.json, found 1 tensors that do not"):
        loading.load(str(folder), 0, None, kind)
