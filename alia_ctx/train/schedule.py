"""The learning rate as a function of the update: every schedule of a stage stands here.

The trainer asks for the rate before each update and hands it to the engine; a resumed
stage asks for the update that it resumes at, so a schedule remembers nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from alia_ctx.config.run import StageConfig


class Schedule(Protocol):
    """A rate for every update of a stage.

    A schedule is made of plain numbers (the peak, the stage's length in updates,
    warm-up updates), so that equal settings give equal rates on every rank and after
    every resume.
    """

    def rate(self, update: int) -> float:
        """The learning rate of `update`, counted from 0: so many updates were done
        before it.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """The same rate from the first update to the last, without warm-up."""

    peak: float

    def rate(self, update: int) -> float:
        return self.peak


def stage_schedule(stage: StageConfig) -> Schedule:
    """The schedule that a stage's settings ask for; `stage.updates` is its length."""
    return Constant(stage.learning_rate)
