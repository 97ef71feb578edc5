"""Examples as tokens and in batches, and how answers are counted, by hand."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tinyquality import NUMBERS, PAIRS, SEP, TEXTS, WORDS, one_thread, tokenizer  # noqa: F401
from torch import nn

from benchmarks.quality import batches
from benchmarks.quality.asking import ask
from benchmarks.quality.batches import GROUP, by_length, collated, in_random_order, prompts
from benchmarks.quality.data import Example
from benchmarks.quality.tasks import IGNORED, Encoded, encoded

PAD = 0


def lengths(*found):
    """Examples with so many tokens, without answers."""
    return Encoded([[4 + i] * length for i, length in enumerate(found)], [[] for _ in found], [None] * len(found))


def words(ids):
    return [WORDS[i] for i in ids]


@pytest.mark.parametrize("task", [TEXTS, PAIRS, NUMBERS], ids=["texts", "pairs", "numbers"])
def test_parts_have_no_more_than_asked_for_and_are_read_once(task):
    parts = encoded(replace(task, validation=5, test=3))
    split = task.load()
    assert parts.train.examples == split.train
    assert parts.validation.examples == split.validation[:5]
    assert parts.test.examples == split.test[:3]
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [len(split.train), 5, 3]
    assert encoded(replace(task, validation=5, test=3)) is parts
    assert parts.tokenizer.pad_token_id is not None


def test_texts_are_cut_at_the_end():
    part = encoded(replace(TEXTS, tokens=5)).train
    for ids, example in zip(part.prompts, part.examples, strict=True):
        assert words(ids) == ["[CLS]", *example.text.split()[:3], SEP]


def test_of_two_texts_the_second_is_cut():
    part = encoded(replace(PAIRS, tokens=8)).train
    for ids, example in zip(part.prompts, part.examples, strict=True):
        first, second = example.text.split(), example.second.split()
        assert words(ids) == ["[CLS]", *first, SEP, *second[: 8 - 3 - len(first)], SEP]
    assert {len(ids) for ids in part.prompts} == {8}


def test_a_prompt_is_cut_at_its_beginning_and_an_answer_never():
    part = encoded(NUMBERS).train
    short = encoded(replace(NUMBERS, tokens=6)).train
    for number, example in enumerate(part.examples):
        assert words(part.prompts[number]) == ["Question", ":", *example.text.split(), "Answer", ":"]
        assert words(part.answers[number]) == [example.answer, SEP]
        assert short.prompts[number] == part.prompts[number][-4:]
        assert short.answers[number] == part.answers[number]
        assert short.length(number) == 6


def test_labels_of_a_causal_batch_are_the_answers_only():
    part = encoded(NUMBERS).train
    numbers = [3, 0, 10]
    batch = collated(part, numbers, PAD, causal=True)
    longest = max(part.length(i) for i in numbers)
    for row, i in enumerate(numbers):
        begin, end = len(part.prompts[i]), part.length(i)
        fill = longest - end
        assert batch["input_ids"][row].tolist() == part.prompts[i] + part.answers[i] + [PAD] * fill
        assert batch["attention_mask"][row].tolist() == [1] * end + [0] * fill
        assert batch["labels"][row].tolist() == [IGNORED] * begin + part.answers[i] + [IGNORED] * fill
    assert len({part.length(i) for i in numbers}) > 1  # some are padded


def test_labels_of_an_encoder_are_the_classes():
    part = encoded(TEXTS).train
    batch = collated(part, [1, 2, 5, 7], PAD, causal=False)
    assert batch["labels"].tolist() == [1, 0, 1, 1]
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["attention_mask"].sum(1).tolist() == [len(part.prompts[i]) for i in (1, 2, 5, 7)]


def test_prompts_are_padded_at_the_left_and_without_answers():
    part = encoded(NUMBERS).train
    numbers = [0, 3]
    batch = prompts(part, numbers, PAD)
    longest = max(len(part.prompts[i]) for i in numbers)
    for row, i in enumerate(numbers):
        fill = longest - len(part.prompts[i])
        assert batch["input_ids"][row].tolist() == [PAD] * fill + part.prompts[i]
        assert batch["attention_mask"][row].tolist() == [0] * fill + [1] * len(part.prompts[i])
    assert set(batch) == {"input_ids", "attention_mask"}


def epoch_of(count, size):
    """Batches in which each example comes once at most: what no full batch is made of is left out."""
    return sum(len(range(begin, min(begin + GROUP * size, count))) // size for begin in range(0, count, GROUP * size))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=120), st.data(), st.integers(0, 5))
def test_each_example_once_before_any_comes_again(found, draw, seed):
    part = lengths(*found)
    size = draw.draw(st.integers(1, len(found)))
    order, count = in_random_order(part, size, seed), epoch_of(len(found), size)
    for _ in range(2):
        drawn = list(itertools.chain(*itertools.islice(order, count)))
        assert len(drawn) == len(set(drawn)) == count * size
        assert len(found) - len(drawn) < size
        assert set(drawn) <= set(range(len(found)))


def test_the_same_seed_the_same_order_and_another_one_another():
    part = lengths(*range(1, 65))
    drawn = {seed: list(itertools.islice(in_random_order(part, 4, seed), 40)) for seed in (0, 1)}
    assert list(itertools.islice(in_random_order(part, 4, 0), 40)) == drawn[0] != drawn[1]
    assert drawn[0][:16] != drawn[0][16:32]  # each time in another order
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert list(itertools.islice(in_random_order(part, 4, 0), 40)) == drawn[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_hold_examples_of_like_length():
    part = lengths(*(1 + i * 37 % 64 for i in range(64)))
    for numbers in itertools.islice(in_random_order(part, 4, 0), 16):  # one group
        found = [part.length(i) for i in numbers]
        assert max(found) - min(found) == 3


def test_more_per_batch_than_there_are_is_refused():
    with pytest.raises(ValueError, match="size: expected at most 3 examples per batch, got 4"):
        next(in_random_order(lengths(1, 2, 3), 4, 0))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=70), st.integers(1, 9))
def test_short_ones_first_and_all_of_them_once(found, size):
    part = lengths(*found)
    drawn = list(by_length(part, size))
    flat = list(itertools.chain(*drawn))
    assert sorted(flat) == list(range(len(found)))
    assert [part.length(i) for i in flat] == sorted(found)
    assert {len(numbers) for numbers in drawn[:-1]} <= {size}


class Fake(nn.Module):
    """Answers as it is told: the loss of a batch is the mean of its rows' first tokens, or of a token's for each label.

    What it writes after a prompt is at the place of the prompt's first token.
    """

    def __init__(self, classes=None, writes=None):
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(1))
        self.classes, self.writes = classes, writes

    def forward(self, input_ids, attention_mask, labels):
        first = input_ids[:, 0]
        if labels.dim() == 1:
            logits = torch.tensor([[-side, side] for side in (self.classes[i] for i in first.tolist())])
            return SimpleNamespace(loss=first.float().mean(), logits=logits)
        weight = (labels != IGNORED).float() * first[:, None]
        return SimpleNamespace(loss=weight.sum() / (labels != IGNORED).sum(), logits=None)

    def generate(self, input_ids, attention_mask, do_sample, max_new_tokens, pad_token_id, eos_token_id):
        assert not do_sample
        assert input_ids[:, -1].all()  # nothing is padded where it goes on
        begins = [row[mask.bool()][0].item() for row, mask in zip(input_ids, attention_mask, strict=True)]
        rows = [[WORDS.index(word) for word in self.writes[i].split()][:max_new_tokens] for i in begins]
        longest = max(map(len, rows))
        more = torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows])
        return torch.cat([input_ids, more], dim=1)


def test_accuracy_and_loss_over_batches_of_different_sizes(monkeypatch):
    monkeypatch.setattr(batches, "GROUP", 1)
    monkeypatch.setattr("benchmarks.quality.asking.BATCH", 3)
    part = replace(lengths(1, 2, 3, 4), examples=[Example("", "", label) for label in (1, 0, 1, 0)])
    found = ask(Fake(classes={4: 2.0, 5: -1.0, 6: -3.0, 7: -1.0}), part, tokenizer(), causal=False)
    assert found.accuracy == 0.75
    assert math.isclose(found.loss, (4 + 5 + 6 + 7) / 4)


def test_what_is_written_counts_by_its_first_number(monkeypatch):
    monkeypatch.setattr("benchmarks.quality.asking.BATCH", 2)
    answers = ["7", "7", "3", "5", "2"]
    part = Encoded(
        [[40 + i] * (1 + i % 3) for i in range(5)],
        [[9, 9], [9], [9, 9, 9], [9], [9]],
        [Example("", "", each) for each in answers],
    )
    wrote = dict(zip(range(40, 45), ("six 7 5 [SEP]", "5 7 [SEP]", "3", "five [SEP]", "2 [SEP] 3"), strict=True))
    found = ask(Fake(writes=wrote), part, tokenizer(), causal=True)
    assert found.accuracy == 3 / 5
    assert math.isclose(found.loss, (2 * 40 + 41 + 3 * 42 + 43 + 44) / 8)  # each token of an answer counts the same


@pytest.mark.parametrize("task", [TEXTS, NUMBERS], ids=["texts", "numbers"])
def test_padding_changes_no_loss(task):
    """To rounding: bfloat16 has 8 bits."""
    parts, model = encoded(task), task.model(0)
    model.set_attn_implementation("eager")
    together = ask(model, parts.validation, parts.tokenizer, task.causal)
    losses, tokens = 0.0, 0
    for i in range(len(parts.validation)):
        one = Encoded(*([getattr(parts.validation, name)[i]] for name in ("prompts", "answers", "examples")))
        count = len(one.answers[0]) if task.causal else 1
        losses += ask(model, one, parts.tokenizer, task.causal).loss * count
        tokens += count
    assert together.loss == pytest.approx(losses / tokens, rel=0.01)
