"""How good generated texts are: ROUGE for summaries, the final answer for word problems."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUGE = ("rouge1", "rouge2", "rougeL")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
LETTER = re.compile(r"\b[A-E]\b")
CONCLUSION = re.compile(r"answer is", re.IGNORECASE)
TOLERANCE = 1e-3  # of numbers, as LLM-Adapters has it


@dataclass(frozen=True)
class Scorer:
    """What generated texts are measured by.

    Attributes:
        names: of the metrics, the main one first.
        row: generated text, reference -> metrics of this row, each from 0 to 1.
    """

    names: tuple[str, ...]
    row: Callable[[str, str], dict[str, float]]

    def mean(self, written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Means over the rows."""
        rows = [self.row(*pair) for pair in zip(written, references, strict=True)]
        return {name: math.fsum(each[name] for each in rows) / len(rows) for name in self.names}


def rouge() -> Scorer:
    """F-measures of words, pairs of words and longest common subsequences, after stemming; by the package rouge-score.

    Raises:
        ImportError: the package is missing.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, use_stemmer=True)
    return Scorer(
        ROUGE,
        lambda written, reference: {
            name: float(score.fmeasure) for name, score in scorer.score(reference, written).items()
        },
    )


def final_number(text: str) -> float | None:
    """The last number of a text, where commas part thousands; None without any."""
    found = NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None


def final_letter(text: str) -> str | None:
    """The first of the letters A to E after the last "answer is", else the last one of all; None without any."""
    *_, last = CONCLUSION.split(text)
    found = LETTER.findall(last)
    if found:
        return str(found[0] if last != text else found[-1])
    return None


def exact_match() -> Scorer:
    """Whether a text ends in the right number (up to 0.001) or, if the reference is one, letter."""

    def right(written: str, reference: str) -> bool:
        if LETTER.fullmatch(reference):
            return final_letter(written) == reference
        expected, found = final_number(reference), final_number(written)
        return expected is not None and found is not None and abs(expected - found) <= TOLERANCE

    return Scorer(("exact_match",), lambda *pair: {"exact_match": float(right(*pair))})


SCORERS: dict[str, Callable[[], Scorer]] = {"rouge": rouge, "exact_match": exact_match}
