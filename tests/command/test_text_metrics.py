"""What generated texts are measured by, and the prompts that they are written after."""

import pytest
import torch
from recipefiles import MODELS
from selective_peft import encoding, loading
from selective_peft.data import Examples
from selective_peft.generating import Search, write
from selective_peft.text_metrics import exact_match, final_letter, final_number, rouge
from tinymodels import word_tokenizer
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7. The answer is 7.", 7.0),
        ("She pays $1,234.50 for it", 1234.5),
        ("from 5 to -3", -3.0),
        ("12.", 12.0),
        ("none", None),
        ("", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("A train needs 3 hours, so the answer is D. A car needs more.", "D"),
        ("the ANSWER IS C or the answer is E", "E"),
        ("So A or C", "C"),
        ("The answer is 12", None),
        ("BAD", None),
        ("", None),
    ],
)
def test_final_letter(text, letter):
    assert final_letter(text) == letter


@pytest.mark.parametrize(
    ("written", "right", "score"),
    [
        ("the answer is 118,558", "118558.0", 1.0),
        ("10.3333", "10.333333333333334", 1.0),
        ("10.33", "10.333333333333334", 0.0),
        ("7 then 8", "7", 0.0),
        ("", "0", 0.0),
        ("The answer is (C)", "C", 1.0),
        ("The answer is (C)", "B", 0.0),
        ("3", "C", 0.0),
    ],
)
def test_exact_match(written, right, score):
    assert exact_match().row(written, right) == {"exact_match": score}


def test_exact_match_is_a_mean():
    assert exact_match().mean(["1", "2", "3", ""], ["1", "2", "4", "5"]) == {"exact_match": 0.5}


def test_rouge_by_hand():
    """4 of 5 words, 2 of 4 pairs, a common subsequence of 3; stemmed and without signs."""
    score = rouge().row("The cats sat here on!", "on the cat sat there")
    # written: the cat sat here on; reference: on the cat sat there
    assert score == pytest.approx({"rouge1": 4 / 5, "rouge2": 2 / 4, "rougeL": 3 / 5})
    assert rouge().mean(["a b", ""], ["a b", "a"]) == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loading.load(str(MODELS["llama"](tmp_path_factory.mktemp("llama"))), 0, None, loading.CAUSAL)


@pytest.mark.parametrize("max_length", [64, 9])
def test_prompts_are_the_beginning_of_what_is_trained_on(max_length, llama):
    """Cut ones are the end of it, after the begin token."""
    texts = ["Anna likes the 3 and 4", "Ben", "Clara and Ben and Anna and Clara likes the"]
    examples = Examples(texts, None, ["7", "1", "2"], None)
    rows = encoding.prompts(examples, llama, max_length)
    whole = encoding.continuations(examples, llama, 64)
    for row, full in zip(rows, whole, strict=True):
        prompt = [token for token, label in zip(full["input_ids"], full["labels"], strict=True) if label == -100]
        assert row["input_ids"] == (prompt if len(prompt) <= max_length else [prompt[0], *prompt[1 - max_length :]])
        assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert (len(rows[2]["input_ids"]) == 9) == (max_length == 9)


def test_prompts_lose_an_end_token(llama, tmp_path):
    """Which some tokenizers put after each text."""
    from tokenizers import processors

    loaded = loading.load(str(MODELS["llama"](tmp_path / "ends")), 0, None, loading.CAUSAL)
    loaded.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    examples = Examples(["Anna likes"], None, ["1"], None)
    assert loaded.tokenizer(["Anna likes"])["input_ids"][0][-1] == 1
    assert encoding.prompts(examples, loaded, 64) == encoding.prompts(examples, llama, 64)


def test_writing_leaves_the_model_as_it_was(llama):
    """Its mode, and the generators of random numbers, so that training goes on as without."""
    import torch

    llama.model.train()
    torch.manual_seed(3)
    examples = Examples(["Anna", "Ben likes the"], None, ["1", "2"], None)
    texts = write(llama, encoding.prompts(examples, llama, 64), Search(2, 5, 1, "bf16"), "test")
    assert llama.model.training
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert len(texts) == 2


def test_rows_of_a_batch_are_written_as_if_alone():
    """Where positions are absolute, what pads a prompt must not move it."""
    words, vocabulary = word_tokenizer(["<pad>", "</s>", "[UNK]"], [*"abcdefghij"], "</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(vocabulary), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.5,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=1,
    )  # fmt: skip
    loaded = loading.Loaded(BartForConditionalGeneration(config).eval(), tokenizer, 64, frozenset(), frozenset())
    rows = [tokenizer(text) for text in ("a b c d e f g h i j a b c d e f g h i j", "b", "c a", "d d d e")]
    alone, together = (write(loaded, rows, Search(1, 8, size, "fp32"), "writing") for size in (1, 4))
    assert together == alone
    assert len(set(alone)) > 1
