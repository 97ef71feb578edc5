"""The paper's own experiments as a table: data, model, metric and hyper-parameters of each; nothing is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

GLUE, CONLL, CNN = "nyu-mll/glue", "eriktks/conll2003", "abisee/cnn_dailymail"
LLM_ADAPTERS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
MATH_TESTS = ("MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP")
CONLL_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)


@dataclass(frozen=True)
class Source:
    """Where the data are.

    Attributes:
        path: repository of the Hub, or where the `files` lie.
        config, revision: of the repository.
        files: split -> file, for data that are plain JSON files.
    """

    path: str
    config: str | None = None
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(part for part in (self.path, self.config, self.revision) if part)


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        source: of the data.
        task: as of `--task`.
        text, pair, label: columns; `pair` may be None.
        classes: names of the classes in the order of their numbers; empty where labels are no classes.
        metric: "matthews", "f1", "accuracy", "correlation", "entity_f1", "rouge" or "exact_match".
        evaluation: the split to evaluate on during training; None: a part of the training rows.
        tests: splits that are evaluated besides, before and after training.
        template: what a text stands in, at its braces.
        answer: column of the tests' answers, if these are generated; then tests are run after training only.
        lrs, full_lrs: learning rates of the paper for selective methods, and the range's ends for full fine-tuning.
        lr, full_lr: the ones that are taken unless --lr says another.
        budgets: those of the paper.
        paper: other options with their values, as Table 11 has them.
        chosen: other options with values that the paper's table does not have.
    """

    source: Source
    task: str
    text: str
    label: str
    metric: str
    lrs: tuple[float, ...]
    lr: float
    budgets: tuple[int | float, ...]
    paper: Mapping[str, Any]
    chosen: Mapping[str, Any]
    pair: str | None = None
    classes: tuple[str, ...] = ()
    evaluation: str | None = "validation"
    tests: tuple[str, ...] = ()
    template: str = "{}"
    answer: str | None = None
    full_lrs: tuple[float, ...] = ()
    full_lr: float | None = None
    train: str = "train"

    def defaults(self, method: str, base: str) -> dict[str, Any]:
        """Options of `selective-peft train` -> values, for a method on a base; those that these two lack, too.

        The learning rate is missing if the paper has none: full fine-tuning has a grid of its own.
        """
        columns = {
            "task": self.task,
            "text_column": self.text,
            "text_pair_column": self.pair,
            "label_column": self.label,
        }
        lr = self.full_lr if (method, base) == ("full", "full") else self.lr
        found = {**columns, **self.paper, **self.chosen, "method": method, **({} if lr is None else {"lr": lr})}
        return {name: value for name, value in found.items() if value is not None}

    def describe(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return asdict(self)


TABLE_11: Mapping[str, Mapping[str, Any]] = {
    "understanding": {"batch_size": 16, "score_exp": 2.0, "score_eps": 1.0},
    "summarization": {"batch_size": 64, "score_exp": 1.0, "score_eps": 1e-3},
    "math": {"batch_size": 4, "score_exp": 1.0, "score_eps": 1.0},
}


def _understanding(**own: Any) -> Recipe:
    """GLUE and CoNLL-2003, which share a column of Table 11."""
    chosen = {"model": "microsoft/deberta-v3-base", "budget": 320_000, **own.pop("chosen")}
    return Recipe(
        lrs=(1e-4, 3e-4, 5e-4, 7e-4),
        lr=5e-4,
        full_lrs=(5e-6, 3e-5),
        full_lr=2e-5,
        budgets=(103_000, 320_000),
        paper=TABLE_11["understanding"],
        chosen=chosen,
        **own,
    )


def _glue(config: str, text: str, pair: str | None, classes: tuple[str, ...], epochs: float, **own: Any) -> Recipe:
    return _understanding(
        source=Source(GLUE, config),
        task="classification" if classes else "regression",
        text=text,
        pair=pair,
        label="label",
        classes=classes,
        chosen={"epochs": epochs, "max_length": own.pop("max_length", 128)},
        **{"metric": "accuracy", **own},
    )


ENTAILMENT = ("entailment", "not_entailment")
RECIPES = {
    "glue/cola": _glue("cola", "sentence", None, ("unacceptable", "acceptable"), 10.0, metric="matthews"),
    "glue/sst2": _glue("sst2", "sentence", None, ("negative", "positive"), 3.0),
    "glue/mrpc": _glue("mrpc", "sentence1", "sentence2", ("not_equivalent", "equivalent"), 10.0, metric="f1"),
    "glue/stsb": _glue("stsb", "sentence1", "sentence2", (), 10.0, metric="correlation"),
    "glue/qqp": _glue("qqp", "question1", "question2", ("not_duplicate", "duplicate"), 3.0, metric="f1"),
    "glue/mnli": _glue(
        "mnli",
        "premise",
        "hypothesis",
        ("entailment", "neutral", "contradiction"),
        3.0,
        evaluation="validation_matched",
        tests=("validation_mismatched",),
    ),
    "glue/qnli": _glue("qnli", "question", "sentence", ENTAILMENT, 3.0, max_length=256),
    "glue/rte": _glue("rte", "sentence1", "sentence2", ENTAILMENT, 10.0, max_length=256),
    "conll2003": _understanding(
        source=Source(CONLL, revision="refs/convert/parquet"),
        task="token",
        text="tokens",
        label="ner_tags",
        classes=CONLL_TAGS,
        metric="entity_f1",
        tests=("test",),
        chosen={"epochs": 5.0, "max_length": 256},
    ),
    "cnn_dailymail": Recipe(
        source=Source(CNN, "3.0.0"),
        task="seq2seq",
        text="article",
        label="highlights",
        metric="rouge",
        tests=("test",),
        template="summarize: {}",
        answer="highlights",
        lrs=(1e-4,),
        lr=1e-4,
        full_lrs=(1e-5,),
        full_lr=1e-5,
        budgets=(100_000, 320_000, 1_000_000),
        paper=TABLE_11["summarization"],
        chosen={
            "model": "google-t5/t5-small",
            "budget": 320_000,
            "epochs": 3.0,
            "max_length": 512,
            "beams": 4,
            "new_tokens": 128,
            "test_batch_size": 64,
        },
    ),
    "math10k": Recipe(
        source=Source(
            LLM_ADAPTERS,
            files={
                "train": "ft-training_set/math_10k.json",
                **{name: f"dataset/{name}/test.json" for name in MATH_TESTS},
            },
        ),
        task="causal",
        text="instruction",
        label="output",
        metric="exact_match",
        evaluation=None,
        tests=MATH_TESTS,
        template=INSTRUCTION,
        answer="answer",
        lrs=(3e-4,),
        lr=3e-4,
        budgets=(0.0625,),  # of LoRA with r = 32: as many scalars as r = 2 has
        paper=TABLE_11["math"],
        chosen={
            "model": "huggyllama/llama-7b",
            "base": "lora",
            "rank": 32,
            "budget": 0.0625,
            "epochs": 3.0,
            "eval_share": 0.012,
            "max_length": 512,
            "precision": "bf16",
            "beams": 1,
            "new_tokens": 256,
            "test_batch_size": 32,
        },
    ),
}
