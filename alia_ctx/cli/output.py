"""What commands print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

# A file or a pipe has no width of its own, and nothing is cut there.
_WIDEST = 1000


def print_table(table: Table) -> None:
    """A table on the terminal; in a file or a pipe as wide as it is, with nothing cut."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDEST)
    console.print(table)


def terminal_width() -> int | None:
    """Columns of the terminal on standard output; None where that is a file or a pipe."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else None


def print_whole(table: Table) -> None:
    """A table as wide as it is, whatever the terminal: no cell is cut."""
    from rich.console import Console

    Console(width=_WIDEST, soft_wrap=True).print(table)


_documents: ContextVar[list[str] | None] = ContextVar("documents", default=None)


@contextmanager
def printed_at_the_end() -> Iterator[None]:
    """Within it `print_json` prints nothing before the end, which may be a `typer.Exit`;
    an error in place of one is told alone, with no document of a success beside it.
    """
    documents: list[str] = []
    token = _documents.set(documents)
    try:
        yield
    except typer.Exit:
        typer.echo("\n".join(documents), nl=bool(documents))
        raise
    else:
        typer.echo("\n".join(documents), nl=bool(documents))
    finally:
        _documents.reset(token)


def print_json(document: Any, *, compact: bool = False) -> None:
    """A document for other programs, on standard output, where nothing else is printed.
    `compact`: on one line, keys sorted.
    """
    style: dict[str, Any] = {"sort_keys": True} if compact else {"indent": 1}
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, **style)
    documents = _documents.get()
    if documents is None:
        typer.echo(text)
    else:
        documents.append(text)
