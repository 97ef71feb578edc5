"""What the tests of the comparison by accuracy share: tiny models, words as tokens, texts that give the label away.

All functions stand in the module, so that new processes can load them.
"""

import functools
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.quality import plan, running
from benchmarks.quality.data import Example, Split
from benchmarks.quality.jobs import EPS, EXP, NONE, Job
from benchmarks.quality.ledger import Ledger
from benchmarks.quality.methods import METHODS
from benchmarks.quality.plan import Preset
from benchmarks.quality.tasks import Task
from benchmarks.workloads import WORKLOADS

PAD, CLS, SEP, UNKNOWN = "[PAD]", "[CLS]", "[SEP]", "[UNK]"
GOOD, BAD, PLAIN = ([f"{kind}{i}" for i in range(20)] for kind in ("good", "bad", "plain"))
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = (PAD, CLS, SEP, UNKNOWN, "Question", "Answer", ":", *GOOD, *BAD, *PLAIN, *NAMES, *map(str, range(10)))
TIMES = ("forward_backward_seconds", "optimizer_seconds", "seconds", "utc")  # columns that differ from run to run
SPREAD = 8.0  # times the deviation of fresh weights, so that few steps are enough to learn


@pytest.fixture(autouse=True)
def one_thread():
    """As the comparison's own processes, and the fastest for models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokenizer():
    """A token for each word, special tokens as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B {SEP}",
        special_tokens=[(word, WORDS.index(word)) for word in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, cls_token=CLS, sep_token=SEP, unk_token=UNKNOWN, eos_token=SEP
    )


def tokenizer_without_padding():
    """As those of causal models are."""
    made = tokenizer()
    made.pad_token = None
    return made


def _spread(model):
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() == 2:
                param *= SPREAD
    return model


def make_bert():
    """Good and bad words lie apart, as a model that was trained before would have them."""
    made = _spread(WORKLOADS["tiny-bert"].make())
    with torch.no_grad():
        rows = made.get_input_embeddings().weight
        for words, side in ((GOOD, 1.0), (BAD, -1.0)):
            rows[WORDS.index(words[0]) : WORDS.index(words[-1]) + 1] += side * torch.linspace(-2, 2, rows.shape[1])
    return made


def make_llama():
    return _spread(WORKLOADS["tiny-llama"].make())


def _text(label, draw, length):
    return " ".join(draw.choice(GOOD if label else BAD) for _ in range(length))


def reviews():
    """One text each: good words or bad ones, of 2 to 9."""
    draw = random.Random(0)
    made = [Example(_text(i % 2, draw, 2 + i * 7 % 8), "", i % 2) for i in range(96)]
    return Split(made[:64], made[64:80], made[80:])


def pairs():
    """Two texts each; the second one gives the label away."""
    draw = random.Random(1)
    made = [Example(" ".join(draw.choices(PLAIN, k=1 + i % 3)), _text(i % 2, draw, 4), i % 2) for i in range(80)]
    return Split(made[:48], made[48:64], made[64:])


def numbers():
    """A number's name among other words, to be written as a digit."""
    draw = random.Random(2)
    made = []
    for i in range(80):
        words = [NAMES[i % 10], *draw.choices(PLAIN, k=i % 4)]
        draw.shuffle(words)
        made.append(Example(" ".join(words), "", str(i % 10)))
    return Split(made[:56], made[56:64], made[64:])


TEXTS = Task(reviews, make_bert, tokenizer, False, steps=12, batch=8, tokens=16, validation=16, test=16, fisher=8)
PAIRS = replace(TEXTS, load=pairs, tokens=12)
NUMBERS = Task(
    numbers, make_llama, tokenizer_without_padding, True, steps=12, batch=8, tokens=16, validation=8, test=8, fisher=8
)
PRESET = Preset({"reviews": TEXTS, "asdiv": NUMBERS}, 2, (0.05,), 3, True, (0.0, 1.0), (1.0,))
FEW = Preset(
    {"reviews": replace(TEXTS, steps=4), "asdiv": replace(NUMBERS, steps=4)}, 2, (0.05,), 3, False, (0.0, 1.0), (1.0,)
)
WAYS, MATH = ("full", "ID3", "Pfeiffer + ID3"), ("ID3",)  # without PEFT, which takes long to import


def few_ways(patch):
    """Leaves few methods to a comparison, so that a whole one is short."""
    patch.setattr(plan, "METHODS", {name: METHODS[name] for name in WAYS})
    patch.setattr(plan, "MATH", MATH)
    patch.setenv("OMP_NUM_THREADS", "1")  # which the comparison sets for its processes, and leaves set


def compare(path, *given, preset=FEW):
    """Makes the missing runs of a comparison of few methods as the command does, into a file.

    What it gives is what the file holds afterwards.
    """
    from benchmarks.quality.__main__ import arguments, make

    with pytest.MonkeyPatch.context() as patch:
        few_ways(patch)
        make(preset, Ledger(path), arguments(["--csv", str(path), *given]))
    return Ledger(path)


def unreadable():
    """In place of a data set."""
    raise RuntimeError("no such file")


def job(method, data="reviews", share=0.05, lr=1e-2, seed=0):
    """A run as `plan` makes it."""
    if method == NONE:
        return Job(data, NONE, 0.0, 0.0, seed)
    way = METHODS[method]
    exp, eps = (EXP, EPS) if way.scored else (0.0, 0.0)
    return Job(data, method, share if way.budget else 0.0, lr, seed, exp, eps)


@functools.cache
def trained(method, data):
    """What a run of TEXTS ("reviews") or NUMBERS ("asdiv") leaves; all tests share it, none changes it."""
    lr = 1e-3 if method == "full" else 1e-2
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(running, "CACHE", Path(folder))
        return running.train(job(method, data, lr=lr), PRESET.tasks[data])


def untimed(row):
    """What is the same whenever a run is made again."""
    return {name: value for name, value in row.items() if name not in TIMES}


def add_ten(path, first, results):
    """Adds rows of ten seeds to a ledger, one by one; for a process of its own."""
    ledger = Ledger(path)
    for seed in range(first, first + 10):
        ledger.add(job("ID3", seed=seed), results)
