"""A stage under way as a screen of a terminal, and as lines for a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from alia_ctx.report.wall_time import (
    is_number,
    seconds_for,
    shares_of_time,
    update_seconds,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"
_SILENCE = 600.0  # seconds without a line after which nothing is expected, at least
_RECENT = 64  # updates that averages are taken over
_SHOWN = 6  # messages, checkpoints, evaluations


@dataclass(frozen=True)
class WatchedStage:
    """What the files of a stage say of it now.

    Args:
        run, name: as they are called; the run's name may be its folder's.
        lines: of the log, in order.
        updates: of the whole stage; None where only a log is at hand.
        saved: updates that the newest checkpoint has; None where no folder of
            checkpoints is at hand, so that the log alone says how far the stage is.
        checkpoints: name -> seconds since the epoch at which it was made.
        unfinished, damaged: names of checkpoints that are being written, or were set
            aside.
        messages: what was said of the log's state.
        results: names of evaluations that are kept.
    """

    run: str
    name: str
    lines: Sequence[Mapping[str, Any]]
    updates: int | None = None
    saved: int | None = None
    checkpoints: Mapping[str, float] = field(default_factory=dict)
    unfinished: Sequence[str] = ()
    damaged: Sequence[str] = ()
    messages: Sequence[str] = ()
    results: Sequence[str] = ()

    @property
    def last(self) -> Mapping[str, Any]:
        return self.lines[-1] if self.lines else {}

    @property
    def done(self) -> int:
        return int(self.last.get("update", 0))

    @property
    def finished(self) -> bool:
        """Whether all updates are done, and saved where that can be told."""
        done = self.done if self.saved is None else self.saved
        return self.updates is not None and done >= self.updates

    @property
    def unsaved(self) -> str:
        """`updates 4 to 5 are not saved` of a log that is at its end; nothing else."""
        if self.updates is None or self.finished or self.done < self.updates:
            return ""
        first = (self.saved or 0) + 1
        if first == self.done:
            return f"update {first:,} is not saved"
        return f"updates {first:,} to {self.done:,} are not saved"

    def is_silent(self, now: datetime) -> bool:
        """Whether a stage at work would have written another line since its last; a line
        without a time is of long ago.
        """
        age = self.age(now)
        return age is None or age > self.patience

    @property
    def patience(self) -> float:
        """Seconds without a line after which none is expected."""
        return max(_SILENCE, 20 * (update_seconds(self.lines) or 0.0))

    def age(self, now: datetime) -> float | None:
        """Seconds since the last line; None where it has no time."""
        try:
            return (
                now - datetime.fromisoformat(str(self.last["time"]))
            ).total_seconds()
        except (KeyError, ValueError, TypeError):
            return None

    def numbers(self, name: str) -> list[float]:
        """What the lines have of a key, finite numbers alone."""
        lines = (line for line in self.lines if is_number(line.get(name)))
        return [float(line[name]) for line in lines]

    def seconds_left(self) -> float | None:
        """With saves and evaluations; None where it is not known."""
        if self.updates is None:
            return None
        return seconds_for(self.updates - self.done, self.lines)


def watch_screen(stage: WatchedStage, now: datetime | None = None) -> RenderableType:
    """The screen: loss, speed, where time goes, memory, ranks, checkpoints, messages and
    evaluations.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    now = now or datetime.now(UTC)
    parts: list[RenderableType] = [_figures(stage), _times(stage)]
    for title, listed in (
        ("checkpoints", _checkpoints(stage, now)),
        ("evaluations", _evaluations(stage)),
        ("messages", messages(stage)),
    ):
        text = "\n".join(listed[-_SHOWN:]) or "none"
        parts.append(Panel(Text(text), title=title, title_align="left"))
    heading = Text(_heading(stage, now))  # names in brackets are no markup
    return Panel(Group(*parts), title=heading, title_align="left")


def _heading(stage: WatchedStage, now: datetime) -> str:
    of = "" if stage.updates is None else f" of {stage.updates:,}"
    words = [f"{stage.run}, stage {stage.name}: update {stage.done:,}{of}"]
    if stage.finished:
        words.append("finished")
    elif stage.unsaved:
        words.append(stage.unsaved)
    elif (left := stage.seconds_left()) is not None:
        words.append(f"{_span(left)} left")
    if (age := stage.age(now)) is not None:
        words.append(f"last line {_span(age)} ago")
    host, job = stage.last.get("host"), stage.last.get("job")
    words += [f"on {host}"] if host else []
    words += [f"job {job}"] if job else []
    return ", ".join(words)


def _figures(stage: WatchedStage) -> Table:
    from rich.table import Table

    table = Table(expand=True)
    for name, justify in (("", "left"), ("now", "right"), ("course", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    rows = (
        ("loss", "loss", "{:.4f}"),
        ("gradient norm", "gradient_norm", "{:.3f}"),
        ("learning rate", "learning_rate", "{:.3g}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("s an update", "seconds", "{:.2f}"),
        ("MFU", "mfu", "{:.1%}"),
        ("imbalance", "imbalance", "{:.3f}"),
        ("memory (GiB)", "memory_gib", "{:.2f}"),
        ("tokens", "tokens", "{:,.0f}"),
    )
    for title, key, form in rows:
        if values := stage.numbers(key):
            table.add_row(title, form.format(values[-1]), spark(values))
    if (ranks := _ranks(stage)) is not None:
        table.add_row("ranks", f"{ranks:,}", "")
    return table


def _ranks(stage: WatchedStage) -> int | None:
    whole = stage.last.get("tokens_per_second")
    each = stage.last.get("tokens_per_second_per_rank")
    if not (is_number(whole) and is_number(each)) or not each:
        return None
    return round(float(whole) / float(each))  # type: ignore[arg-type]


def _times(stage: WatchedStage) -> Table:
    """Where the wall time of the last updates went on the first rank, saving and evaluation
    included: in all 100%.
    """
    from rich.table import Table

    shares = shares_of_time(stage.lines[-_RECENT:])
    table = Table(title="share of the wall time", expand=True)
    for name in shares:
        table.add_column(name, justify="right")
    if shares:
        table.add_row(*(f"{share:.1%}" for share in shares.values()))
    return table


def _checkpoints(stage: WatchedStage, now: datetime) -> list[str]:
    # By name, so by update: the folders of a copy are as old as the copy.
    made = sorted(stage.checkpoints.items())
    lines = [f"{name}, {_span(now.timestamp() - at)} ago" for name, at in made]
    lines += [
        f"{name}: is being written, or was not finished" for name in stage.unfinished
    ]
    return [*lines, *(f"{name}: was set aside" for name in stage.damaged)]


def _evaluations(stage: WatchedStage) -> list[str]:
    measured = [line for line in stage.lines if line.get("metrics")]
    lines = [
        f"update {line['update']:,}: "
        + ", ".join(
            f"{name} {_short(value)}" for name, value in line["metrics"].items()
        )
        for line in measured
    ]
    return [*stage.results, *lines]


def messages(stage: WatchedStage) -> list[str]:
    """What a person should know: updates that were skipped, spikes, breaks of the log."""
    lines = list(stage.messages)
    for line in stage.lines:
        if line.get("applied") is False:
            lines.append(f"update {line['update']:,}: skipped, loss {line.get('loss')}")
        if line.get("spike"):
            loss = line.get("loss")
            shown = f"{loss:.4f}" if is_number(loss) else loss
            lines.append(f"update {line['update']:,}: loss {shown} is a spike")
    return lines


def update_line(stage: WatchedStage, line: Mapping[str, Any]) -> str:
    """One update on one line, as a pipe gets it."""
    of = "" if stage.updates is None else f"/{stage.updates}"
    words = [str(line.get("time") or "")[:19].replace("T", " "), stage.name]
    words.append(f"update {line.get('update')}{of}")
    for title, key, form in (
        ("loss", "loss", "{:.4f}"),
        ("grad norm", "gradient_norm", "{:.2f}"),
        ("rate", "learning_rate", "{:.3g}"),
        ("tokens/s", "tokens_per_second", "{:.0f}"),
        ("mfu", "mfu", "{:.3f}"),
        ("GiB", "memory_gib", "{:.2f}"),
    ):
        if is_number(line.get(key)):
            words.append(f"{title} {form.format(line[key])}")
    for name, value in (line.get("metrics") or {}).items():
        words.append(f"{name} {_short(value)}")
    if line.get("applied") is False:
        words.append("skipped")
    if line.get("spike"):
        words.append("spike")
    return "  ".join(filter(None, words))


def spark(values: Sequence[float], width: int = 48) -> str:
    """A curve in one line of text: means of `width` equal parts, lowest to highest."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, size, below in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < below:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"
