"""Rows of the card, their intervals, and scores that bfcl-eval wrote."""

from __future__ import annotations

import json
from math import comb, isclose
from pathlib import Path

import pytest
from rich.console import Console

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling import (
    MULTI_TURN,
    ROWS,
    Answer,
    Case,
    Score,
    read_multi_turn,
    score_answers,
    score_markdown,
    score_table,
    summaries,
)
from alia_ctx.evaluation.function_calling.scores import rows


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe, Stat. Med. 17 (1998) 857, table I, method 3 (Wilson, no correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    assert Score(right, total).interval == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_mean_covers_it() -> None:
    """The mean of two parts, over all outcomes: the share of them whose interval holds
    the truth, by their exact probabilities, is near 95%.
    """
    p, q, n, m = 0.8, 0.6, 24, 40
    covered = 0.0
    for i in range(n + 1):
        for j in range(m + 1):
            scores = {"irrelevance": Score(i, n), "live_irrelevance": Score(j, m)}
            value = dict((row.name, v) for row, v in rows(scores))[
                "Irrelevance Detection"
            ]
            assert value is not None
            if value.interval[0] <= (p + q) / 2 <= value.interval[1]:
                likely = comb(n, i) * p**i * (1 - p) ** (n - i)
                covered += likely * comb(m, j) * q**j * (1 - q) ** (m - j)
    assert 0.93 < covered < 0.97


def test_rows_are_the_card_s() -> None:
    """Names, order and figures as the model card of ALIA-40b-fc-2605 has them."""
    assert [(row.name, row.group, row.card) for row in ROWS] == [
        ("Simple AST", "Non-Live", 71.0),
        ("Multiple AST", "Non-Live", 94.5),
        ("Parallel AST", "Non-Live", 80.5),
        ("Parallel Multiple AST", "Non-Live", 81.5),
        ("Simple AST", "Live", 74.8),
        ("Multiple AST", "Live", 74.4),
        ("Parallel AST", "Live", 56.3),
        ("Parallel Multiple AST", "Live", 70.8),
        ("Base", "Multi-Turn", 15.5),
        ("Miss Func", "Multi-Turn", 2.0),
        ("Miss Param", "Multi-Turn", 12.0),
        ("Long Context", "Multi-Turn", 7.0),
        ("Relevance Detection", "Hallucination", 81.3),
        ("Irrelevance Detection", "Hallucination", 84.0),
    ]


def test_means() -> None:
    scores = {
        "simple_python": Score(400, 400),
        "simple_java": Score(50, 100),
        "simple_javascript": Score(0, 50),
        "multiple": Score(1, 2),
        "parallel": Score(1, 4),
        "parallel_multiple": Score(3, 4),
        "live_simple": Score(1, 10),
        "live_multiple": Score(90, 90),
        "live_parallel": Score(0, 50),
        "live_parallel_multiple": Score(0, 50),
    }
    simple = rows(scores)[0][1]
    assert simple is not None
    assert isclose(simple.accuracy, 0.5)  # by cases it would be 0.82
    assert (simple.right, simple.total) == (450, 550)
    groups = summaries(scores)
    assert groups == {
        "non_live_ast": pytest.approx(0.5),
        "live_ast": pytest.approx(91 / 200),
        "multi_turn": None,
    }
    del scores["simple_java"]
    assert rows(scores)[0][1] is None


def case(name: str, category: str, accepted: object = None) -> Case:
    parameters = {"type": "dict", "properties": {"a": {"type": "integer"}}}
    function = {"name": "x.f", "description": "", "parameters": parameters}
    wanted = None if accepted is None else ({"x.f": {"a": [accepted]}},)
    return Case(
        name, category, ({"role": "user", "content": "?"},), (function,), wanted
    )


def call(name: str, value: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': {'a': value}})}</tool_call>"


def test_answers_are_scored_with_reasons() -> None:
    cases = [
        *(case(f"s{i}", "live_simple", 1) for i in range(5)),
        *(case(f"i{i}", "irrelevance") for i in range(4)),
        *(case(f"r{i}", "live_relevance") for i in range(2)),
        case("not asked", "multiple", 1),
    ]
    answers = {
        "s0": Answer(call("x_f", 1)),
        "s1": Answer(call("x.f", 1)),  # not the name that it saw
        "s2": Answer("no"),
        "s3": Answer("<tool_call>{"),
        "s4": Answer("", fault="too long"),
        "i0": Answer("I cannot do that."),
        "i1": Answer(call("x_f", 1)),
        "i2": Answer("<tool_call>{"),  # a broken call is none
        "i3": Answer("", fault="too long"),  # and yet no answer is no right one
        "r0": Answer(call("whatever", "it is")),
        "r1": Answer("no"),
    }
    scores = score_answers(cases, answers, "underscore")
    assert {k: (s.right, s.total) for k, s in scores.items()} == {
        "live_simple": (1, 5),
        "irrelevance": (2, 4),
        "live_relevance": (1, 2),
    }
    assert dict(scores["live_simple"].reasons) == {
        "wrong_function": 1,
        "no_call": 1,
        "broken_call": 1,
        "no_answer": 1,
    }
    assert score_answers(cases, answers, "as_is")["live_simple"].right == 1


def write_score(folder: Path, category: str, right: int, total: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    head = {"accuracy": right / total, "correct_count": right, "total_count": total}
    wrong = [{"id": f"{category}_{i}", "valid": False} for i in range(total - right)]
    file = folder / f"BFCL_v4_{category}_score.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in [head, *wrong]))
    return file


def test_multi_turn_scores(tmp_path: Path) -> None:
    for index, category in enumerate(MULTI_TURN):
        write_score(tmp_path / "score" / "model" / "multi_turn", category, index, 5)
    scores = read_multi_turn(tmp_path)
    assert [scores[name].right for name in MULTI_TURN] == [0, 1, 2, 3]
    assert summaries(scores)["multi_turn"] == pytest.approx(6 / 20)


def test_multi_turn_scores_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AliaError, match="has no score files"):
        read_multi_turn(tmp_path)
    file = write_score(tmp_path / "one", MULTI_TURN[0], 1, 5)
    whole = file.read_text()
    for damaged in ("", "{", whole.split("\n", 1)[0], whole.replace(": 5", ": 7")):
        file.write_text(damaged)
        with pytest.raises(AliaError, match="no score file of bfcl-eval"):
            read_multi_turn(tmp_path)
    file.write_text(whole)
    write_score(tmp_path / "two", MULTI_TURN[0], 1, 5)
    with pytest.raises(AliaError, match="has 2 score files of multi_turn_base"):
        read_multi_turn(tmp_path)


def test_a_category_of_an_unfinished_row_is_shown() -> None:
    """By itself, below the card's rows: nobody asks for what is not told."""
    scores = {
        "a": {"simple_java": Score(3, 4), "multiple": Score(1, 2)},
        "b": {"multiple": Score(2, 2)},
    }
    console = Console(width=200)
    with console.capture() as capture:
        console.print(score_table(scores))
    lines = [line for line in capture.get().splitlines() if "│" in line]
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in lines]
    assert len(cells) == 15
    assert cells[-1][:2] == ["simple_java", "of Simple AST, Non-Live"]
    assert cells[-1][2].endswith("3/4")
    assert cells[-1][3:] == ["not measured", ""]


@pytest.mark.parametrize(
    ("right", "total", "shown"),
    [
        (13, 16, "81.3"),
        (9, 16, "56.3"),
        (3, 16, "18.8"),
        (1, 3, "33.3"),
        (2, 3, "66.7"),
    ],
)
def test_shares_are_rounded_as_the_card_rounds_them(
    right: int, total: int, shown: str
) -> None:
    """The card has 81.3 for 13 of 16 and 56.3 for 9: halves go up."""
    scores = {"m": {"live_relevance": Score(right, total)}}
    assert f"| {shown} [" in score_markdown(scores)
