"""The card's table: models side by side, and beside them the card's own figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from alia_ctx.evaluation.function_calling.remarks import LEGEND, public_names
from alia_ctx.evaluation.function_calling.scores import (
    ROWS,
    Joined,
    Score,
    joined,
    rows,
)

_CARD = "ALIA-40b-fc card"
Scores = Mapping[str, Mapping[str, Score]]  # model -> category -> score


def score_table(scores: Scores) -> Table:
    """Rows in the card's order; of each model the accuracy in percent, its 95% interval,
    and right answers of all. A category whose row lacks another one stands below, by
    itself. No cell is folded.
    """
    table = Table(title="BFCL", caption=f"card: of ALIA-40b-fc; {LEGEND}")
    table.add_column("metric", no_wrap=True)
    table.add_column("category", no_wrap=True)
    for name in scores:
        table.add_column(_plain(name), justify="right", no_wrap=True)
    table.add_column("card", justify="right", no_wrap=True)
    for cells in _rows(scores):
        table.add_row(*map(_plain, cells))
    if alone := list(_alone(scores)):
        table.add_section()
        for cells in alone:
            table.add_row(*map(_plain, cells))
    return table


def score_tables(scores: Scores, width: int) -> list[Table]:
    """`score_table`, or where it is wider than `width` letters, one of each model."""
    table = score_table(scores)
    console = Console(width=10_000)
    if console.measure(table).maximum <= width:
        return [table]
    return [score_table({name: of_model}) for name, of_model in scores.items()]


def score_markdown(scores: Scores) -> str:
    """The same table as Markdown, which is published: without paths as models' names."""
    names = public_names(scores).values()
    lines: list[Sequence[str]] = [
        ["metric", "category", *names, _CARD],
        ["---", "---", *(["---:"] * (len(scores) + 1))],
        *_rows(scores),
        *_alone(scores),
    ]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', r'\|') for cell in cells)} |"
        for cells in lines
    )


def read_scores(document: Any) -> dict[str, dict[str, Score]] | None:
    """Model -> category -> score of what `evaluate-calls --json` prints, or of a
    `scores.json`; None where a document is neither.
    """
    try:
        if "content" in document:
            document = {"models": {document["content"]["model"]: document["content"]}}
        return {
            str(name): {
                str(category): Score(int(of["right"]), int(of["total"]))
                for category, of in model["categories"].items()
            }
            for name, model in document["models"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _rows(scores: Scores) -> Iterator[list[str]]:
    for cells in zip(*(rows(of_model) for of_model in scores.values()), strict=True):
        row = cells[0][0]
        shown = [_cell(value) for _, value in cells]
        yield [row.name, row.group, *shown, f"{row.card:.1f}"]


def _alone(scores: Scores) -> Iterator[list[str]]:
    for row in ROWS:
        for category in row.categories:
            if any(
                category in of_model and joined(of_model, row.categories) is None
                for of_model in scores.values()
            ):
                shown = [_cell(joined(of, [category])) for of in scores.values()]
                yield [category, f"of {row.name}, {row.group}", *shown, ""]


def _cell(value: Joined | None) -> str:
    if value is None:
        return "not measured"
    low, high = (100 * bound for bound in value.interval)
    counts = f"{value.right}/{value.total}"
    return f"{100 * value.accuracy:.1f} [{low:.1f}, {high:.1f}] {counts}"


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    return text.replace("[", r"\[")
