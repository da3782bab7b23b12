"""What a person sees while work goes on: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, soft_wrap=True)
_LINE_EVERY_SECONDS = 10.0


def is_main() -> bool:
    """Whether this process is rank 0 of those that torchrun or srun started, or alone."""
    return os.environ.get("RANK", "0") == "0"


def loading(library: str) -> None:
    """Say on the first rank that a library is imported now, which takes seconds."""
    if is_main():
        say(f"loading {library}")


class Meter:
    """One job's progress in some unit; `update` may be called as often as you like.

    A terminal gets a live bar. Anything else gets a line now and then, and always the last one.
    """

    def __init__(
        self, title: str, total: float, unit: str, bar: Progress | None
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.bar = bar
        self.task: TaskID | None = (
            bar.add_task(title, total=total, note="") if bar else None
        )
        self.first = self.done = 0.0
        self.started = self.last_line = self._measured_from = time.monotonic()
        self._unmeasured = 0

    def begin_at(self, done: float, *, unmeasured: int = 0) -> None:
        """What an earlier run has done already does not count as speed, nor do the first
        `unmeasured` updates from here on, which take what those after them do not: till
        then no speed is told, and no time left.
        """
        self.first = self.done = done
        self.started = self._measured_from = time.monotonic()
        self._unmeasured = unmeasured

    def retotal(self, total: float) -> None:
        """Correct the total, as where it is an estimate that gets better on the way."""
        self.total = total
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, total=total)

    def update(self, done: float, note: str = "") -> None:
        self.done = done
        if self._unmeasured and done < self.total:
            self._unmeasured -= 1
            self.first, self._measured_from = done, time.monotonic()
        speed = self._speed()
        rate = f"{_amount(speed)} {self.unit}/s" if speed is not None else ""
        text = f"{rate} {note}".strip()
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, note=text)
            return
        now = time.monotonic()
        if done >= self.total or now - self.last_line >= _LINE_EVERY_SECONDS:
            self.last_line = now
            share = done / self.total if self.total else 1.0
            line = f"{self.title}: {share:4.0%}  {text}  {self._left(speed)}"
            console.print(line.rstrip(), highlight=False)

    def _speed(self) -> float | None:
        """Units a second; None before anything was measured."""
        if self.done == self.first and self.done:
            return None
        seconds = max(time.monotonic() - self._measured_from, 1e-6)
        return (self.done - self.first) / seconds

    def _left(self, speed: float | None) -> str:
        if speed is None and self.done < self.total:
            return ""
        if self.done >= self.total or not speed or speed < 0:
            return f"took {timedelta(seconds=round(time.monotonic() - self.started))}"
        return f"{timedelta(seconds=round((self.total - self.done) / speed))} left"


@contextmanager
def meter(
    title: str, total: float, unit: str, *, shown: bool = True
) -> Iterator[Meter]:
    """A `Meter` for the body of the `with`.

    `shown=False` keeps it silent: every rank but the first.
    """
    if not shown:
        silent = Progress(disable=True)
        yield Meter(title, total, unit, silent)
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            yield Meter(title, total, unit, bar)
    else:
        yield Meter(title, total, unit, None)


def _amount(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.0f}"


def say(*parts: Any) -> None:
    """A line for the person at the terminal, on standard error."""
    console.print(*parts, highlight=False)
