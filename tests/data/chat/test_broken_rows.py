"""Each broken input is one clear line: file, row and reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alia_ctx.data.chat import ChatConversion, ChatEncoder
from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.chat.rows import read_rows
from alia_ctx.data.documents import ChatSpec
from alia_ctx.errors import DataError
from tests.data.chat.tokenizers import save_chat_tokenizer

U = {"role": "user", "content": "u"}
A = {"role": "assistant", "content": "a"}
T = {"role": "tool", "content": "1"}
TOOLS = [
    {"name": "f", "parameters": {"properties": {"a": {}}, "required": ["a"]}},
    {"name": "g", "parameters": {}},
]


def calls(*made: Any, **turn: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"function": call} for call in made],
        **turn,
    }


def call(name: str = "g", arguments: Any = "{}") -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def talk(*messages: Any, tools: Any = TOOLS) -> dict[str, Any]:
    return {"messages": list(messages), "tools": tools}


def xlam(**changed: Any) -> dict[str, Any]:
    usual = {"query": "q", "answers": [call("g", {})], "tools": [TOOLS[1]]}
    texts = {key: json.dumps(value) for key, value in usual.items() if key != "query"}
    return {"query": "q", **texts, **changed}


def glaive(
    chat: str, functions: str = '{"name": "g", "parameters": {}}'
) -> dict[str, Any]:
    head = "SYSTEM: You are a helpful assistant with access to the following functions."
    return {"system": f"{head} Use them if required -\n{functions}", "chat": chat}


ROWS: list[tuple[Any, str, str]] = [
    (b'{"messages": [', "invalid_json", "Expecting value"),
    (b'{"a": "\xff"}', "invalid_utf8", "byte 7"),
    (b'{"messages": [], "messages": []}', "invalid_json", "'messages' twice"),
    (b'{"messages": NaN}', "invalid_json", "NaN is no JSON"),
    (b'{"messages": 1e999}', "invalid_json", "1e999 is beyond"),
    (b'{"messages": 5}', "unparsable_messages", "int"),
    (b"[" * 100000, "invalid_json", "nested too deeply"),
    (b'{"messages": []} {}', "invalid_json", "follows"),
    ([1, 2], "no_object", "list"),
    ({"text": "a book"}, "unknown_form", "'text'"),
    (talk(), "empty", "no turn"),
    (talk(U, {**A, "content": " "}), "empty", "turn 1: assistant says nothing"),
    (talk({**U, "content": ""}, A), "empty", "turn 0"),
    (talk({**U, "content": [{"type": "text"}]}, A), "content_not_text", "list"),
    (talk({**U, "content": 7}, A), "content_not_text", "int"),
    (talk({"role": "judge", "content": "x"}), "unknown_role", "'judge'"),
    (talk(A, U, A), "wrong_role_order", "turn 0 is assistant after the beginning"),
    (talk(U, U, A), "wrong_role_order", "turn 1 is user after user"),
    (talk(U, A, A), "wrong_role_order", "turn 2"),
    (talk(U, A, {"role": "system", "content": "s"}), "wrong_role_order", "turn 2"),
    (talk(U, A, U), "no_answer", "last turn is user"),
    (talk(U, T, A), "result_without_call", "turn 1"),
    (talk(U, calls(call()), U, A), "call_without_result", "turn 2 is user"),
    (talk(U, calls(call()), T, T, A), "result_without_call", "2 results of 1 calls"),
    (talk(U, calls(call("a\nb"))), "unknown_function", "'a\\nb' is not"),
    (
        talk(U, calls(call("h"))),
        "unknown_function",
        "'h' is not offered (f, g)",
    ),
    (talk(U, calls(call()), tools=None), "unknown_function", "(none)"),
    (talk(U, calls(call("f"))), "missing_argument", "'f' lacks a"),
    (talk(U, calls(call("g", "{'a"))), "unparsable_call", "no JSON"),
    (talk(U, calls(call("g", "[1]"))), "unparsable_call", "no object"),
    (talk(U, calls({"arguments": "{}"})), "unparsable_call", "no name"),
    (talk(U, {**A, "tool_calls": "nonsense"}), "unparsable_call", "nonsense"),
    (talk(U, A, tools="[{"), "unparsable_tools", "[{"),
    (talk(U, A, tools=[{"description": "no name"}]), "unparsable_tools", "no name"),
    (talk({**U, "content": "\ud800"}, A), "invalid_unicode", "\\ud800"),
    ({"messages": {"role": "user"}}, "unparsable_messages", "dict"),
    ({"messages": "[{"}, "unparsable_messages", "messages:"),
    (talk(U, "a"), "unparsable_messages", "turn 1 is str"),
    (xlam(answers="[{"), "unparsable_call", "answers:"),
    (xlam(answers="[]"), "no_answer", "answers are empty"),
    (xlam(tools="nothing"), "unparsable_tools", "tools:"),
    (xlam(query=None), "content_not_text", "query"),
    (glaive("hello"), "empty", "no USER:"),
    (glaive("x\nUSER: u\nASSISTANT: a"), "unparsable_messages", "begins with"),
    (glaive("USER: u\nASSISTANT: <functioncall> {}"), "unparsable_call", "no name"),
    (
        glaive(
            'USER: u\nASSISTANT: <functioncall> {"name": "g", "arguments": \'{"a"\'}'
        ),
        "unparsable_call",
        "'g'",
    ),
    (glaive("USER: u\nASSISTANT: a", "{broken"), "unparsable_tools", "system:"),
    (
        {"messages": [U, {**A, "content": "<TOOLCALL>[{}"}], "tools": ["{}"]},
        "unparsable_call",
        "without an end",
    ),
    (
        {
            "system": json.dumps(TOOLS),
            "conversations": [
                {"from": "user", "value": "u"},
                {"from": "assistant", "value": "[g(1)]"},
            ],
        },
        "unparsable_call",
        "no key=value",
    ),
    (
        {
            "messages": [U, {"role": "assistant", "function_calls": "g("}],
            "tools": TOOLS,
        },
        "unparsable_call",
        "brackets",
    ),
    (talk(U, calls(*[call()] * 3), T, T, A), "call_without_result", "2 results of 3"),
    (
        talk(
            U,
            {
                "role": "assistant",
                "tool_calls": [{"id": n, "function": call()} for n in "abc"],
            },
            T,
            T,
            A,
        ),
        "call_without_result",
        "2 results of 3",
    ),
    (b'{"messages": ' + b"9" * 5000 + b"}", "invalid_json", "5,000 digits"),
    # Braces twice are a set of what cannot be hashed, to Python.
    (talk(U, calls(call("g", "{{'a': 'x'}}"))), "unparsable_call", "no JSON"),
    (talk(U, {**A, "tool_calls": "{{'name': 'g'}}"}), "unparsable_call", "{{"),
    (
        {"messages": [U, {"role": "assistant", "function_calls": "g(a={[1]: 2})"}]},
        "unparsable_call",
        "no value",
    ),
    (
        {
            "system": json.dumps(TOOLS),
            "conversations": [
                {"from": "user", "value": "u"},
                {"from": "assistant", "value": '[g(a={{"x": 1}})]'},
            ],
        },
        "unparsable_call",
        "no value",
    ),
    (
        talk(
            U,
            calls(call()),
            tools=[{"name": "g", "parameters": {"required": [["a"]]}}],
        ),
        "unparsable_tools",
        "no name",
    ),
    # What JSON refuses Python's literals do not let through.
    (talk(U, calls(call("g", '{"a": 1, "a": 2}'))), "unparsable_call", "'a' twice"),
    (
        talk(U, calls(call("g", "{'a': {'b': 1, 'b': 2}}"))),
        "unparsable_call",
        "no JSON",
    ),
    (
        talk(U, calls(call("g", "{'a': 1e400}"))),
        "unparsable_call",
        "not JSON compliant",
    ),
    # Schemas that say nothing, of a function that nobody calls too.
    (talk(U, A, tools=[{"name": "g", "parameters": [1]}]), "unparsable_tools", "list"),
    (talk(U, A, tools=[{"name": "g", "parameters": "{}"}]), "unparsable_tools", "str"),
    (
        talk(U, A, tools=[{"name": "g", "parameters": {"required": "a"}}]),
        "unparsable_tools",
        "no list",
    ),
    (
        xlam(tools='[{"name": "g", "parameters": {"a": {"type": 5}}}]'),
        "unparsable_tools",
        "is 5, no name",
    ),
    # Calls that are written as words: nothing would compare them with the tools.
    *(
        (
            talk(U, {**A, "content": f"Sure.\n{words}"}),
            "unparsable_call",
            "among its words",
        )
        for words in (
            '<tool_call>\n{"name": "zzz"}\n</tool_call>',
            '<functioncall> {"name": "zzz"}',
            '[TOOL_CALLS][{"name": "zzz"}]',
        )
    ),
]


def lines(conversion: ChatConversion) -> list[str]:
    assert not [*conversion.conversations()]
    return [str(row) for row in conversion.left_out.rows]


def test_there_are_thirty() -> None:
    assert len(ROWS) >= 30


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    raw = [r if isinstance(r, bytes) else json.dumps(r).encode() for r, *_ in ROWS]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_each_is_one_line_with_file_row_and_reason(broken: Path) -> None:
    conversion = ChatConversion([str(broken)])
    told = lines(conversion)
    assert len(told) == len(ROWS)
    for number, (line, (_, reason, detail)) in enumerate(
        zip(told, ROWS, strict=True), 1
    ):
        assert line.startswith(f"{broken}:{number}: {reason}: "), line
        assert detail in line
        assert "\n" not in line
    assert conversion.counts.left_out == Counter(reason for _, reason, _ in ROWS)


def test_strict_stops_at_the_first(broken: Path) -> None:
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: invalid_json.*without --strict"
    ):
        lines(ChatConversion([str(broken)], strict=True))


def test_a_file_of_them_alone_is_an_error_and_leaves_nothing(broken: Path) -> None:
    output = broken.with_name("out.jsonl")
    with pytest.raises(
        DataError, match=r"no conversation that can be used.*rows.jsonl:1"
    ):
        ChatConversion([str(broken)]).run(output, 0, print)
    assert [p.name for p in broken.parent.iterdir()] == ["rows.jsonl"]


def test_a_named_form_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(talk(U, A)))
    [line] = lines(ChatConversion([str(path)], form="xlam"))
    assert f"{path}:1: missing_column: the form xlam needs query, answers" in line


def test_rows_of_arrays_and_parquet_have_their_places(tmp_path: Path) -> None:
    array = tmp_path / "a.json"
    rows = [talk(U, A), talk(U), {"messages": [U], "x": 1}]
    text = json.dumps(rows, indent=1).replace('"x": 1', '"x": NaN')
    array.write_text(text)
    conversion = ChatConversion([str(array)])
    assert [row.where for row, *_ in conversion.conversations()] == [f"{array}#0"]
    told = [str(row) for row in conversion.left_out.rows]
    assert told[0].startswith(f"{array}#1: no_answer")
    assert told[1].startswith(f"{array}#2: invalid_json: NaN")
    table = tmp_path / "t.parquet"
    columns = {
        "messages": [[U, A], [U]],
        "tools": [json.dumps(TOOLS), "[{"],
        "x": [1, 2],
    }
    pq.write_table(pa.table(columns), table)
    conversion = ChatConversion([str(table)])
    assert len([*conversion.conversations()]) == 1
    [row] = conversion.left_out.rows
    assert str(row).startswith(f"{table}#1: unparsable_tools")


def test_a_row_of_parquet_that_python_cannot_hold_is_left_out_alone(
    tmp_path: Path,
) -> None:
    good = json.dumps([U, A]).encode()
    plain = pa.array([good, b"\xff", good, good]).view(pa.string())
    words = pa.array([good, b"\xff"]).view(pa.string())
    path = tmp_path / "t.parquet"
    ids = pa.array([0, 0, 2**62, 1], pa.timestamp("us"))
    for messages in (
        plain,
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0], pa.int64()), words),
    ):
        pq.write_table(pa.table({"messages": messages, "id": ids}), path)
        rows = [*read_rows(str(path), 1000, "id")]
        assert [row.where for row in rows] == [f"{path}#{n}" for n in range(4)]
        assert [row.fault and row.fault[0] for row in rows] == [
            *(None, "invalid_utf8", None, None)
        ]
        assert [row.value["id"] is None for row in rows if row.value] == [
            *(False, True, False)
        ]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"messages": [[U, A]], "tools": [[{"name": "f"}]]}, "tools holds structures"),
        (
            {"messages": [[U, calls(call("g", {"a": 1}))]]},
            "arguments holds structures",
        ),
        ({"text": ["a"]}, "no column of conversations, only text"),
    ],
)
def test_tables_that_cannot_be_believed(
    columns: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=told):
        [*ChatConversion([str(path)]).conversations()]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("words")
    with pytest.raises(DataError, match=r"a\.txt: is text"):
        [*ChatConversion([str(text)]).conversations()]
    cut = tmp_path / "a.parquet"
    cut.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        [*ChatConversion([str(cut)]).conversations()]
    half = tmp_path / "a.json"
    half.write_text('[{"messages": []}, {"mess')
    with pytest.raises(DataError, match=r"a\.json: record 1"):
        [*ChatConversion([str(half)]).conversations()]


def test_what_only_the_tokenizer_shows_is_counted_too(tmp_path: Path) -> None:
    folder = save_chat_tokenizer("byte level", tmp_path / "t")
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(talk(U, A))}\n{json.dumps(talk(U, A, tools=None))}\n")
    encoder = ChatEncoder(folder, ChatSpec(max_tokens=60))
    conversion = ChatConversion([str(path)], encoder=encoder)
    assert len([*conversion.conversations()]) == 1
    [row] = conversion.left_out.rows
    assert str(row).startswith(f"{path}:1: too_long: ")
    assert "60 are allowed" in str(row)


def test_an_integer_that_python_cannot_hold_in_an_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"messages": {"9" * 5000}}}, {json.dumps(talk(U, A))}]')
    conversion = ChatConversion([str(path)])
    assert len([*conversion.conversations()]) == 1
    [row] = conversion.left_out.rows
    assert str(row).startswith(f"{path}#0: ")


def test_results_are_in_the_order_of_their_calls() -> None:
    asked = [{"id": n, "function": call()} for n in "ab"]
    answers = [{**T, "content": n.upper(), "tool_call_id": n} for n in "ba"]
    turns = talk(U, {"role": "assistant", "tool_calls": asked}, *answers, A)
    read = read_record(turns)
    assert [message.content for message in read.messages[2:4]] == ["A", "B"]


def test_words_that_name_a_tag_and_calls_of_no_tools_are_words() -> None:
    for words, tools in (
        ("The tag is <tool_call>, and {} follows.", TOOLS),
        ("<tool_call> is how calls begin.", TOOLS),
        ('<tool_call>\n{"name": "f"}', None),  # tools that a system prompt describes
    ):
        turn = {**A, "content": words}
        assert read_record(talk(U, turn, tools=tools)).messages[1].content == words
