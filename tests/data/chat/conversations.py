"""Generated conversations in each public form, with what a reader must make of them.

Nothing here uses the package: the forms are written out as their data sets have them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.data.chat.talks import (
    NAMES,
    WORDS,
    Case,
    Talk,
    dialogue,
    dumps,
    said,
    turn_of,
    user,
)


def xlam(draw: random.Random) -> Case:
    talk = Talk(draw)
    kinds = {
        "str": {"type": "string"},
        "int": {"type": "integer"},
        "List[int]": {"type": "array", "items": {"type": "integer"}},
        "Dict[str, int]": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
        },
        "bool": {"type": "boolean"},
    }
    tools, schemas = [], []
    for name in draw.sample(NAMES, draw.randint(1, 3)):
        parameters: dict[str, Any] = {}
        schema: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for key in draw.sample(["city", "n", "x"], draw.randint(0, 3)):
            kind, optional = draw.choice(list(kinds)), draw.random() < 0.5
            told = draw.choice(WORDS)
            parameters[key] = {
                "description": told,
                "type": f"{kind}, optional" if optional else kind,
            }
            schema["properties"][key] = {**kinds[kind], "description": told}
            if not optional:
                schema["required"].append(key)
        tools.append({"name": name, "description": "d", "parameters": parameters})
        schemas.append(
            {
                "type": "function",
                "function": {"name": name, "description": "d", "parameters": schema},
            }
        )
    talk.tools = schemas
    calls, query = talk.calls(), talk.words()
    record = {"id": 3, "query": query, "answers": dumps(calls), "tools": dumps(tools)}
    return Case(record, [user(query), turn_of(calls)], schemas)


def glaive(draw: random.Random) -> Case:
    talk = Talk(draw)
    system = (
        "SYSTEM: You are a helpful assistant, with no access to external functions."
    )
    head = [{"role": "system", "content": system.removeprefix("SYSTEM: ")}]
    if draw.random() < 0.8:
        talk.offer(nested=False)
        listed = "\n\n".join(
            json.dumps(t, ensure_ascii=False, indent=4) for t in talk.tools
        )
        system = (
            "SYSTEM: You are a helpful assistant with access to the following functions."
            f" Use them if required -\n{listed}\n"
        )
        head = []
    turns = dialogue(talk, most_calls=1)
    chat = ""
    for turn in turns:
        if turn["role"] == "user":
            chat += f"USER: {turn['content']}\n\n\n"
        elif turn["role"] == "tool":
            chat += f"FUNCTION RESPONSE: {turn['content']}\n\n\n"
        else:
            words = turn.get("content", "")
            for call in turn.get("tool_calls", []):
                function = call["function"]
                quoted = dumps(function["arguments"]).replace("'", "\\'")
                name = dumps(function["name"])
                words += (
                    f' <functioncall> {{"name": {name}, "arguments": \'{quoted}\'}}'
                )
            chat += f"ASSISTANT: {words.strip()} <|endoftext|>\n\n\n"
    record = {"system": system, "chat": chat}
    return Case(record, [*head, *turns], talk.tools or None)


def pythonic(call: dict[str, Any]) -> str:
    arguments = ", ".join(f"{k}={v!r}" for k, v in call["arguments"].items())
    return f"{call['name']}({arguments})"


def toolace(draw: random.Random) -> Case:
    talk = Talk(draw)
    talk.offer(nested=False)
    system = (
        "You are an expert in composing functions. You are given a question and a set of "
        "possible functions.\nHere is a list of functions in JSON format that you can "
        f"invoke:\n{dumps(talk.tools)}. \nShould you decide to return the function call(s)."
        "\nPut it in the format of [func1(params_name=params_value)]\n\nNO other text MUST "
        "be included. \n"
    )
    turns = dialogue(talk, one_result=True)
    conversations = []
    for turn in turns:
        if calls := turn.get("tool_calls"):
            turn.pop("content", None)  # ToolACE has no words beside calls
            text = ", ".join(pythonic(call["function"]) for call in calls)
            conversations.append({"from": "assistant", "value": f"[{text}]"})
        else:
            conversations.append({"from": turn["role"], "value": turn["content"]})
    record = {"system": system, "conversations": conversations}
    return Case(record, turns, talk.tools)


def as_openai(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With arguments as text, and `content: null` beside calls."""
    written = []
    for turn in turns:
        turn = {**turn}
        if calls := turn.get("tool_calls"):
            turn.setdefault("content", None)
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": dumps(call["function"]["arguments"]),
                    },
                }
                for call in calls
            ]
        written.append(turn)
    return written


def openai(draw: random.Random) -> Case:
    talk = Talk(draw)
    head = [{"role": "system", "content": talk.words()}] if draw.random() < 0.5 else []
    if draw.random() < 0.7:
        talk.offer()
    turns = [*head, *dialogue(talk)]
    record: dict[str, Any] = {"messages": as_openai(turns)}
    if talk.tools:
        record["tools"] = dumps(talk.tools) if draw.random() < 0.5 else talk.tools
    return Case(record, turns, talk.tools or None)


def sharegpt(draw: random.Random) -> Case:
    talk = Talk(draw)
    if draw.random() < 0.5:
        talk.offer()
    turns = dialogue(talk)
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    conversations = []
    for turn in turns:
        if "content" in turn:
            one = {"from": names[turn["role"]], "value": turn["content"]}
            conversations.append(one)
        if calls := turn.get("tool_calls"):
            value = dumps([call["function"] for call in calls])
            conversations.append({"from": "function_call", "value": value})
    record: dict[str, Any] = {"conversations": conversations}
    head = []
    if draw.random() < 0.5:
        record["system"] = talk.words()
        head = [{"role": "system", "content": record["system"]}]
    if talk.tools:
        record["tools"] = dumps(talk.tools)
    return Case(record, [*head, *turns], talk.tools or None)


def toucan(draw: random.Random) -> Case:
    talk = Talk(draw)
    talk.offer()
    turns = dialogue(talk)
    messages: list[dict[str, Any]] = []
    python = draw.random() < 0.5
    for turn in turns:
        if turn["role"] == "tool":
            role = "tool_response" if python else "function"
            messages.append({"role": role, "content": turn["content"]})
            continue
        if "content" in turn:
            messages.append({"role": turn["role"], "content": turn["content"]})
        for call in turn.get("tool_calls", []):
            function = call["function"]
            written = {
                "name": function["name"],
                "arguments": dumps(function["arguments"]),
            }
            messages.append(
                {"role": "tool_call", "content": repr(written)}
                if python
                else {"role": "assistant", "content": "", "function_call": written}
            )
    record = {
        "uuid": "u",
        "subset_name": "single-turn",
        "messages": dumps(messages),
        "tools": dumps(talk.tools),
        "target_tools": "get_weather",
    }
    return Case(record, turns, talk.tools)


def when2call(draw: random.Random) -> Case:
    talk = Talk(draw)
    talk.offer(nested=False)
    if draw.random() < 0.2:
        talk.tools = []
    turns = [user(talk.words())]
    if talk.tools and draw.random() < 0.6:
        calls = talk.calls()
        turns.append(turn_of(calls))
        answer = {
            "role": "assistant",
            "content": f"<TOOLCALL>{dumps(calls)}</TOOLCALL>",
        }
    else:
        answer = said(talk.words())
        turns.append(answer)
    messages = [turns[0], answer]
    tools = [dumps(tool) for tool in talk.tools]
    if not tools:  # only its own columns tell the form apart then
        return Case(
            {
                "messages": messages[:1],
                "tools": [],
                "chosen_response": answer["content"],
            },
            turns,
        )
    return Case({"messages": messages, "tools": tools}, turns, talk.tools)


def dolci(draw: random.Random) -> Case:
    talk = Talk(draw)
    talk.offer(nested=False)
    for tool in talk.tools:  # its calls are Python's
        tool["name"] = tool["name"].replace(" ", "_")
    turns = dialogue(talk)
    system = {"role": "system", "content": "You may call functions."}
    messages = [
        {**system, "functions": dumps(talk.tools), "function_calls": None},
    ]
    for turn in turns:
        calls = [call["function"] for call in turn.get("tool_calls", [])]
        messages.append(
            {
                "role": "environment" if turn["role"] == "tool" else turn["role"],
                "content": turn.get("content", "" if calls else None),
                "functions": None,
                "function_calls": "\n".join(map(pythonic, calls)) if calls else None,
            }
        )
    return Case({"id": "x", "messages": messages}, [system, *turns], talk.tools)


FORMS: dict[str, Callable[[random.Random], Case]] = {
    "xlam": xlam,
    "glaive": glaive,
    "toolace": toolace,
    "toucan": toucan,
    "when2call": when2call,
    "dolci": dolci,
    "openai": openai,
    "sharegpt": sharegpt,
}


def cases(form: str, count: int = 200) -> list[Case]:
    """The same ones whenever they are asked for."""
    return [FORMS[form](random.Random(f"{form} {number}")) for number in range(count)]
