"""The command that looks at a stage while it trains: watch. Wiring only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alia_ctx.cli.arguments import finite, path
from alia_ctx.report.screen import messages, update_line, watch_screen

if TYPE_CHECKING:
    from alia_ctx.workflow.watching import Watched

_FIRST_LINES = 10  # of what is in the log already, in a pipe


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(watch)


def watch(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run's YAML, its output directory, or a metrics.jsonl from anywhere.",
            show_default=False,
            parser=path,
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, after a YAML.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Name of the stage (default: the last at work).")
    ] = None,
    every: Annotated[
        float,
        typer.Option(help="Seconds between two looks.", min=0.1, callback=finite),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="A line an update, as in a pipe.")
    ] = False,
) -> None:
    """Look at a stage while it trains: loss, speed, where time goes, memory, ranks,
    checkpoints, messages, evaluations. Ctrl-C ends the looking, not the training.
    """
    from rich.console import Console
    from rich.live import Live

    from alia_ctx.workflow.watching import find_watched

    watched = find_watched(run, overrides or (), stage)
    console = Console()
    if plain or not console.is_terminal:
        with suppress(KeyboardInterrupt):
            _follow(watched, every, once=once)
        return
    if once:
        console.print(watch_screen(watched.now()))
        return
    with (
        suppress(KeyboardInterrupt),
        Live(watch_screen(watched.now()), console=console, screen=True) as live,
    ):
        while True:
            time.sleep(every)
            live.update(watch_screen(watched.now()), refresh=True)


def _follow(watched: Watched, every: float, *, once: bool) -> None:
    """Print what is new, until the stage is finished or silent for long. An update that is
    done again after a resume is new: it has another line.
    """
    shown: dict[int, Mapping[str, Any]] = {}
    told: set[str] = set()
    since = time.monotonic()
    while True:
        now = watched.now()
        lines = [line for line in now.lines if shown.get(line["update"]) != line]
        for line in lines if shown else lines[-_FIRST_LINES:]:
            if line["update"] in shown:
                typer.echo(f"note: update {line['update']:,} was done again")
            typer.echo(update_line(now, line))
        shown |= {line["update"]: line for line in lines}
        for text in dict.fromkeys(messages(now)):
            if text not in told:
                typer.echo(f"note: {text}")
        told |= set(messages(now))
        since = time.monotonic() if lines else since
        silent = now.age(datetime.now(UTC))
        if silent is None:  # no line, or none that says when
            silent = time.monotonic() - since
        if now.finished:
            typer.echo(f"{now.name}: all {now.updates:,} updates are done")
        elif silent > now.patience:
            again = f"; {now.unsaved}: training does them again" if now.unsaved else ""
            typer.echo(f"{now.name}: no line for {silent / 60:.0f} minutes{again}")
        elif not once:
            time.sleep(every)
            continue
        elif now.unsaved:
            typer.echo(f"{now.name}: {now.unsaved}")
        return
