"""Requests for several calls of one function, read back from their text by other means."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import making


def made(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    found = making.find_functions(["invented:200", "typer"])
    spec = making.MakeSpec(count=600, seed=2, kinds=("parallel",), **settings)
    making.make_tool_data(found, spec, folder / "made.jsonl")
    lines = (folder / "made.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return made(tmp_path_factory.mktemp("made"))


def calls_of(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    called = [call["function"] for call in record["messages"][1]["tool_calls"]]
    return [(one["name"], json.loads(one["arguments"])) for one in called]


def places(value: Any, text: str) -> list[int]:
    """Where a value stands as a word of its own."""
    word = value if isinstance(value, str) else json.dumps(value)
    at = re.finditer(rf"(?<![\w.-]){re.escape(word)}(?![\w-]|\.\d)", text)
    return [match.start() for match in at]


def is_said_once(record: dict[str, Any]) -> bool:
    """Whether calls have a value in common that the request says once."""
    text, calls = record["messages"][0]["content"], calls_of(record)
    first, others = calls[0][1], [arguments for _, arguments in calls[1:]]
    return len({name for name, _ in calls}) == 1 and any(
        isinstance(value, str | float)
        and all(other.get(name) == value for other in others)
        and len(places(value, text)) == 1
        for name, value in first.items()
    )


def test_calls_are_said_in_their_order(records: list[dict[str, Any]]) -> None:
    """Each value by which a call differs from the one before stands behind that one's."""
    compared = 0
    for record in records:
        text, calls = record["messages"][0]["content"], calls_of(record)
        for (name, earlier), (other, later) in itertools.pairwise(calls):
            assert (name, earlier) != (other, later)
            for key in earlier.keys() & later.keys() if name == other else ():
                values = earlier[key], later[key]
                if not all(isinstance(v, str | float) for v in values):
                    continue
                before, behind = (places(v, text) for v in values)
                if values[0] != values[1] and len(before) == len(behind) == 1:
                    compared += 1
                    assert before < behind, text
    assert compared > 300


def test_what_calls_have_in_common_is_often_said_once(
    records: list[dict[str, Any]],
) -> None:
    shares = {
        language: [is_said_once(r) for r in records if r["language"] == language]
        for language in making.LANGUAGES
    }
    assert all(sum(said) > len(said) / 12 for said in shares.values()), shares
    numbers = {len(calls_of(record)) for record in records}
    assert numbers == {2, 3, 4}


def test_simple_requests_say_each_call_by_itself(tmp_path: Path) -> None:
    simple = made(tmp_path, limits=making.Limits(simple=True))
    assert not any(map(is_said_once, simple))


def test_calls_differ_in_what_the_request_says_of_each(
    records: list[dict[str, Any]],
) -> None:
    """No call goes without a value of its own where the others have one."""
    for record in filter(is_said_once, records):
        calls = [arguments for _, arguments in calls_of(record)]
        assert len({frozenset(arguments) for arguments in calls}) == 1
        for name in calls[0]:
            distinct = {json.dumps(arguments[name]) for arguments in calls}
            assert len(distinct) in (1, len(calls))
