"""The card's table: models side by side, and beside them the card's own figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from alia_ctx.errors import DataError
from alia_ctx.evaluation.function_calling.remarks import (
    LEGEND,
    call_remarks,
    public_names,
    suite_name,
)
from alia_ctx.evaluation.function_calling.scores import (
    ROWS,
    Joined,
    Score,
    joined,
    rows,
)

_CARD = "ALIA-40b-fc card"
_MOST_CASES = 2**53  # that a float counts
Scores = Mapping[str, Mapping[str, Score]]  # model -> category -> score


def score_table(scores: Scores, title: str = "BFCL") -> Table:
    """Rows in the card's order; of each model the accuracy in percent, its 95% interval,
    and right answers of all. A category whose row lacks another one stands below, by
    itself. No cell is folded.
    """
    table = Table(title=title, caption=f"card: of ALIA-40b-fc; {LEGEND}")
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


def score_tables(scores: Scores, width: int, title: str = "BFCL") -> list[Table]:
    """`score_table`, or where it is wider than `width` letters, one of each model."""
    table = score_table(scores, title)
    console = Console(width=10_000)
    if console.measure(table).maximum <= width:
        return [table]
    return [score_table({name: one}, title) for name, one in scores.items()]


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


def calls_markdown(scores: Scores, document: Mapping[str, Any]) -> str:
    """The table as Markdown with its heading, and below it what `call_remarks` says of the
    `document` that the scores are from.
    """
    remarks = "\n".join(f"- {line}" for line in call_remarks(document))
    return (
        f"# {suite_name(document)}\n\n{score_markdown(scores)}\n\n{LEGEND}\n\n{remarks}"
    )


def read_scores(document: Any) -> dict[str, dict[str, Score]] | None:
    """Model -> category -> score of what `evaluate-calls --json` prints, or of a
    `scores.json`; None where a document is neither.

    DataError where it is one with counts that are none: figures of them would be none.
    """
    try:
        if "content" in document:
            document = {"models": {document["content"]["model"]: document["content"]}}
        counts = {
            str(name): {
                str(category): (of["right"], of["total"])
                for category, of in model["categories"].items()
            }
            for name, model in document["models"].items()
        }
    except (KeyError, TypeError, AttributeError):
        return None
    for name, of_model in counts.items():
        for category, (right, total) in of_model.items():
            whole = type(right) is type(total) is int
            if not (whole and 0 <= right <= total and 0 < total < _MOST_CASES):
                raise DataError(
                    f"{name}, {category}: {right!r} right of {total!r} is no score; run "
                    "`alia-ctx evaluate-calls` again"
                )
    return {
        name: {category: Score(*count) for category, count in of_model.items()}
        for name, of_model in counts.items()
    }


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
    low, high = map(_percent, value.interval)
    return f"{_percent(value.accuracy)} [{low}, {high}] {value.right}/{value.total}"


def _percent(share: float) -> str:
    """Halves up, as in the card: 13 of 16 are 81.3 there."""
    return str(Decimal(repr(100 * share)).quantize(Decimal("0.1"), ROUND_HALF_UP))


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    return text.replace("[", r"\[")
