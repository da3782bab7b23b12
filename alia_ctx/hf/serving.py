"""What servers need of an export: the chat template of training, how calls are read from
what the model writes, the tokens that end a turn, and a temperature.

Calls are those of Hermes: `<tool_call>`, a JSON object with `name` and `arguments`,
`</tool_call>`. vLLM and SGLang read them with parsers that they are told to use;
transformers (5.x, `parse_response` and `transformers serve`) reads them by the
`response_template` of tokenizer_config.json, without which a `llama` makes no calls.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import regex

from alia_ctx.data.chat.stops import stop_tokens
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.chat.turns import special_pattern
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.data.tokens.tokenizer_files import CHAT_TEMPLATES
from alia_ctx.errors import DataError
from alia_ctx.hf.assets import GENERATION_CONFIG
from alia_ctx.hf.json_files import load_json, write_json

TOKENIZER_CONFIG = "tokenizer_config.json"
# How transformers reads a turn, by its name of today and the earlier one.
_READING = ("response_template", "response_schema")
OPEN, CLOSE = "<tool_call>", "</tool_call>"
# "We recommend using a temperature setting close to zero (0.0–0.2)": ALIA-40b-fc's card.
# 0.0 is no temperature to sample with, and 0.1 is what its own example asks for.
TEMPERATURE, HIGHEST_TEMPERATURE = 0.1, 0.2

_QUESTION, _ANSWER = "a question", "an answer"
_CALLS = [
    {
        "type": "function",
        "function": {"name": "f", "arguments": {"x": [1, {"y": "z"}]}},
    },
    {"type": "function", "function": {"name": "g", "arguments": {}}},
]
_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in "fg"
]


@dataclass(frozen=True)
class ChatFormat:
    """How a chat template writes the assistant's turns.

    header: what a turn begins with, as `<|im_start|>assistant\\n`.
    stops: the special tokens that end it: that of words, then those of calls where these
        have one of their own.
    has_calls: calls are written as Hermes does.
    shows_tools: a prompt has the tools at all.
    """

    header: str
    stops: tuple[str, ...]
    has_calls: bool
    shows_tools: bool


def write_chat_template(directory: Path, stated: Mapping[str, Any]) -> list[str]:
    """Put the template that a checkpoint states (`ChatTemplate.statement`) in the place of
    those that came with the tokenizer; returns what a person should hear.

    Several by name go too: transformers takes one called `tool_use` wherever there are
    tools, and the model never saw it. So does how answers of another one are read.
    """
    text = stated["text"]
    if not _is_several(text):
        same = HubTokenizer(directory).auto.chat_template == text
        for name in CHAT_TEMPLATES:
            if (directory / name).is_dir():
                shutil.rmtree(directory / name)
            (directory / name).unlink(missing_ok=True)
        (directory / CHAT_TEMPLATES[0]).write_bytes(text.encode())
        config = directory / TOKENIZER_CONFIG
        settings = load_json(config) if config.is_file() else {}
        gone = ("chat_template", *(() if same else _READING))
        if not settings.keys().isdisjoint(gone):
            write_json(config, {k: v for k, v in settings.items() if k not in gone})
    notes = []
    if (
        ChatTemplate("tokenizer", HubTokenizer(directory)).fingerprint
        != (stated["fingerprint"])
    ):
        notes.append(
            f"the chat template {stated['name']}, or a special token that it may name, "
            "is not what the conversations of training were rendered with"
        )
    if others := stated.get("others"):
        notes.append(
            f"fewer conversations of training were rendered with {', '.join(others)}; "
            f"the export has {stated['name']} alone"
        )
    return notes


def _is_several(text: str) -> bool:
    """Whether a statement's text is that of templates by name, as JSON."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def read_chat_format(directory: Path) -> ChatFormat | None:
    """How the chat template in `directory` writes; None where there is none, or none that
    renders a question and an answer.
    """
    try:
        tokenizer = HubTokenizer(directory)
    except DataError:
        return None
    if not tokenizer.auto.chat_template:
        return None
    question = {"role": "user", "content": _QUESTION}
    before = _render(tokenizer, [question])
    prompt = _render(tokenizer, [question], add_generation_prompt=True)
    answer = {"role": "assistant", "content": _ANSWER}
    answered = _render(tokenizer, [question, answer])
    if None in (before, prompt, answered) or _ANSWER not in str(answered):
        return None
    # Where no answer is asked for, there may be an end of text behind the question.
    asked = _common(str(before), str(prompt), str(answered))
    asked = _without_part(asked, str(prompt), tokenizer.special)
    # What a prompt writes beyond the header (an opened <think>) is part of the answer.
    header = _common(str(prompt), str(answered)).removeprefix(asked)
    after = str(answered).rpartition(_ANSWER)[2].lstrip()
    special = special_pattern(tokenizer.special)
    try:
        stops = stop_tokens(ChatTemplate("tokenizer", tokenizer), special)
    except DataError:  # a template that nothing is trained with
        end = special.match(after)
        stops = (end[0],) if end else ()
    calls = {"role": "assistant", "content": "", "tool_calls": _CALLS}
    called = _render(tokenizer, [question, calls], tools=_TOOLS) or ""
    written = regex.findall(rf"(?s){_DEFINITIONS}{OPEN}({_CALL}){CLOSE}", called)
    offered = _render(tokenizer, [question], tools=_TOOLS, add_generation_prompt=True)
    return ChatFormat(header, stops, len(written) == 2, offered != prompt)


def _common(*texts: str) -> str:
    """What texts begin with alike."""
    letters = takewhile(lambda places: len(set(places)) == 1, zip(*texts, strict=False))
    return "".join(same for same, *_ in letters)


def _without_part(beginning: str, text: str, tokens: Iterable[str]) -> str:
    """The beginning of a text, up to the token in which it ends."""
    size = len(beginning)
    for token in tokens:
        start = text.find(token, max(0, size - len(token) + 1), size + len(token) - 1)
        if 0 <= start < size:
            return text[:start]
    return beginning


def _render(tokenizer: HubTokenizer, messages: Any, **options: Any) -> str | None:
    try:
        text = tokenizer.auto.apply_chat_template(messages, tokenize=False, **options)
    except Exception:  # whatever a template raises, or Jinja for it
        return None
    return str(text)


def complete(
    directory: Path, stated: Mapping[str, Any] | None, vocab_size: int
) -> tuple[ChatFormat | None, list[str]]:
    """Have tokenizer_config.json say how calls are read, and generation_config.json what
    ends a turn, and for a model trained on conversations (`stated`) a temperature.
    Returns the format, and what a person should hear.
    """
    chat = read_chat_format(directory)
    if chat is None or not (chat.stops or stated or chat.has_calls):
        return chat, []
    special = HubTokenizer(directory).special
    file = directory / GENERATION_CONFIG
    generation = load_json(file) if file.is_file() else {}
    there = generation.get("eos_token_id")
    ends = list(there) if isinstance(there, list) else [there]
    ends = [*(end for s in chat.stops if (end := special[s]) < vocab_size), *ends]
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    notes = []
    if ends:
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if stated:
        before = generation.get("temperature")
        if not (type(before) is float and 0 < before <= HIGHEST_TEMPERATURE):
            generation["temperature"] = TEMPERATURE
            if before is not None:
                notes.append(
                    f"the temperature is {TEMPERATURE}, not the base model's {before}: "
                    "calls are wanted word for word"
                )
        generation["do_sample"] = True  # or transformers would not heed it
        if not chat.stops:
            notes.append("no special token ends a turn of its chat template")
        if not chat.shows_tools:
            notes.append("its chat template shows no tools: it makes no calls")
        elif not chat.has_calls:
            notes.append(
                "its chat template does not write calls as Hermes does: give servers a "
                "parser of their own"
            )
    write_json(file, generation)
    config = directory / TOKENIZER_CONFIG
    settings = load_json(config) if config.is_file() else {}
    own = "response_template" in settings and (
        stated is None or stated["name"] == "tokenizer"
    )
    if chat.has_calls and not own:
        names = {number: token for token, number in special.items()}
        words = [names[end] for end in ends if end in names]
        settings["response_template"] = response_template(chat.header, words, special)
        write_json(config, settings)
    return chat, notes


# A call by its grammar (RFC 8259), as patterns of the `regex` library, with which
# transformers compiles a response template. Its `json` content raises on what is none,
# and the request with it, so a region may open only before a call that is whole; what is
# not stays content, as with vLLM. `</tool_call>` in a string ends the call there too; a
# token that ends turns does not: as text it stands in strings and between words.
# Atomic throughout: a stream matches anew with every token.
_STRING = (
    r'"(?:[^"\\\x00-\x1f<]++|<(?!/tool_call>)|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
)
_BLANK = r"[ \t\n\r]*+"
_DEFINITIONS = "".join(
    (
        r"(?(DEFINE)",
        rf"(?P<string>{_STRING})",
        # Python reads no integer of 4,300 digits.
        r"(?P<number>-?(?:0|[1-9][0-9]{0,299}+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+)",
        r"(?P<value>(?&string)|(?&number)|true|false|null|(?&object)|(?&array))",
        rf"(?P<pair>{_BLANK}(?&string){_BLANK}:{_BLANK}(?&value){_BLANK})",
        rf"(?P<object>\{{(?:(?&pair)(?:,(?&pair))*+|{_BLANK})\}})",
        rf"(?P<item>{_BLANK}(?&value){_BLANK})",
        rf"(?P<array>\[(?:(?&item)(?:,(?&item))*+|{_BLANK})\])",
        # A key twice would be the last one to Python, whatever that is.
        rf'(?P<other>{_BLANK}"(?!name"|arguments")[^"\\\x00-\x1f]*+"{_BLANK}:(?&item))',
        rf'(?P<name>{_BLANK}"name"{_BLANK}:{_BLANK}(?&string){_BLANK})',
        rf'(?P<arguments>{_BLANK}"arguments"{_BLANK}:{_BLANK}(?&object){_BLANK})',
        r'(?P<t>(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+)',  # text between brackets
        r")",
    )
)
# Python's parser fails on what is nested too deep (RecursionError), wherever its limit is.
_DEEPEST = 100
_NOT_TOO_DEEP = (
    rf"(?={_BLANK}"
    + r"[\[{](?&t)(?:" * _DEEPEST
    + r"(?!)"
    + r"(?&t))*+[\]}]" * _DEEPEST
    + ")"
)
_CALL = (
    rf"{_BLANK}\{{(?:(?&other),)*+"
    r"(?:(?&name),(?:(?&other),)*+(?&arguments)|(?&arguments),(?:(?&other),)*+(?&name))"
    rf"(?:,(?&other))*+\}}{_BLANK}"
)


def response_template(
    header: str, ends: list[str], special: Iterable[str] = ()
) -> dict[str, Any]:
    """How transformers reads an assistant's turn: content, and calls as Hermes writes
    them; the fields are those of transformers' `utils/chat_parsing`.

    Args:
        header: what precedes the turn in a prompt.
        ends: special tokens that end it.
        special: special tokens, of which the header may have some.
    """
    token = "|".join(map(regex.escape, ends)) or r"(?!)"
    # A call without its tag is over at a token, wherever: a stream opened it there.
    stop = f"(?:{CLOSE}|{token})"
    content: dict[str, Any] = {
        "content": "text",
        "content_args": {"strip": False},
        # Words after a call would replace those before it.
        "repeats": True,
        "join": "",
    }
    if ends:
        content["close_pattern"] = rf"(?<!\s)\s*+(?:(?:{token})\s*+)++\Z"
    return {
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": _anchor(header, special),
        "fields": {
            "tool_calls": {
                # Blanks before a call are no content.
                "open_pattern": (
                    rf"{_DEFINITIONS}(?<!\s)\s*+{OPEN}{_NOT_TOO_DEEP}(?={_CALL}{stop})"
                ),
                # After the call that begins here, or was streamed before.
                "close_pattern": rf"{_DEFINITIONS}\G(?:{_CALL})?+\K{stop}",
                "repeats": True,
                "content": "json",
                "transform": {
                    "type": "function",
                    "function": {
                        "name": "{content.name}",
                        "arguments": "{content.arguments}",
                    },
                },
            },
            "content": content,
        },
    }


def _anchor(header: str, special: Iterable[str]) -> str:
    """A pattern of the header as it is decoded: tokenizers like Llama 2's put a blank
    before each piece of text between special tokens.
    """
    tokens = "|".join(map(regex.escape, sorted(special, key=len, reverse=True)))
    parts = regex.split(f"({tokens})", header) if tokens else [header]
    return r"\s*".join(regex.escape(part.strip()) for part in parts if part) + r"\s*"
