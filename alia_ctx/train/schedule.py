"""The learning rate as a function of the update: every schedule of a stage stands here.

The trainer asks for the rate before each update and hands it to the engine; a resumed
stage asks for the update that it resumes at, so a schedule remembers nothing.

Values are those of transformers' `get_*_schedule_with_warmup`, factor
by factor: the rate of update k, counted from 0, is what transformers has at step k. So
with warm-up the first update has rate 0, and the last one of a decay is one step short
of the minimum.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Protocol

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

    def statement(self) -> dict[str, Any]:
        """Its name and numbers, as a checkpoint records them."""
        ...


class _Stated:
    def statement(self) -> dict[str, Any]:
        numbers = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"type": type(self).__name__.lower(), **numbers}


@dataclass(frozen=True)
class Constant(_Stated):
    """The same rate from the first update to the last, after `warmup` updates in which
    it rises from 0.
    """

    peak: float
    warmup: int = 0

    def rate(self, update: int) -> float:
        if update < self.warmup:
            return self.peak * (update / self.warmup)
        return self.peak


@dataclass(frozen=True)
class Decay(_Stated):
    """A rise from 0 over `warmup` updates, then a fall to `minimum` at `updates`, where
    it stays.
    """

    peak: float
    updates: int
    warmup: int = 0
    minimum: float = 0.0

    def rate(self, update: int) -> float:
        if update < self.warmup:
            return self.peak * (update / self.warmup)
        length = max(1, self.updates - self.warmup)
        least = self.minimum / self.peak
        factor = self.fall(min(update - self.warmup, length), length)
        return self.peak * max(0.0, factor * (1 - least) + least)

    def fall(self, done: int, length: int) -> float:
        """1 where the fall begins (`done` 0), 0 where it ends (`length`)."""
        raise NotImplementedError


class Cosine(Decay):
    """Half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts)."""

    def fall(self, done: int, length: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * (done / length)))


class Linear(Decay):
    """A straight line."""

    def fall(self, done: int, length: int) -> float:
        return (length - done) / length


def stage_schedule(stage: StageConfig, updates: int | None = None) -> Schedule:
    """The schedule that a stage's settings ask for.

    updates: how long the stage is; None for what its settings say, where they do.
    """
    spec, peak = stage.schedule, stage.learning_rate
    if updates is None:
        updates = stage.updates
    warmup = spec.warmup_updates(updates)
    if spec.type == "constant":
        return Constant(peak, warmup)
    decay = {"cosine": Cosine, "linear": Linear}[spec.type]
    return decay(peak, updates, warmup, spec.min_learning_rate)
