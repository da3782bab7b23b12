"""What a template leaves out of a conversation is found, whatever else it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import ChatEncoder, RowError
from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.documents.chat_spec import ChatSpec
from tests.tokenizers import byte_level, save

SHOWS = """{%- for t in tools or [] -%}<|im_start|>tools
{{ t | tojson }}{%- endfor -%}
{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content or "" }}{%- for c in m.tool_calls or [] %}
<tool_call>{"name": "{{ c.function.name }}",
"arguments": {{ c.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def lists(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": f"call0000{n}", "function": {"name": "f", "arguments": json.dumps(call)}}
        for n, call in enumerate(calls)
    ]


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "description": "f g", "parameters": {"properties": {"a": {}}}}


TALK = [
    {"role": "system", "content": "Speak plainly, ok."},
    {"role": "user", "content": "ok"},
    {"role": "assistant", "content": "ok f 2", "tool_calls": lists({"a": 1}, {"a": 2})},
    {"role": "tool", "content": "ok", "tool_call_id": "call00000"},
    {"role": "tool", "content": "ok", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "ok"},
    {
        "role": "assistant",
        "tool_calls": lists(
            {"a": 0, "n": None, "t": True, "s": ["", 'say "é"\n', 1e3]}
        ),
    },
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level(), tmp_path_factory.mktemp("made") / "tokenizer")


def encode(template: str, directory: Path, folder: Path, talk: Any = TALK) -> str:
    path = folder / "t.jinja"
    path.write_text(template)
    made = ChatEncoder(directory, ChatSpec(template=str(path)))
    return made.encode(
        read_record({"messages": talk, "tools": [tool("f"), tool("g")]})
    ).text


CALL = "{{ c.function.arguments | tojson }}"
ARGUMENTS = "{% for k, v in c.function.arguments.items() %}"


@pytest.mark.parametrize(
    ("part", "changed", "lost"),
    [
        ("m.tool_calls or []", "(m.tool_calls or [])[:1]", "'f' of turn 2, call 1"),
        ("t in tools or []", "t in (tools or [])[:1]", "'g' of the tools"),
        ("t in tools or []", "t in (tools or [])[1:]", "no tools"),
        ("t | tojson", "t.function.description", "no tools"),
        (
            'm.content or ""',
            "m.content if not (m.role == (loop.previtem or {}).role == 'tool')",
            "'ok' of turn 4",
        ),
        ('m.content or ""', "m.content if loop.index0 != 6", "'ok' of turn 6"),
        ('m.content or ""', "m.content if loop.index0 != 1", "'ok' of turn 1"),
        (
            'm.content or ""',
            "m.content[:15] if m.role == 'system' else m.content or ''",
            "'Speak plainly, ok.'",
        ),
        (CALL, "{{ c.function.arguments.a }}", "'a' of turn 2"),
        (
            CALL,
            "{ {%- if c.function.arguments.a != 2 -%}" + CALL + "{%- endif -%} }",
            "a",
        ),
        (CALL, "{{ c.function.arguments.keys() | list | tojson }}", "of turn 2"),
        (
            CALL,
            ARGUMENTS + "{% if v %}{{ k }}={{ v | tojson }}{% endif %}{% endfor %}",
            "a",
        ),
        (CALL, ARGUMENTS + "{{ k }}={{ v or '' }};{% endfor %}", "of turn 7"),
        (
            CALL,
            ARGUMENTS + "{{ k }}={{ v | tojson if v is not none }};{% endfor %}",
            "null",
        ),
        (
            CALL,
            ARGUMENTS + "{{ k }}={{ v | tojson if v is not sameas true }};{% endfor %}",
            "true",
        ),
        (CALL, ARGUMENTS + "{{ k }}={{ v | tojson if v != 0 }};{% endfor %}", "'0'"),
    ],
)
def test_what_is_left_out_is_named(
    part: str, changed: str, lost: str, directory: Path, tmp_path: Path
) -> None:
    assert part in SHOWS
    with pytest.raises(RowError, match="not_shown") as caught:
        encode(SHOWS.replace(part, changed), directory, tmp_path)
    assert lost in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("m.role }}", "m.role }}"),
        ('m.content or ""', '(m.content or "") | trim'),
        ("t | tojson", "t | tojson(indent=4)"),
        ("t | tojson", "t.function.name ~ ': ' ~ t.function.description"),
        (CALL, "{{ c.function.arguments | tojson(ensure_ascii=True) }}"),
        (CALL, "{{ c.function.arguments | tojson(indent=2) }}"),
        (CALL, "{{ c.function.arguments | tojson(sort_keys=True) }}"),
        (CALL, "{{ c.function.arguments | tojson | tojson }}"),
        (CALL, "{{ c.function.arguments }}"),
        (CALL, ARGUMENTS + "<{{ k }}>{{ v | tojson }}</{{ k }}>{% endfor %}"),
        (
            CALL,
            ARGUMENTS
            + "<p={{ k }}>\n{{ v if v is string else v | string }}\n{% endfor %}",
        ),
        (
            '{{ m.content or "" }}',
            '{{ m.content | tojson if m.role == "tool" else m.content or "" }}',
        ),
    ],
)
def test_other_spellings_are_shown(
    part: str, changed: str, directory: Path, tmp_path: Path
) -> None:
    assert part in SHOWS
    talk = [*TALK]
    talk[1] = {"role": "user", "content": ' two\n  lines, "é" \n'}
    talk[4] = {**talk[4], "content": '{"b": "é",\n "a": 1.50}'}
    assert encode(SHOWS.replace(part, changed), directory, tmp_path, talk)
