"""One training run: what it is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

NONE = "not fine-tuned"
EXP, EPS = 2.0, 1.0  # of the D3 score, as in the paper for language understanding (Table 11)


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        data: a name of `data.SOURCES`.
        method: a name of `methods.METHODS`, or NONE.
        share: budget as a share of the base model's scalars; 0 for methods without a budget.
        lr: learning rate of the first step; 0 for NONE.
        seed: of the head, the adapters and the order of the examples.
        exp, eps: of the D3 score; 0 for methods without it.
    """

    data: str
    method: str
    share: float
    lr: float
    seed: int
    exp: float = 0.0
    eps: float = 0.0

    def columns(self) -> dict[str, str]:
        """What a result file calls it by."""
        return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, row: dict[str, str]) -> Job:
        """The run that a row is the result of.

        Raises:
            KeyError, ValueError: a column is missing or no number.
        """
        kinds: dict[str, Any] = {"str": str, "float": float, "int": int}
        return cls(**{each.name: kinds[str(each.type)](row[each.name]) for each in fields(cls)})

    def __str__(self) -> str:
        budget = f" {self.share:.1%}" if self.share else ""
        score = f" exp {self.exp:g} eps {self.eps:g}" if (self.exp, self.eps) not in ((0, 0), (EXP, EPS)) else ""
        return f"{self.data}: {self.method}{budget}{score}, lr {self.lr:g}, seed {self.seed}"
