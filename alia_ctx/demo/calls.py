"""The demo's conversations that call functions: made, not gathered, as are texts that teach
a small model to copy.

The functions are invented, so each is met in a conversation or two, and a model can only
call them by copying names from the tools and values from the request. A model of four
layers learns that from pairs which are said again and again, and then from requests.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from alia_ctx.data.chat.making import Limits, MakeSpec, find_functions, make_tool_data
from alia_ctx.data.chat.making.invented import invented_name, invented_word
from alia_ctx.files import atomic_file

# ChatML with tools and calls as in chatml-tools, without its instructions how to call:
# they are half of a short conversation, and the same in all of them.
TEMPLATE = """\
{%- if tools -%}
    {{- "<|im_start|>system\\n" -}}
    {%- if messages[0].role == "system" -%}{{- messages[0].content ~ "\\n" -}}{%- endif -%}
    {%- for tool in tools -%}{{- tool | tojson ~ "\\n" -}}{%- endfor -%}
    {{- "<|im_end|>\\n" -}}
{%- elif messages[0].role == "system" -%}
    {{- "<|im_start|>system\\n" ~ messages[0].content ~ "<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == "user" -%}
        {{- "<|im_start|>user\\n" ~ message.content ~ "<|im_end|>\\n" -}}
    {%- elif message.role == "assistant" -%}
        {{- "<|im_start|>assistant\\n" ~ (message.content or "") -}}
        {%- for call in message.tool_calls or [] -%}
            {%- if message.content or not loop.first -%}{{- "\\n" -}}{%- endif -%}
            {{- '<tool_call>\\n{"name": ' ~ call.function.name | tojson -}}
            {{- ', "arguments": ' ~ call.function.arguments | tojson -}}
            {{- "}\\n</tool_call>" -}}
        {%- endfor -%}
        {{- "<|im_end|>\\n" -}}
    {%- elif message.role == "tool" -%}
        {{- "<|im_start|>user\\n<tool_response>\\n" ~ message.content -}}
        {{- "\\n</tool_response><|im_end|>\\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""


def write_calls(folder: Path, count: int, unseen: int) -> None:
    """Write `calls.jsonl` (`count` conversations), `unseen.jsonl` (`unseen` conversations
    of functions that stand in no other file), `pairs.jsonl` (half as many texts) and the
    template `tools.jinja`, and in `cases` the unseen ones as the benchmark BFCL has its
    questions, for `evaluate-calls`; the same bytes each time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = find_functions(["invented:12000"], simple=True)
    limits = Limits(tools=1, quoted=True, simple=True)
    for name, part, number in (
        ("calls", "train", count),
        ("unseen", "held_out", unseen),
    ):
        spec = MakeSpec(number, 0, ("single",), ("en",), part, limits=limits)
        make_tool_data(found, spec, folder / f"{name}.jsonl")
    _write_cases(folder / "unseen.jsonl", folder / "cases")
    with atomic_file(folder / "pairs.jsonl") as stream:
        for number in range(count // 2):
            text = pairs(random.Random(f"pairs {number}"))
            stream.write(f"{json.dumps({'text': text})}\n".encode())
    (folder / "tools.jinja").write_text(TEMPLATE, encoding="utf-8")


def _write_cases(unseen: Path, folder: Path) -> None:
    questions, answers = [], []
    for number, line in enumerate(unseen.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        (tool,) = json.loads(row["tools"])
        called = row["messages"][1]["tool_calls"][0]["function"]
        given = json.loads(called["arguments"])
        # The benchmark calls an object `dict`, and lists all values that it accepts.
        function = tool["function"]
        function["parameters"]["type"] = "dict"
        name = f"simple_python_{number}"
        questions.append(
            {"id": name, "question": [row["messages"][:1]], "function": [function]}
        )
        accepted = {called["name"]: {key: [value] for key, value in given.items()}}
        answers.append({"id": name, "ground_truth": [accepted]})
    file = "BFCL_v4_simple_python.json"
    for path, rows in (
        (folder / file, questions),
        (folder / "possible_answer" / file, answers),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8"
        )


def pairs(draw: random.Random) -> str:
    """A few names with values, said three or four times in different forms and orders."""
    values = {invented_name(draw): _value(draw) for _ in range(draw.randint(2, 4))}
    lines = []
    for _ in range(draw.randint(3, 4)):
        names = [*values]
        if draw.random() < 0.5:
            draw.shuffle(names)
        between = draw.choice(("json", " = ", ": ", " "))
        if between == "json":
            inside = ", ".join(f'"{name}": {values[name]}' for name in names)
            lines.append(f"{{{inside}}}")
        else:
            lines.append(", ".join(f"{name}{between}{values[name]}" for name in names))
            lines[-1] += "."
    return "\n".join(lines)


def _value(draw: random.Random) -> str:
    """As JSON writes it."""
    chance = draw.random()
    if chance < 0.3:
        return str(draw.randint(1, 999))
    word = invented_word(draw)
    if chance < 0.7:
        return f'"{word}"'
    if chance < 0.85:
        return f'"{word} {invented_word(draw)}"'
    return f'"{word}_{draw.randint(1, 999)}"'
