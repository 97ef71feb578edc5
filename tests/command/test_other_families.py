"""The command on the families that the tests of the tasks do not train: RoBERTa, DeBERTa-v3 and Qwen2."""

import math

import pytest
from commands import put_in, report_of, train
from families import tiny
from reviewfiles import write_jsonl
from selective_peft import loading
from selective_peft.tasks import TASKS
from tinymodels import WORDS, llama_tokenizer, tagged, word_tokenizer, written
from transformers import PreTrainedTokenizerFast

CASES = {
    "roberta": ("token", ["B-LOC", "B-PER", "O"]),
    "deberta-v3": ("token", ["B-LOC", "B-PER", "O"]),
    "qwen2": ("causal", None),
}


def encoder_tokenizer():
    words, _ = word_tokenizer(["[UNK]", "[PAD]", "[SEP]"], WORDS, "[SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]", model_max_length=28
    )


@pytest.mark.parametrize("family", CASES)
def test_a_family_through_the_command(family, tmp_path):
    """Its budget is spent, and what is saved belongs into the base model, all of it."""
    task, classes = CASES[family]
    folder = tmp_path / "base"
    tiny(family).save_pretrained(folder)
    (llama_tokenizer()[0] if task == "causal" else encoder_tokenizer()).save_pretrained(folder)
    rows = written(40) if task == "causal" else tagged(40)
    more = ["--task", task, *(["--text-column", "text"] if task == "causal" else [])]
    output = tmp_path / "out"
    assert train(folder, write_jsonl(tmp_path / "rows.jsonl", rows), output, *more, budget=150) == 0
    report = report_of(output)
    assert report["selected"] == 150
    assert report["classes"] == classes
    assert math.isfinite(report["metrics"]["fine_tuned"]["loss"])
    put_in(loading.load(str(folder), 0, classes, TASKS[task].kind).model, output / "delta")
