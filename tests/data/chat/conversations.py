"""Generated conversations in each public form, with what a reader must make of them.

Nothing here uses the package: the forms are written out as their data sets have them,
and ChatML by hand.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = [
    "París",
    'a "quoted" word',
    "it's",
    "línia\ndos",
    "日本語",
    "👩‍👩‍👧 ok",
    "C:\\dir\\file",
    "plain text",
    "a, b) = [c]",
    "{brace}",
    " lead",
    "1e3",
    "ﬁ ½",
    "<b>&amp;</b>",
]
NUMBERS = [0, 7, -3, 12345678901234567890, 1.5, -0.25]
NAMES = ["get_weather", "convert", "List Items", "sum.all", "trier_données"]


@dataclass
class Case:
    """A record of a form; the OpenAI messages (arguments as objects) and tools that it
    means.
    """

    record: dict[str, Any]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass
class Talk:
    """A conversation before it takes a form."""

    draw: random.Random
    tools: list[dict[str, Any]] = field(default_factory=list)

    def value(self, depth: int = 0) -> Any:
        kind = self.draw.randint(0, 6 if depth < 2 else 3)
        if kind <= 1:
            return self.draw.choice(WORDS)
        if kind == 2:
            return self.draw.choice(NUMBERS)
        if kind == 3:
            return self.draw.choice([True, False, None])
        if kind == 4:
            return [self.value(depth + 1) for _ in range(self.draw.randint(0, 3))]
        keys = self.draw.sample(["a", "clé", "b c", "z"], self.draw.randint(0, 3))
        return {key: self.value(depth + 1) for key in keys}

    def offer(self, nested: bool = True) -> None:
        for name in self.draw.sample(NAMES, self.draw.randint(1, 4)):
            keys = self.draw.sample(["city", "n", "opció"], self.draw.randint(0, 3))
            parameters = {
                "type": "object",
                "properties": {
                    key: {"type": "string", "description": self.draw.choice(WORDS)}
                    for key in keys
                },
                "required": keys[:1],
            }
            function = {
                "name": name,
                "description": self.draw.choice(WORDS),
                "parameters": parameters,
            }
            form = self.draw.randint(0, 2) if nested else 2
            self.tools.append(
                [
                    {"type": "function", "function": function},
                    {"type": "function", **function},
                    function,
                ][form]
            )

    def call(self) -> dict[str, Any]:
        tool = self.draw.choice(self.tools)
        function = tool.get("function", tool)
        arguments = {
            key: self.value()
            for key in function["parameters"]["properties"]
            if key in function["parameters"]["required"] or self.draw.random() < 0.6
        }
        return {"name": function["name"], "arguments": arguments}

    def calls(self, most: int = 3) -> list[dict[str, Any]]:
        return [self.call() for _ in range(self.draw.randint(1, most))]

    def words(self) -> str:
        return self.draw.choice(WORDS).strip() + self.draw.choice(
            ["", ".", " two", "\n\nx"]
        )


def turn_of(calls: list[dict[str, Any]], content: str | None = None) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant"}
    if content is not None:
        turn["content"] = content
    turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turn


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def dialogue(talk: Talk, most_calls: int = 3, one_result: bool = False) -> list[Any]:
    """Turns of several requests; some call, and some calls get results and an answer."""
    turns: list[dict[str, Any]] = []
    for _ in range(talk.draw.randint(1, 3)):
        turns.append(user(talk.words()))
        if talk.tools and talk.draw.random() < 0.7:
            calls = talk.calls(most_calls)
            content = talk.words() if talk.draw.random() < 0.3 else None
            turns.append(turn_of(calls, content))
            count = 1 if one_result else len(calls)
            turns += [result(dumps(talk.value())) for _ in range(count)]
        turns.append(said(talk.words()))
    return turns


def xlam(draw: random.Random) -> Case:
    talk = Talk(draw)
    kinds = {
        "str": {"type": "string"},
        "int": {"type": "integer"},
        "List[int]": {"type": "array", "items": {"type": "integer"}},
        "Dict[str, int]": {"type": "object"},
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


def chatml(case: Case) -> list[tuple[str, bool]]:
    """The text of the shipped template, written out by hand: pieces, and whether the
    assistant says them.
    """
    pieces: list[tuple[str, bool]] = []
    messages = [*case.messages]
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    if case.tools:
        text = f"{system}\n\n" if system is not None else ""
        text += (
            "# Tools\n\nYou may call one or more functions to assist with the user query."
            "\n\nYou are provided with function signatures within <tools></tools> XML "
            "tags:\n<tools>"
        )
        for tool in case.tools:
            function = tool.get("function", tool)
            function = {k: v for k, v in function.items() if k != "type"}
            text += "\n" + dumps({"type": "function", "function": function})
        text += (
            "\n</tools>\n\nFor each function call, return a json object with function name "
            "and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
        )
        pieces.append((f"<|im_start|>system\n{text}<|im_end|>\n", False))
    elif system is not None:
        pieces.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    before = None
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            pieces.append(
                (f"<|im_start|>user\n{message['content']}<|im_end|>\n", False)
            )
        elif role == "tool":
            text = "" if before == "tool" else "<|im_start|>user"
            text += f"\n<tool_response>\n{message['content']}\n</tool_response>"
            last = number + 1 == len(messages) or messages[number + 1]["role"] != "tool"
            pieces.append((text + ("<|im_end|>\n" if last else ""), False))
        else:
            parts = [message["content"]] if message.get("content") else []
            parts += [
                f'<tool_call>\n{{"name": {dumps(call["function"]["name"])}, "arguments": '
                f"{dumps(call['function']['arguments'])}}}\n</tool_call>"
                for call in message.get("tool_calls", [])
            ]
            pieces.append(("<|im_start|>assistant\n", False))
            pieces.append(("\n".join(parts) + "<|im_end|>", True))
            pieces.append(("\n", False))
        before = role
    return pieces
