"""Our checker, tools and summaries against the original's own, in its environment; and
its multi-turn categories, asked of a server that knows the answers of one conversation.

`python -m benchmarks.bfcl_agreement` asks about all cases and 20,000 mutations.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from alia_ctx.evaluation.function_calling import (
    CATEGORIES,
    MULTI_TURN,
    Answer,
    Score,
    calls_of,
    check_calls,
    read_cases,
    summaries,
    tools_of,
)
from alia_ctx.evaluation.function_calling.java_values import java_value
from alia_ctx.evaluation.function_calling.javascript_values import javascript_value
from alia_ctx.evaluation.function_calling.scores import rows
from tests.evaluation.function_calling.expressions import expressions
from tests.evaluation.function_calling.mutations import CALLS, VALUES, mutated
from tests.evaluation.function_calling.oracle import (
    ENVIRONMENT,
    PYTHON,
    WHY_NOT,
    ask,
    data_folder,
)
from tests.evaluation.function_calling.server import said, served
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_checker import verdicts
from tests.evaluation.function_calling.test_evaluate_calls import alia

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON.exists(), reason=WHY_NOT),
]
Asked = list[dict[str, Any]]


def mutations(count: int) -> Asked:
    rng = Random(11)
    cases = [case for case in read_cases(data_folder()).cases if case.accepted]
    asked: Asked = []
    while len(asked) < count:
        case = rng.choice(cases)
        answer = mutated(case, rng.choice([*VALUES, *CALLS]), rng)
        if answer is not None:
            asked.append(
                {
                    "functions": case.functions,
                    "calls": json.loads(json.dumps(answer)),
                    "accepted": case.accepted,
                    "language": case.language,
                    "category": case.category,
                    "rename": False,
                }
            )
    return asked


def figures() -> Iterator[dict[str, Score]]:
    rng = Random(5)
    for count in (17, 12, 3):
        names = rng.sample([*CATEGORIES, *MULTI_TURN], count)
        yield {
            name: Score(rng.randint(0, total), total)
            for name in names
            for total in [rng.randint(1, 900)]
        }


QUESTIONS: dict[str, Asked] = {}


@pytest.fixture(scope="module")
def original() -> dict[str, list[Any]]:
    """The original's answers to all questions of this file, of one process: it takes
    some seconds to start.
    """
    QUESTIONS.update(
        table=[{"kind": "verdict", **question} for question, _ in verdicts()],
        mutations=[{"kind": "verdict", **question} for question in mutations(1500)],
        values=[
            {"kind": "value", **one}
            for language in ("java", "javascript")
            for one in expressions(language, 1500, 3)
        ],
        tools=[
            {"kind": "tools", "id": case.id, "functions": case.functions}
            for case in read_cases(data_folder()).cases
        ],
        summaries=[
            {
                "kind": "summary",
                "scores": {
                    name: {"accuracy": score.accuracy, "total_count": score.total}
                    for name, score in scores.items()
                },
            }
            for scores in figures()
        ],
    )
    answers = iter(ask(one for asked in QUESTIONS.values() for one in asked))
    return {name: [next(answers) for _ in asked] for name, asked in QUESTIONS.items()}


def test_the_table_of_our_own_is_the_original_s(original: Any) -> None:
    """A case of ours that the original stops at is wrong for us."""
    for (question, truth), answer in zip(verdicts(), original["table"], strict=True):
        assert bool(answer.get("valid")) == truth, (question, answer)


def test_mutations(original: Any) -> None:
    right = 0
    for asked, answer in zip(
        QUESTIONS["mutations"], original["mutations"], strict=True
    ):
        calls = [(name, arguments) for name, arguments in asked["calls"]]
        verdict = check_calls(
            asked["functions"], calls, asked["accepted"], asked["language"]
        )
        assert verdict.right == bool(answer.get("valid")), (asked["calls"], answer)
        right += verdict.right
    assert 200 < right < 1300  # both verdicts are tried


def test_source_of_java_and_javascript(original: Any) -> None:
    read = {"java": java_value, "javascript": javascript_value}
    for asked, answer in zip(QUESTIONS["values"], original["values"], strict=True):
        value = read[asked["language"]](asked["text"], asked["type"], asked["items"])
        assert repr(value) == answer, asked


def test_tools_of_every_case(original: Any) -> None:
    cases = read_cases(data_folder()).cases
    for case, answer in zip(cases, original["tools"], strict=True):
        assert tools_of(case.functions, case.language) == answer, case.id


def test_summaries(original: Any) -> None:
    """Each row of the card, and the groups', in percent with two decimals."""
    columns = {
        "overall:Non-Live Simple AST": 0,
        "overall:Non-Live Multiple AST": 1,
        "overall:Non-Live Parallel AST": 2,
        "overall:Non-Live Parallel Multiple AST": 3,
        "overall:Live Simple AST": 4,
        "overall:Live Multiple AST": 5,
        "overall:Live Parallel AST": 6,
        "overall:Live Parallel Multiple AST": 7,
        "overall:Multi Turn Base": 8,
        "overall:Multi Turn Miss Func": 9,
        "overall:Multi Turn Miss Param": 10,
        "overall:Multi Turn Long Context": 11,
        "overall:Relevance Detection": 12,
        "overall:Irrelevance Detection": 13,
    }
    for scores, answer in zip(figures(), original["summaries"], strict=True):
        values = [value and value.accuracy for _, value in rows(scores)]
        for column, index in columns.items():
            assert shown(values[index]) == answer[column], column
        groups = summaries(scores)
        assert shown(groups["non_live_ast"]) == answer["non_live:AST Summary"]
        assert shown(groups["live_ast"]) == answer["live:AST Summary"]
        if groups["multi_turn"] is not None:  # the original takes a missing one for 0
            expected = answer["multi_turn:Multi Turn Overall Acc"]
            assert shown(groups["multi_turn"]) == expected


def shown(value: float | None) -> str:
    return "N/A" if value is None else f"{value * 100:.2f}%"


def test_conversations_are_asked_and_scored_by_the_original(tmp_path: Path) -> None:
    """The first is answered call by call as the benchmark accepts it, the second never."""
    file = "BFCL_v4_multi_turn_base.json"
    first, *_ = (data_folder() / file).read_text().splitlines()
    truth, *_ = (data_folder() / "possible_answer" / file).read_text().splitlines()
    begins = json.loads(first)["question"][0][0]["content"]
    turns = json.loads(truth)["ground_truth"]

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        assert (body["max_tokens"], body["temperature"]) == (77, 0)
        users = [one for one in messages if one["role"] == "user"]
        if users[0]["content"] != begins or messages[-1]["role"] != "user":
            return said("Done.")
        return said(
            None, *[call(text, body["tools"]) for text in turns[len(users) - 1]]
        )

    with served(reply) as url:
        words = ["--endpoint", url, "--bfcl-env", ENVIRONMENT, "--limit", 2, "--json"]
        words += ["--categories", "multi_turn_base", "--output", tmp_path]
        words += ["--max-new-tokens", 77]
        found = json.loads(alia("evaluate-calls", *words))["models"]["model"]
    score = found["categories"]["multi_turn_base"]
    assert (score["right"], score["total"]) == (1, 2)
    assert score["wrong"] == {"empty_turn_model_response": 1}


def call(text: str, tools: list[dict[str, Any]]) -> tuple[str, str]:
    """A call as the benchmark writes it, in Python, as OpenAI has it."""
    (statement,) = ast.parse(text).body
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    assert isinstance(statement.value.func, ast.Name)
    name = statement.value.func.id
    (function,) = [t["function"] for t in tools if t["function"]["name"] == name]
    names = list(function["parameters"]["properties"])
    given = dict(zip(names, statement.value.args, strict=False))
    given |= {str(one.arg): one.value for one in statement.value.keywords}
    values = {key: ast.literal_eval(value) for key, value in given.items()}
    return name, json.dumps(values)


def test_calls_of_a_server_are_those_that_the_original_reads(tmp_path: Path) -> None:
    """Whatever stands for the arguments: relevance and irrelevance hang on it."""
    given: list[Any] = ["", " ", "{", "{}", ' {"n": 0}\n', '{"n": 1, "n": 0}', "null"]
    given += ["[]", "3", '"{}"', "{'n': 0}", "n=0", "\ufeff{}", "[" * 100_000]
    given += [None, {}, {"n": 0}, [], [1], 3, True]
    functions: list[Any] = [{"name": "f", "arguments": one} for one in given]
    functions += [{"name": "f"}, {"arguments": "{}"}, {"name": "", "arguments": "{}"}]
    messages = [
        {
            "content": "Words.",
            "tool_calls": [{"function": function} for function in one],
        }
        for one in [*([f] for f in functions), *([functions[3], f] for f in functions)]
    ]
    messages += [{"content": "Words.", "tool_calls": none} for none in ([], None)]
    original = ask([{"kind": "calls", "message": message} for message in messages])
    suite, replies = write_suite(tmp_path / "data", each=len(messages)), iter(messages)
    words = ["--categories", "live_relevance", "--batch-size", 1, "--data", suite]
    with served(lambda body: next(replies)) as url:
        alia("evaluate-calls", "--endpoint", url, *words, "--output", tmp_path / "out")
    kept = (tmp_path / "out/model/answers.jsonl").read_text().splitlines()[1:]
    answers = {line["id"]: Answer.from_json(line) for line in map(json.loads, kept)}
    for index, (message, expected) in enumerate(zip(messages, original, strict=True)):
        found = calls_of(answers[f"live_relevance_{index}"]).with_objects().calls
        calls = [{name or "": arguments} for name, arguments in found] or None
        assert json.dumps(calls) == json.dumps(expected).replace('"null"', '""'), (
            message
        )
    assert sum(one is not None for one in original) == 10
