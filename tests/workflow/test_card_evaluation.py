"""What stands in a model card of what was measured, by the form of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.evaluation.function_calling import (
    Score,
    public_names,
    read_scores,
    score_markdown,
    score_table,
    score_tables,
)
from alia_ctx.hf.model_card import _below
from alia_ctx.identity import IdentityError, sealed
from alia_ctx.workflow.card_evaluation import card_evaluation

SCORES = {"a|b": {"multiple": Score(3, 4), "simple_java": Score(1, 2)}}
LONG = {f"m-update-0000014{i}": SCORES["a|b"] for i in range(3)}
MARKDOWN = score_markdown(SCORES)


def of(tmp_path: Path, text: str) -> str:
    file = tmp_path / "measured"
    file.write_text(text, encoding="utf-8")
    return card_evaluation([file])


def drawn(width: int, scores: dict[str, dict[str, Score]] = SCORES) -> str:
    console = Console(width=1000)
    with console.capture() as capture:
        for table in score_tables(scores, width):
            console.print(table)
    return capture.get()


def test_markdown_stays_as_it_is(tmp_path: Path) -> None:
    text = f"# BFCL\n\n{MARKDOWN}\n\n- data: BFCL v4\n\n```text\n│ x │\n\n│ y │\n```\n\nEnd."
    assert of(tmp_path, text) == text


def test_a_table_that_a_terminal_draws_is_code(tmp_path: Path) -> None:
    table = drawn(100)
    assert "┃" in table
    text = of(tmp_path, f"Words.\n\n{table}\n\nMore.\n\n{table}")
    shown, inside = text.splitlines(), False
    for line in shown:
        if line.startswith("```"):
            inside = not inside
        assert inside == any("\u2500" <= c <= "\u257f" for c in line) or (
            "┃" not in line and "│" not in line
        )
    assert text.count("```text") == 2 and not inside
    assert shown[0] == "Words." and "\nMore.\n" in text


def test_scores_as_json_are_the_table_of_markdown(tmp_path: Path) -> None:
    """Of `--json`, and of the file of scores that is kept beside answers."""
    categories = {
        name: {"right": score.right, "total": score.total}
        for name, score in SCORES["a|b"].items()
    }
    model = {"model": "a|b", "categories": categories}
    for document in ({"models": {"a|b": model}}, sealed({"model": 1}, model)):
        text = of(tmp_path, json.dumps(document))
        assert text.startswith(f"# BFCL\n\n{MARKDOWN}\n\n[ ]: 95% intervals\n")
    for text in ('{"loss": 3}', "[1, 2]", "{}", '{"models": {}}'):
        assert of(tmp_path, text) == f"```json\n{text}\n```"
        assert not read_scores(json.loads(text))
    link = "[a link](https://example.org)"
    assert of(tmp_path, link) == link
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("bytes", "none", "."):
        with pytest.raises(CheckpointError, match="cannot be read as text"):
            card_evaluation([tmp_path / name])


# As `evaluate-calls` printed it before the places went to the terminal alone.
OF_A_SERVED_MODEL = """# BFCL

| metric | category | /home/ann/exports/granja | ALIA-40b-fc card |
| --- | --- | ---: | ---: |
| Multiple AST | Non-Live | 75.0 [30.1, 95.4] 3/4 | 94.5 |

[ ]: 95% intervals

- data: BFCL v4, 4 cases, the first 4 of each category
- /home/ann/exports/granja: template the server's; wrong: no_call 1
- /home/ann/exports/granja: answers and scores in evaluation/calls/_home_ann_granja
"""


def test_places_of_our_own_commands_are_left_out(tmp_path: Path) -> None:
    text = of(tmp_path, OF_A_SERVED_MODEL)
    assert "home" not in text and "answers and scores" not in text
    assert "| metric | category | granja | ALIA-40b-fc card |" in text
    assert "- data: BFCL v4, 4 cases, the first 4 of each category" in text
    assert text.endswith("- granja: template the server's; wrong: no_call 1")
    shown = "Table.\n\nfc was read through transformers\nresults: /scratch/ann/out/x\n"
    assert of(tmp_path, shown) == "Table.\n\nfc was read through transformers"
    own = "See /v1/chat/completions.\n\nresults: 3 of 4 and/or more"
    assert of(tmp_path, own) == own
    document = {
        "notes": ["fc: /scratch/ann/text.txt: is short; see https://x.org/a/b, 3/4"],
        "results": [{"made_from": {"/home/ann/my text": "/home/ann/my text/é.txt"}}],
    }
    text = of(tmp_path, json.dumps(document, ensure_ascii=False))
    found = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert found == {
        "notes": ["fc: text.txt: is short; see https://x.org/a/b, 3/4"],
        "results": [{"made_from": {"my text": "é.txt"}}],
    }


def test_names_that_others_may_read() -> None:
    names = ["BSC-LT/ALIA", "/a/fc/", "/b/fc", "fc", "~/fc", "./x", "..", "runs/hf/x"]
    assert list(public_names(names).values()) == [
        *("BSC-LT/ALIA", "fc", "fc (2)", "fc (3)", "fc (4)", "x", "..", "x (2)"),
    ]


def test_markdown_has_the_rows_of_the_table() -> None:
    lines = MARKDOWN.splitlines()
    assert lines[0] == r"| metric | category | a\|b | ALIA-40b-fc card |"
    assert lines[1] == "| --- | --- | ---: | ---: |"
    assert len(lines) == 2 + 14 + 1
    assert lines[3].startswith(
        "| Multiple AST | Non-Live | 75.0 [30.1, 95.4] 3/4 | 94.5 |"
    )
    assert "| simple_java | of Simple AST, Non-Live |" in lines[-1]


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_cell_is_folded_or_cut(width: int) -> None:
    """One model fits into 80 columns; several that do not stand below one another."""
    whole = {"one": {"multiple": Score(1053, 1053), "live_simple": Score(100, 258)}}
    assert max(map(len, drawn(80, whole).splitlines())) <= 80
    for scores in (whole, LONG):
        text = drawn(width, scores)
        assert "…" not in text
        lines = [line for line in text.splitlines() if "│" in line]
        tables = len(score_tables(scores, width))
        rows = len(score_table({n: s for n, s in list(scores.items())[:1]}).rows)
        assert len(lines) == tables * rows
        assert tables == (1 if scores is whole or width == 200 else 3)


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("a\n\n```sh\n# left open", "```"),
        ("~~~~\n~~~\n```", "~~~~"),
        ("```\n```text is no end of it", "```"),
        ("```` words ``` that are no code", None),
        ("```\ncode\n```", None),
    ],
)
def test_code_ends_with_its_file(tmp_path: Path, text: str, closed: str | None) -> None:
    """Or the next file, and the rest of the card, would be code too."""
    assert of(tmp_path, text) == (text if closed is None else f"{text}\n{closed}")
    measured = tmp_path / "measured"
    both = "\n".join(_below(card_evaluation([measured, measured]) + "\n\n# Next"))
    assert both.endswith("\n\n### Next")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    categories = {"multiple": {"right": 3, "total": 4}}
    document = json.dumps({"models": {"m": {"categories": categories}}})
    assert of(tmp_path, f"\ufeff{document}") == of(tmp_path, document)
    assert of(tmp_path, "\ufeff# Words") == "# Words"


@pytest.mark.parametrize(
    ("right", "total"),
    [
        *(
            ("5", "2"),
            ("-1", "2"),
            ("-5", "-2"),
            ("0", "0"),
            ("1.7", "2"),
            ("1", "2.0"),
        ),
        *(("1e999", "2"), ("NaN", "2"), ("true", "2"), ("null", "2"), ('"1"', "2")),
        ("9" * 400, "9" * 400),
    ],
)
def test_counts_that_are_none_are_no_figures(
    right: str, total: str, tmp_path: Path
) -> None:
    categories = f'{{"multiple": {{"right": {right}, "total": {total}}}}}'
    text = f'{{"models": {{"m": {{"categories": {categories}}}}}}}'
    with pytest.raises(
        DataError, match=r"--evaluation .*measured: m, multiple: .* is no"
    ):
        of(tmp_path, text)


def test_scores_that_were_changed_are_not_what_was_measured(tmp_path: Path) -> None:
    model = {"model": "m", "categories": {"multiple": {"right": 1, "total": 9}}}
    text = json.dumps(sealed({"model": 1}, model))
    assert " 1/9 " in of(tmp_path, text)
    with pytest.raises(IdentityError, match=r"(?s)--evaluation .*its checksum differs"):
        of(tmp_path, text.replace('"right": 1', '"right": 8'))
