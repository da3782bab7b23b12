"""What commands print."""

from __future__ import annotations

import json
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


def print_json(document: Any) -> None:
    """A document for other programs, on standard output, where nothing else is printed."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    typer.echo(text)
