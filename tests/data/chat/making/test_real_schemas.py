"""Invented functions are as real tools are, and requests say in sentences what is called."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from alia_ctx.data.chat import making
from alia_ctx.data.chat.conversation import Conversation, Message
from alia_ctx.data.chat.making.grammar import Grammar, MadeConversation
from alia_ctx.data.chat.making.verify import fault_of
from tests.paths import ROOT

# The file itself, not what the package reads of it.
CONCEPTS = yaml.safe_load(
    (ROOT / "alia_ctx/data/chat/making/concepts.yaml").read_text(encoding="utf-8")
)
BOOLEANS = {k: c for k, c in CONCEPTS.items() if "boolean" in c}
LANGUAGES = tuple(making.LANGUAGES)
CLAUSES = {
    language: [
        re.compile(re.escape(clause).replace(r"\{\}", r"\S.*"))
        for key, concept in CONCEPTS.items()
        if language in concept and key not in BOOLEANS
        for clause in concept[language][1]
        if len(clause) > 6
    ]
    for language in LANGUAGES
}


@pytest.fixture(scope="module")
def found() -> making.FoundFunctions:
    return making.find_functions(["invented:500"])


@pytest.fixture(scope="module")
def records(
    found: making.FoundFunctions, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("made") / "made.jsonl"
    counts = making.make_tool_data(found, making.MakeSpec(count=900, seed=7), output)
    assert counts.refused.total() <= 9
    return [json.loads(line) for line in output.read_text().splitlines()]


def schemas(
    schema: dict[str, Any], depth: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those of parameters, of their properties and of their items, each with its depth."""
    inner = [*schema.get("properties", {}).values()]
    inner += [schema["items"]] if "items" in schema else []
    for one in inner:
        yield depth, one
        yield from schemas(one, depth + 1)


def bare(schema: Any) -> Any:
    """Without descriptions, whatever is called so as a parameter."""
    if isinstance(schema, dict) and "type" in schema:
        kept = {k: bare(v) for k, v in schema.items() if k not in ("description",)}
        if "properties" in schema:
            kept["properties"] = {k: bare(v) for k, v in schema["properties"].items()}
        return kept
    return schema


def test_schemas_are_valid_and_the_same_in_all_languages(
    found: making.FoundFunctions,
) -> None:
    texts = Counter[str]()
    for function in found.functions.values():
        for language in LANGUAGES:
            schema = function.described_in(language).parameters
            jsonschema.Draft202012Validator.check_schema(schema)
            assert bare(schema) == bare(function.parameters)
            assert set(schema.get("required", [])) <= set(schema["properties"])
            texts[language] += len(json.dumps(schema, ensure_ascii=False))
            for _, one in schemas(schema):
                if "default" in one:
                    jsonschema.validate(one["default"], one)
                if "enum" in one:
                    assert len(set(one["enum"])) == len(one["enum"]) >= 2
    assert len({*texts.values()}) == 5


def test_what_real_tools_have_is_there(found: making.FoundFunctions) -> None:
    top, all_of, counts = [], Counter[str](), Counter[int]()
    optional: list[dict[str, Any]] = []
    for function in found.functions.values():
        parameters = function.parameters
        counts[len(parameters["properties"])] += 1
        names = set(parameters["properties"]) - set(parameters.get("required", []))
        optional += [parameters["properties"][name] for name in names]
        for depth, schema in schemas(parameters):
            all_of.update(
                f"{'in ' if depth else ''}{key}" for key in (*schema, schema["type"])
            )
            if not depth:
                top.append(schema)
    assert sorted(counts) == [0, 1, 2, 3, 4, 5, 6] and min(counts.values()) >= 5
    assert all_of["description"] > 0.9 * len(top)
    assert 0.25 < len(optional) / len(top) < 0.6
    assert sum("default" in schema for schema in optional) > 0.6 * len(optional)
    for key in ("enum", "default", "integer", "number", "boolean"):
        assert all_of[key] > 0.05 * len(top), key
    for key in ("items", "properties", "required", "object", "array"):
        assert all_of[key] >= 10, key
    for key in ("in enum", "in default", "in description", "in items"):
        assert all_of[key] >= 3, key
    lengths = sorted(len(s["description"]) for s in top if "description" in s)
    assert lengths[len(lengths) // 10] < 30 < 80 < lengths[9 * len(lengths) // 10]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def says(text: str, truth: bool) -> bool:
    """By the word itself, or by a clause of the file of concepts that means it."""
    clauses = [
        clause
        for concept in BOOLEANS.values()
        for language in LANGUAGES
        for clause in concept[language][1 if truth else 2]
    ]
    return json.dumps(truth) in text or any(clause in text for clause in clauses)


def turns(
    record: dict[str, Any],
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(what the user has said so far, schema, arguments) of each call."""
    tools = {t["function"]["name"]: t["function"] for t in json.loads(record["tools"])}
    said = ""
    for message in record["messages"]:
        said += f"\n{message['content']}" if message["role"] == "user" else ""
        for call in message.get("tool_calls", []):
            function = call["function"]
            schema = tools[function["name"]]["parameters"]
            yield said, schema, json.loads(function["arguments"])


def test_each_value_is_said_and_each_default_left_out(
    records: list[dict[str, Any]],
) -> None:
    calls = with_default = truths = 0
    for record in records:
        for said, schema, arguments in turns(record):
            calls += 1
            jsonschema.validate(arguments, schema)
            for value in leaves(arguments):
                if isinstance(value, bool):
                    truths += json.dumps(value) not in said
                    assert says(said, value), (value, said)
                else:
                    text = value if isinstance(value, str) else json.dumps(value)
                    assert text in said
            for name, one in schema["properties"].items():
                if "default" in one:
                    with_default += 1
                    assert name not in arguments or arguments[name] != one["default"]
    assert calls > 900 and with_default > 300 and truths > 30


def test_most_values_stand_inside_sentences_and_some_in_lists(
    records: list[dict[str, Any]],
) -> None:
    """In each language; and a good part of the tools is described in it."""
    for language in LANGUAGES:
        own = [
            r for r in records if r["language"] == language and r["kind"] == "single"
        ]
        asked = [r["messages"][0]["content"] for r in own]
        listed = sum(" = " in text for text in asked)
        inside = sum(any(c.search(text) for c in CLAUSES[language]) for text in asked)
        assert 0 < listed < 0.3 * len(asked), language
        assert inside > len(asked) / 3, language  # of thirty
        assert len({*asked}) > 0.9 * len(asked)
        named = sum(
            t["function"]["name"].split("_")[-1] in text.split(" ")
            for r, text in zip(own, asked, strict=True)
            for t in json.loads(r["tools"])
        )
        assert named < 0.8 * len(own), "most are asked for by what they do"


def test_no_clause_means_both_and_none_bends_its_value() -> None:
    true, false = (
        [c for b in BOOLEANS.values() for one in LANGUAGES for c in b[one][which]]
        for which in (1, 2)
    )
    for yes in true:
        for no in false:
            assert not re.search(rf"(?<!\w){re.escape(yes)}(?!\w)", no)
            assert not re.search(rf"(?<!\w){re.escape(no)}(?!\w)", yes)
    for key, concept in CONCEPTS.items():
        for language in set(LANGUAGES) & set(concept):
            for clause in [] if key in BOOLEANS else concept[language][1]:
                assert clause.count("{}") == 1, key
                assert re.search(r"(?<![\w.-])\{\}(?!\w|\.\d)", clause), clause


def made_with(found: making.FoundFunctions, key: str) -> MadeConversation:
    """A single call of a boolean that is said by a clause in place of the word."""
    grammar = Grammar([*found.functions.values()], 3)
    for number in range(3000):
        made = grammar.make(number, "single", "en")
        text = "" if made is None else made.conversation.messages[0].content or ""
        if made is not None and any(c in text for c in CONCEPTS[key]["en"][1]):
            return made
    raise AssertionError("none was made")


def test_a_truth_that_is_said_otherwise_is_a_fault(
    found: making.FoundFunctions,
) -> None:
    made = made_with(found, "details")
    assert fault_of(made) is None
    first, *rest = made.conversation.messages
    text = first.content or ""
    for yes in CONCEPTS["details"]["en"][1]:
        text = text.replace(yes, CONCEPTS["details"]["en"][2][0])
    turned = Conversation((Message("user", text), *rest), made.conversation.tools)
    told = fault_of(MadeConversation(turned, made.kind, made.language, made.requests))
    assert told is not None and "does not say" in told


def test_functions_of_the_same_thing_are_not_offered_beside_each_other(
    records: list[dict[str, Any]], found: making.FoundFunctions
) -> None:
    """Whoever asks to find the ferry could be served by what lists it."""
    for record in records:
        if record["kind"] not in ("multiple", "irrelevant"):
            continue
        names = [t["function"]["name"] for t in json.loads(record["tools"])]
        for message in record["messages"]:
            for call in message.get("tool_calls", []):
                called = found.functions[call["function"]["name"]]
                same = [
                    n for n in names if found.functions[n].subject == called.subject
                ]
                assert called.subject is None or len(same) == 1


def test_of_functions_that_are_all_asked_for_no_two_do_the_same_thing(
    found: making.FoundFunctions,
) -> None:
    by_subject: dict[str | None, list[making.Function]] = {}
    for function in found.functions.values():
        by_subject.setdefault(function.subject, []).append(function)
    alike = [f for s, fs in by_subject.items() if s and len(fs) > 5 for f in fs]
    grammar, offered = Grammar(alike, 1), Counter[int]()
    for kind in ("parallel", "multi_turn"):
        for number in range(100):
            made = grammar.make(number, kind, "en")  # type: ignore[arg-type]
            tools = made and made.conversation.tools
            names = [t["function"]["name"] for t in json.loads(tools or "[]")]
            subjects = [found.functions[name].subject for name in names]
            assert len({*subjects}) == len(subjects), names
            offered[len(names)] += 1
    assert offered.total() - offered[0] - offered[1] > 100


def made_calls(
    found: making.FoundFunctions, languages: tuple[str, ...], count: int
) -> Iterator[tuple[dict[str | None, Any], str]]:
    """(arguments by concept, request) of single calls."""
    grammar = Grammar([*found.functions.values()], 5)
    for number in range(count):
        for language in languages:
            made = grammar.make(number, "single", language)
            call = None if made is None else made.requests[0].calls[0]
            if made is None or call is None or call.function.talk is None:
                continue
            parts = call.function.talk.parts
            told = made.conversation.messages[0].content or ""
            yield {parts[k].concept or k: v for k, v in call.arguments.items()}, told


def test_the_first_day_is_before_the_last(found: making.FoundFunctions) -> None:
    both = 0
    for arguments, _ in made_calls(found, LANGUAGES, 1500):
        for days in (arguments, *(v for v in arguments.values() if type(v) is dict)):
            if {"start_date", "end_date"} <= {*days}:
                both += 1
                assert days["start_date"] <= days["end_date"]
    assert both


def test_no_value_stands_behind_a_list_of_others(
    found: making.FoundFunctions,
) -> None:
    """`leku hauek: Porto, Riga, Oslo hirira` could be three places, or two on a way to one."""
    lists = 0
    for arguments, text in made_calls(found, LANGUAGES, 500):
        for key, listed in arguments.items():
            if type(listed) is not list or type(listed[0]) in (list, dict):
                continue
            values = [f"[\"']?{re.escape(str(v))}[\"']?" for v in listed]
            behind = re.search(
                r"(?:,| \w+) ".join(values) + r"(?:,| e| eta)? (.*)", text
            )
            if behind is None:
                continue
            lists += 1
            for other, value in arguments.items():
                first = value[0] if type(value) is list else value
                if other != key and type(first) in (str, int, float):
                    assert not behind[1].lstrip("\"'").startswith(f"{first}"), text
    assert lists > 50


def test_no_length_is_said_in_two_units() -> None:
    """Lengths are in metres by their descriptions, whatever unit is asked for beside them."""
    for language in LANGUAGES:
        for word in CONCEPTS["length_unit"][language][1]:
            assert re.search("result|emaitz", word), word


def test_simple_ones_have_bare_types_and_lists(tmp_path: Path) -> None:
    found = making.find_functions(["invented:60"], simple=True)
    assert all(
        set(schema) == {"type"}
        for function in found.functions.values()
        for _, schema in schemas(function.parameters)
    )
    limits = making.Limits(simple=True)
    spec = making.MakeSpec(60, kinds=("single",), languages=("en",), limits=limits)
    making.make_tool_data(found, spec, tmp_path / "made")
    for line in (tmp_path / "made").read_text().splitlines():
        record = json.loads(line)
        (call,) = record["messages"][1]["tool_calls"]
        text = record["messages"][0]["content"]
        assert call["function"]["name"].replace("_", " ") in text.lower()
        for name in json.loads(call["function"]["arguments"]):
            assert re.search(rf"\b{name.replace('_', ' ')}( = |: | )", text)


def test_no_invented_function_is_one_of_the_benchmark() -> None:
    """Names as they are, and without case, dots and what stands before them."""
    environment = Path(os.environ.get("BFCL_VENV", ROOT / ".venv-bfcl"))
    data = [*environment.glob("lib/python3.*/site-packages/bfcl_eval/data")]
    if not data:
        pytest.skip("no data of bfcl-eval; make it with `make venv-bfcl`")
    theirs: set[str] = set()
    for file in data[0].glob("BFCL_v4_*.json"):
        lines = file.read_text(encoding="utf-8").splitlines()
        for line in lines if lines[0].endswith("}") else []:  # one is a whole document
            for function in json.loads(line).get("function", []):
                name = function["name"]
                theirs |= {plain(name), plain(name.rpartition(".")[2])}
    assert len(theirs) > 1000
    ours = making.find_functions(["invented:8000"]).functions.values()
    same = [f.name for f in ours if f.properties and plain(f.name) in theirs]
    assert not same


def plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
