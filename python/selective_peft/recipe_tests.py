"""The tests of a recipe: what they are measured by, and what a model writes in those whose answers are generated."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selective_peft.data import Examples, Parts
from selective_peft.fitting import Trained
from selective_peft.generating import Search, write
from selective_peft.loading import Loaded
from selective_peft.metrics import Measure
from selective_peft.recipe_options import Chosen
from selective_peft.tasks import MEASURES, Task
from selective_peft.text_metrics import SCORERS, Scorer

BEFORE, AFTER = "not_fine_tuned", "fine_tuned"


@dataclass
class Written:
    """Tests in which a model writes the answers.

    Attributes:
        scorer: says how good they are.
        examples: test -> prompts with right answers.
        texts: when -> test -> what was written.
    """

    scorer: Scorer
    examples: Mapping[str, Examples]
    texts: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def run(self, loaded: Loaded, task: Task, options: argparse.Namespace, when: str) -> None:
        """Lets the model write in each test; `when` is `BEFORE` or `AFTER` training."""
        assert task.unanswered is not None
        search = Search(options.beams, options.new_tokens, options.test_batch_size, options.precision)
        self.texts[when] = {
            name: write(loaded, task.unanswered(examples, loaded, options.max_length), search, name)
            for name, examples in self.examples.items()
        }

    def report(self) -> dict[str, Any]:
        """Test -> rows and metrics before, if the tests were run then, and after training."""
        scores = {
            when: {name: self.scorer.mean(texts, self.examples[name].labels) for name, texts in tests.items()}
            for when, tests in self.texts.items()
        }
        return {
            name: {"rows": len(examples), **{when: found[name] for when, found in scores.items()}}
            for name, examples in self.examples.items()
        }

    def save(self, path: Path) -> None:
        """A JSON line for each answer: test, row from 1 on, when, what was written, what is right, the metrics."""
        with path.open("w", encoding="utf-8") as file:
            for when, tests in self.texts.items():
                for name, texts in tests.items():
                    for row, pair in enumerate(zip(texts, self.examples[name].labels, strict=True), 1):
                        about = {"test": name, "row": row, "when": when, "written": pair[0], "right": pair[1]}
                        file.write(json.dumps({**about, **self.scorer.row(*pair)}, ensure_ascii=False) + "\n")


def scorer(chosen: Chosen | None) -> Scorer | None:
    """What a recipe's tests are measured by, if their answers are to be generated.

    Raises:
        ImportError: a package that the metric needs is missing.
    """
    return None if chosen is None or chosen.content.answer is None else SCORERS[chosen.content.metric]()


def measure(chosen: Chosen | None, task: Task) -> Callable[[Sequence[str] | None], Measure]:
    """What evaluations are measured by: the recipe's metric, or the task's."""
    return task.measure if chosen is None else MEASURES.get(chosen.content.metric, task.measure)


def report(chosen: Chosen | None, parts: Parts, tests: Written | None, trained: Trained) -> dict[str, Any]:
    """What metrics.json says of a recipe and its tests; nothing without one."""
    if chosen is None:
        return {}
    found = measured(trained, parts.tests) if tests is None else tests.report()
    for name, examples in parts.tests.items():
        found[name]["rows_seen_in_training"] = parts.seen(examples)
    names = () if tests is None else tests.scorer.names
    return {
        "recipe": chosen.report(),
        "rows_left_out": parts.left_out,
        "tests": found,
        "tests_mean": means(found, names),
    }


def measured(trained: Trained, examples: Mapping[str, Examples]) -> dict[str, Any]:
    """The same report of tests without anything to write."""
    return {
        name: {"rows": len(examples[name]), BEFORE: before, AFTER: after}
        for name, (before, after) in trained.tests.items()
    }


def means(tests: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """When -> metric -> its mean over the tests, each counting the same; nothing for a single one."""
    if len(tests) < 2 or not names:
        return {}
    return {
        when: {name: sum(test[when][name] for test in tests.values()) / len(tests) for name in names}
        for when in (BEFORE, AFTER)
        if all(when in test for test in tests.values())
    }
