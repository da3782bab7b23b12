"""The card's table: models side by side, and beside them the card's own figures."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from alia_ctx.evaluation.function_calling.scores import (
    ROWS,
    Joined,
    Score,
    joined,
    rows,
)

_CARD = "ALIA-40b-fc card"


def score_table(scores: Mapping[str, Mapping[str, Score]]) -> Table:
    """Rows in the card's order; of each model (name -> scores by category) the accuracy
    in percent, its 95% interval, and right answers of all. A category whose row lacks
    another one stands below, by itself.
    """
    table = Table(title="BFCL", caption="[ ]: 95% intervals")
    table.add_column("metric", no_wrap=True)
    table.add_column("category")
    for name in scores:
        table.add_column(name, justify="right")
    table.add_column(_CARD, justify="right")
    of_models = [rows(of_model) for of_model in scores.values()]
    for cells in zip(*of_models, strict=True):
        row = cells[0][0]
        shown = [_cell(value) for _, value in cells]
        table.add_row(row.name, row.group, *shown, f"{row.card:.1f}")
    alone = [
        (row, category)
        for row in ROWS
        for category in row.categories
        if any(
            category in of_model and joined(of_model, row.categories) is None
            for of_model in scores.values()
        )
    ]
    if alone:
        table.add_section()
    for row, category in alone:
        shown = [_cell(joined(of_model, [category])) for of_model in scores.values()]
        table.add_row(category, f"of {row.name}, {row.group}", *shown, "")
    return table


def _cell(value: Joined | None) -> str:
    if value is None:
        return "not measured"
    low, high = (100 * bound for bound in value.interval)
    counts = f"{value.right}/{value.total}"
    return rf"{100 * value.accuracy:.1f} \[{low:.1f}, {high:.1f}] {counts}"
