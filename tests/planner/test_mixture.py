"""The table of a mixture has one basis, and what is not known is shown as not known."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from alia_ctx.planner.mixture import (
    Mixture,
    MixtureSource,
    mixture_table,
    readings_table,
    remarks,
)


def cells(table: Table) -> dict[str, list[str]]:
    console = Console(width=200, no_color=True)
    with console.capture() as shown:
        console.print(table)
    rows = [line.strip("│ ").split("│") for line in shown.get().splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


WHOLE = MixtureSource("a", 100, tokens=1_000)
HALF = MixtureSource("b", 100, tokens=5_000, sampling=0.5)
CAPPED = MixtureSource("c", 200, tokens=2_000, most=20)
UNKNOWN = MixtureSource("d", None)


def test_tokens_are_of_an_epoch_as_conversations_are() -> None:
    table = cells(mixture_table(Mixture([WHOLE, HALF, CAPPED], 10, 1), "fc"))
    assert table["a"][:4] == ["100", "", "58.82%", "1,000"]
    assert table["b"][:4] == ["50", "", "29.41%", "~2,500"]
    assert table["c"][:4] == ["20", "", "11.76%", "~200"]
    assert table["sum"][:4] == ["170", "", "100%", "~3,700"]
    held_out = cells(mixture_table(Mixture([WHOLE], 10, 1, held_out=10), "fc"))
    assert held_out["a"] == ["90", "", "100.00%", "~900", "not stated", "10"]


def test_nothing_is_held_out_of_what_has_no_candidates() -> None:
    text = MixtureSource("text", 300, tokens=9_000, candidates=0)
    table = cells(mixture_table(Mixture([WHOLE, text], 10, 1, held_out=10), "fc"))
    assert table["a"][0] == "90" and table["a"][5] == "10"
    assert table["text"][0] == "300" and table["text"][5] == "0"


def test_what_is_not_known_is_not_none() -> None:
    mixture = Mixture([WHOLE, UNKNOWN], 10, 1, held_out=5, published={"updates": 3})
    table = cells(mixture_table(mixture, "fc"))
    assert table["d"][:4] == ["?", "", "?", "not tokenised"]
    assert table["a"][2] == "?" and table["a"][5] == "?"
    assert table["sum"] == ["?", "", "?", "? (950 known)", "", "?"]
    readings = cells(readings_table(mixture))
    assert readings["this configuration"][:3] == ["10", "1", "?"]
    assert not any(name.startswith("published") for name in readings)
    [line] = remarks(mixture)
    assert line.startswith("d: not tokenised")
