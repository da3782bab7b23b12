"""How long the parts of a stage take, by which it stops in time before a limit."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN_EVALUATION = (
    "--exit-before counts the time of evaluations from the second on: how long the first "
    "takes is not known yet, leave room for it"
)


@dataclass
class Pace:
    """The longest update and evaluation of this process, in seconds.

    `past_evaluation` is of an earlier process, whose layout may have been another: it
    counts until one is measured here. 0.0 stands for what is not known.
    """

    update: float = 0.0
    evaluation: float = 0.0
    past_evaluation: float = 0.0

    def updated(self, seconds: float) -> None:
        self.update = max(self.update, seconds)

    def evaluated(self, seconds: float) -> None:
        self.evaluation = max(self.evaluation, seconds)

    def another(self, *, is_evaluated: bool) -> float:
        """Seconds that another update may take, twice the longest of them as none is like
        the other, with its evaluation where it has one.
        """
        evaluation = self.evaluation or self.past_evaluation
        return 2 * self.update + (evaluation if is_evaluated else 0.0)
