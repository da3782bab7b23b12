"""Each form's records become the conversation that they mean; forms tell themselves apart."""

from __future__ import annotations

import json
from typing import Any, get_args

import jsonschema
import pytest

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms import FORMS, form_of, read_record
from alia_ctx.data.chat.forms.xlam import read_type
from alia_ctx.data.chat.json_text import parse, write
from alia_ctx.data.documents.chat_spec import ChatForm
from tests.data.chat import conversations
from tests.data.chat.conversations import cases
from tests.data.chat.talks import nested


def test_every_form_has_a_name_in_the_configuration() -> None:
    assert {"auto", *FORMS} == {*get_args(ChatForm)} == {"auto", *conversations.FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_records_become_what_they_mean(form: str) -> None:
    for case in cases(form):
        for name in (form, "auto"):
            read = read_record(json.loads(json.dumps(case.record)), name)
            assert read.messages_for_template() == case.messages
            assert read.tools_for_template() == nested(case.tools)


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_told_apart_by_their_columns(form: str) -> None:
    found = {form_of(case.record) for case in cases(form, 100)}
    assert found == {form}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_again_as_the_same(form: str) -> None:
    for case in cases(form, 60):
        read = read_record(case.record, form)
        assert read_record(parse(write(read.to_record())), "openai") == read


def test_numbers_and_the_order_of_keys_stay_as_they_were_written() -> None:
    schema = '{"name": "f", "parameters": {"type": "object", "x": 1.50, "a": 1e3}}'
    tools = f"[{schema}]"
    answers = '[{"name": "f", "arguments": {"z": 1.0, "a": 1E-7, "m": 100000000000000000000}}]'
    for record in (
        {"messages": [{"role": "user", "content": "q"}], "tools": tools},
        parse(
            f'{{"messages": [{{"role": "user", "content": "q"}}], "tools": {tools}}}'
        ),
    ):
        call = parse(answers)[0]
        record["messages"].append(
            {"role": "assistant", "tool_calls": [{"function": call}]}
        )
        read = read_record(record)
        assert read.tools == f'[{{"type": "function", "function": {schema}}}]'
        assert read.messages[1].calls[0].arguments == (
            '{"z": 1.0, "a": 1E-7, "m": 100000000000000000000}'
        )


FUNCTION = '{ "name":"f","description":"d", "parameters" : {"type":"object", "n":1e3}}'
FLAT = FUNCTION.replace("{ ", '{ "type": "function", ', 1)
NESTED = f'{{"type": "function", "function": {FUNCTION}}}'


@pytest.mark.parametrize("tool", [FUNCTION, FLAT, NESTED, f'{{"function":{FUNCTION}}}'])
def test_tools_are_nested_however_a_record_has_them(tool: str) -> None:
    """One form in all readers, with the function's text as it was written."""
    said = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    talk = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    chat = "USER: u\n\n\nASSISTANT: a"
    begun = [{**said[0], "functions": f"[{tool}]"}, {**said[1], "function_calls": None}]
    records: list[dict[str, Any]] = [
        {"messages": said, "tools": f" [ {tool} ] "},
        {"messages": said, "tools": tool},
        {"messages": said, "tools": json.dumps([tool])},
        {"messages": said, "tools": [tool]},
        {"messages": said, "functions": f"[{tool}]"},
        {"messages": begun},
        {"messages": json.dumps(said), "available_tools": f"[{tool}]"},
        {"conversations": talk, "tools": f"[{tool}]"},
        {"conversations": talk, "system": f"You may call [{tool}]"},
        {"system": f"SYSTEM: {tool}", "chat": chat},
    ]
    forms = set()
    for record in records:
        forms.add(form_of(record))
        [shown] = read_record(record).tools_for_template() or []
        assert shown == json.loads(NESTED)
        if tool is not FLAT:
            assert FUNCTION in (read_record(record).tools or "")
    assert forms == {*FORMS} - {"xlam"}  # which has no schemas
    answers = '[{"name": "f", "arguments": {}}]'
    schema = tool.replace('"n":1e3', '"properties":{}')
    record = {"query": "q", "answers": answers, "tools": f"[{schema}]"}
    [shown] = read_record(record).tools_for_template() or []
    assert list(shown) == ["type", "function"] and "type" not in shown["function"]


@pytest.mark.parametrize(
    ("words", "schema", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("int, optional", {"type": "integer"}, True),
        ("int,optional", {"type": "integer"}, True),
        ("bool (optional)", {"type": "boolean"}, True),
        ("int | None", {"type": "integer"}, True),
        ("None|str", {"type": "string"}, True),
        ("Union[int, None]", {"type": "integer"}, True),
        ("int | str", {"anyOf": [{"type": "integer"}, {"type": "string"}]}, False),
        (
            "Dict[str, int | None]",
            {
                "type": "object",
                "additionalProperties": {
                    "anyOf": [{"type": "integer"}, {"type": "null"}]
                },
            },
            False,
        ),
        ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}, False),
        (
            "Literal['a or b', 'c|d,e']",
            {"type": "string", "enum": ["a or b", "c|d,e"]},
            False,
        ),
        ("Literal[1, 2, None], optional", {"enum": [1, 2]}, True),
        ("Optional[Literal['a']]", {"type": "string", "enum": ["a"]}, True),
        ("int or float", {"anyOf": [{"type": "integer"}, {"type": "number"}]}, False),
        ("str (ISO 8601)", {"type": "string"}, False),
        ("str (ISO 8601), optional", {"type": "string"}, True),
        ("int | datetime", {}, False),
        ("", {}, False),
        ("List[str]", {"type": "array", "items": {"type": "string"}}, False),
        (
            "List[List[int]], optional",
            {
                "type": "array",
                "items": {"type": "array", "items": {"type": "integer"}},
            },
            True,
        ),
        (
            "Dict[str, List[int]], optional",
            {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "integer"}},
            },
            True,
        ),
        ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}, False),
        ("Tuple[float, str]", {"type": "array"}, False),
        ("Optional[str]", {"type": "string"}, True),
        (
            "Union[int, List[float]]",
            {
                "anyOf": [
                    {"type": "integer"},
                    {"type": "array", "items": {"type": "number"}},
                ]
            },
            False,
        ),
        ("Callable[[float], float]", {}, False),
        ("set", {"type": "array"}, False),
    ],
)
def test_types_of_xlam(words: str, schema: dict[str, Any], optional: bool) -> None:
    read = read_type(words)
    assert (read.schema, read.optional) == (schema, optional)


def xlam(parameters: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a tool's parameters."""
    tools = [{"name": "f", "description": "d", "parameters": parameters}]
    answers = [{"name": "f", "arguments": {"a": 1, "n": 1, "properties": 1}}]
    record = {"query": "q", "answers": json.dumps(answers), "tools": json.dumps(tools)}
    [tool] = read_record(record).tools_for_template() or []
    return dict(tool["function"]["parameters"])


def test_several_types_of_xlam_stay() -> None:
    about = {"type": ["integer", "null"], "description": "x"}
    for kind, required in ((["integer", "null"], []), (["int", "str"], ["n"])):
        schema = xlam({"n": {**about, "type": kind}})
        kinds = {"int": "integer", "str": "string"}
        told = {"type": [kinds.get(k, k) for k in kind], "description": "x"}
        assert schema == {
            "type": "object",
            "properties": {"n": told},
            "required": required,
        }


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("str (ISO 8601)", "x (type: str (ISO 8601))"),
        ("Callable[[float], float]", "x (type: Callable[[float], float])"),
        ("Callable, optional", "x (type: Callable, optional)"),
        ("datetime | int", "x (type: datetime | int)"),
        ("Tuple[int, str]", "x (type: Tuple[int, str])"),
        ("Dict[int, str]", "x (type: Dict[int, str])"),
        ("List[datetime]", "x (type: List[datetime])"),
        ("str, e.g. 'a'", "x (type: str, e.g. 'a')"),
        (["int", "datetime"], "x (type: int | datetime)"),
        ("np.ndarray", "x (type: np.ndarray)"),
        ("Literal[a, b]", "x (type: Literal[a, b])"),
        *((k, "x") for k in ("int or float", "Literal['a']", "Dict[str, List[int]]")),
        *((k, "x") for k in ("int, optional", "Optional[int]", "Tuple[int, ...]")),
    ],
)
def test_a_type_that_no_schema_has_is_told(kind: Any, told: str) -> None:
    schema = xlam({"n": {"type": kind, "description": "x"}})
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["n"]["description"] == told
    alone = xlam({"n": {"type": kind}})["properties"]["n"]
    assert alone.get("description", "") == told[2:]


@pytest.mark.parametrize(
    ("about", "required"),
    [
        ({"required": True, "default": 1}, ["n"]),
        ({"required": False}, []),
        ({"optional": True}, []),
        ({"optional": False, "type": "int, optional"}, ["n"]),
    ],
)
def test_a_parameter_may_say_itself_that_it_is_required(
    about: dict[str, Any], required: list[str]
) -> None:
    rest = {"type": "int", "description": "x", **about}
    for parameters in ({"n": rest}, {"type": "dict", "properties": {"n": rest}}):
        schema = xlam(parameters)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert not {"required", "optional"} & {*schema["properties"]["n"]}
        if parameters.keys() == {"n"} or "required" in about:
            assert schema["required"] == required


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("enum", "a or b", "enum: a or b"),
        ("minimum", "0", "minimum: 0"),
        ("items", [1], "items: [1]"),
    ],
)
def test_keys_that_break_a_schema_are_told(key: str, value: Any, told: str) -> None:
    schema = xlam({"n": {"type": "int", "description": "x", key: value, "enum_of": 3}})
    jsonschema.Draft202012Validator.check_schema(schema)
    about = schema["properties"]["n"]
    assert about == {"type": "integer", "description": f"x ({told})", "enum_of": 3}


def test_schemas_of_xlam_are_known_without_a_type() -> None:
    a = {"a": {"type": "string"}}
    for more in ({}, {"required": ["a"]}, {"description": "d", "title": "t"}):
        schema = {"properties": a, **more}
        assert xlam(schema) == {"type": "object", **schema}
    # and a parameter of that name is one
    for about in ({"type": "dict", "description": "x"}, {"description": "x"}):
        properties = xlam({"properties": about})["properties"]
        assert list(properties) == ["properties"]
    assert list(xlam({"properties": a, "n": {"type": "int"}})["properties"]) == [
        "properties",
        "n",
    ]


def test_the_end_of_text_inside_a_call_of_glaive_stays() -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    end = "<|endoftext|>"
    chat = (
        f"USER: q\n\n\nASSISTANT: The mark {end} ends. {end} <functioncall> "
        f'{{"name": "f", "arguments": \'{{"a": "see {end} here"}}\'}} {end}'
    )
    read = read_record({"system": f"SYSTEM: {json.dumps(tool)}", "chat": chat})
    assert read.messages[1].content == f"The mark {end} ends."
    assert read.messages[1].calls[0].arguments == f'{{"a": "see {end} here"}}'


def test_a_default_of_xlam_makes_a_parameter_optional() -> None:
    tools = [{"name": "f", "parameters": {"a": {"type": "str", "default": "x"}}}]
    record = {
        "query": "q",
        "tools": json.dumps(tools),
        "answers": '[{"name": "f", "arguments": {}}]',
    }
    function = read_record(record).tools_for_template()[0]["function"]  # type: ignore[index]
    assert function["parameters"]["required"] == []
    assert function["parameters"]["properties"]["a"]["default"] == "x"


def test_toucan_declares_its_tools_for_another_model() -> None:
    [case] = cases("toucan", 1)
    messages = json.loads(case.record["messages"])
    declared = "<|im_system|>tool_declare<|im_middle|>[...]<|im_end|>"
    messages.insert(0, {"role": "system", "content": declared})
    read = read_record({**case.record, "messages": json.dumps(messages)})
    assert read.messages_for_template() == case.messages


def test_toolace_keeps_what_its_system_says_beside_its_instructions() -> None:
    [case] = cases("toolace", 1)
    system = case.record["system"] + "Today is Friday."
    read = read_record({**case.record, "system": system})
    assert read.messages[0].content == "Today is Friday."


def test_a_dolci_call_may_be_json() -> None:
    tools = json.dumps([{"name": "f", "parameters": {}}])
    record = {
        "messages": [
            {"role": "system", "content": "s", "functions": tools},
            {"role": "user", "content": "u"},
            {
                "role": "assistant",
                "function_calls": '<function_calls>[{"name": "f", "arguments": {"a": 1}}]'
                "</function_calls>",
            },
        ]
    }
    assert read_record(record).messages[2].calls[0].arguments == '{"a": 1}'


@pytest.mark.parametrize("tools", [None, [], "", " ", "[]", "null"])
def test_no_tools_are_no_tools(tools: Any) -> None:
    messages = [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}]
    messages.append({"role": "assistant", "content": "a"})
    read = read_record({"messages": messages, "tools": tools})
    assert read.tools is None
    assert read.messages[0].role == "system"


def test_reasoning_and_ids_go_along() -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }
    messages = [
        {"role": "user", "content": "u"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "done"},
    ]
    read = read_record({"messages": messages, "tools": [{"name": "f"}]})
    assert [m.to_record() for m in read.messages] == [
        {k: v for k, v in message.items() if v is not None} for message in messages
    ]


@pytest.mark.parametrize("text", ["[f(a=1", "[f(a=1), g(]", "[f(1)]", "[f(a=b c)]"])
def test_a_call_that_cannot_be_read_is_no_text(text: str) -> None:
    [case] = cases("toolace", 1)
    turns = [{"from": "user", "value": "u"}, {"from": "assistant", "value": text}]
    if not text.endswith("]"):
        turns[1]["value"] += "]"
    with pytest.raises(RowError, match="unparsable_call"):
        read_record({**case.record, "conversations": turns})
