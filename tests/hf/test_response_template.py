"""Calls as Hermes writes them, as vLLM and transformers read them, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import regex
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.hf import serving
from tests.data.chat.tokenizers import byte_level
from tests.hf import hermes
from tests.tokenizers import SPECIAL, save

HEADER, STOP = "<|im_start|>assistant\n", "<|im_end|>"
READ = serving.response_template(HEADER, [STOP, "</s>"], SPECIAL)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


# Text without `<`: tags in it have tests of their own.
words = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
    ),
    max_leaves=8,
).filter(lambda value: value not in (float("inf"), float("-inf")))
arguments = st.dictionaries(words, values, max_size=4).filter(
    lambda value: "Infinity" not in json.dumps(value)
)
calls = st.lists(st.tuples(words.filter(bool), arguments), max_size=3)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    directory = save(byte_level(), tmp_path_factory.mktemp("template") / "tokenizer")
    return ChatTemplate("chatml-tools", HubTokenizer(directory))


def turn(template: ChatTemplate, content: str, made: list[tuple[str, Any]]) -> str:
    """What the assistant writes, up to its stop token."""
    question = {"role": "user", "content": "a question"}
    written = [
        {"type": "function", "function": {"name": name, "arguments": given}}
        for name, given in made
    ]
    said = {"role": "assistant", "content": content, "tool_calls": written}
    prompt = template._render([question], TOOLS, prompt=True)
    text = template._render([question, said], TOOLS, prompt=False)
    return text.removeprefix(prompt).removesuffix(f"{STOP}\n")


def parsed(text: str, cuts: tuple[int, ...] = ()) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls as transformers reads a turn; with `cuts`, as it comes, in pieces
    of these sizes.
    """
    from transformers.utils.chat_parsing import ResponseParser

    parser, events, place = ResponseParser(READ, prefix=f"x{HEADER}"), [], 0
    for size in cuts or (len(text),):
        events += parser.feed(text[place : place + size])
        place += size
    events += parser.feed(text[place:])
    message, last = parser.finalize()
    streamed = "".join(
        event["text"]
        for event in events + last
        if event["type"] == "region_chunk" and event["field"] == "content"
    )
    assert streamed == message.get("content", "")
    made = [call["function"] for call in message.get("tool_calls", [])]
    return streamed, [(call["name"], call["arguments"]) for call in made]


pieces = st.lists(st.integers(1, 7), max_size=60).map(tuple)


@given(content=words, made=calls, cuts=pieces)
@settings(max_examples=150)
def test_servers_read_what_the_template_writes(
    template: ChatTemplate, content: str, made: list[tuple[str, Any]], cuts: Any
) -> None:
    """vLLM by its rules and transformers by the response template, whole and streamed:
    the calls that were made, and the words before them.
    """
    text = turn(template, content, made)
    theirs = hermes.read(text)
    assert theirs[1] == made
    assert theirs[0].rstrip() == content.rstrip()
    ours = parsed(text + STOP, cuts)
    assert ours == parsed(text + STOP)
    assert ours[1] == made
    assert ours[0].rstrip() == content.rstrip()
    stream, place = hermes.Stream(), 0
    for size in (*cuts, len(text)):
        stream.feed(text[place : place + size])
        place += size
    if made:
        assert stream.content == theirs[0]
        assert [(n, json.loads(a)) for n, a in stream.calls] == made


def strict(text: str) -> Any:
    """What Python makes of JSON without a key twice and without NaN; None of others."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def never(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=never)
    except ValueError:
        return None


CHARACTERS = ' \t\n{}[],:"\\/01.eE+-abntu<>é\x01_N'
edits = st.lists(
    st.tuples(
        st.integers(0, 200), st.sampled_from("drsi"), st.sampled_from(CHARACTERS)
    ),
    max_size=3,
)


@given(name=words, made=arguments, edits=edits, other=st.booleans())
@settings(max_examples=400)
@example(name="f", made={"a": 1e300}, edits=[], other=False)
@example(name="f", made={"a": -0.0, "b": [], "c": {}}, edits=[], other=True)
def test_a_call_is_read_exactly_where_it_is_one(
    name: str, made: dict[str, Any], edits: list[Any], other: bool
) -> None:
    """Against Python's own parser, for calls and for texts that nearly are."""
    document = {"name": name, "arguments": made, **({"id": [1, {}]} if other else {})}
    text = json.dumps(document, ensure_ascii=bool(len(name) % 2))
    for place, what, character in edits:
        place %= len(text) + 1
        end = place + (what in "dr")
        put = {"d": "", "r": character, "i": character, "s": text[end : end + 2]}[what]
        text = text[:place] + put + text[end:]
    assume("name" not in strict_keys_escaped(text))
    value = strict(text)
    is_call = (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("arguments"), dict)
    )
    written = f"<tool_call>{text}</tool_call>"
    content, found = parsed(written + STOP)
    if is_call:
        assert found == [(value["name"], value["arguments"])]
    elif strict_twice_nested(text):
        return  # a key twice inside of arguments: the last one, as to every parser
    else:
        assert (content, found) == (written, [])


def strict_keys_escaped(text: str) -> list[str]:
    """Keys written with escapes, which a call's other keys may not be."""
    return (
        ["name"]
        if regex.search(r'\\[^"]*"\s*:', text.partition('"arguments"')[0])
        else []
    )


def strict_twice_nested(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return strict(text) is None and isinstance(value, dict)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>',
        "<tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": "x"',
        '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>',
        "<tool_call>\n</tool_call>",
        "<tool_call> is what I write before a call",
        "a < b, <tool_",
    ],
)
def test_what_is_no_call_stays_content_in_both(text: str) -> None:
    assert hermes.read(text) == (text, [])
    for cuts in ((), (1,) * len(text), (5, 3, 2) * 9):
        assert parsed(text + STOP, cuts) == (text, [])


ENDS = (STOP, "</s>")


@given(
    said=st.lists(words | st.sampled_from(ENDS), max_size=5).map("".join),
    given=st.lists(words | st.sampled_from(ENDS), max_size=5).map("".join),
    last=st.sampled_from((STOP, "</s>", f"{STOP}</s>", f"\n{STOP}\n", "")),
    cuts=pieces,
)
@settings(max_examples=40)
@example(said=f"a turn ends with {STOP} here", given="<s>b</s> c", last=STOP, cuts=())
def test_an_end_in_the_text_is_text(
    said: str, given: str, last: str, cuts: tuple[int, ...]
) -> None:
    """As tokens that end a turn are text where a tokenizer spells them out; the last one,
    and blanks before it, are none of the answer.
    """
    assume(not said.rstrip().endswith(ENDS))
    call = json.dumps({"name": "f", "arguments": {given: [given]}}, ensure_ascii=False)
    text = f"{said}<tool_call>\n{call}\n</tool_call>{last}"
    for sizes in ((), cuts):
        content, found = parsed(text, sizes)
        assert content.rstrip() == said.rstrip()
        assert found == [("f", {given: [given]})]
        assert parsed(f"{said}{last}", sizes)[0].rstrip() == said.rstrip()


@pytest.mark.parametrize("last", [STOP, f"{STOP}\n", f"</s>{STOP}"])
def test_a_call_that_ends_with_the_turn(last: str) -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"a": "</s>"}}'
    for cuts in ((), (1,) * len(text + last)):
        content, found = parsed(text + last, cuts)
        assert not content.strip() and found == [("f", {"a": "</s>"})]
        content, found = parsed(f"{text}{last} more{STOP}", cuts)
        assert content.endswith(" more") and found == [("f", {"a": "</s>"})]


@pytest.mark.parametrize(
    ("nested", "is_read"), [(90, True), (200, False), (3_000, False)]
)
def test_what_is_nested_too_deep_stays_content(nested: int, is_read: bool) -> None:
    """Python's reader of JSON raises at some thousands, and the request with it."""
    for begin, end in (("[", "]"), ('{"[": ', "}"), ('["]", [], ', "]")):
        value = begin * nested + "1" + end * nested
        call = f'{{"name": "f", "arguments": {{"a": {value}}}}}'
        text = f"a<tool_call>{call}</tool_call>"
        content, found = parsed(text + STOP)
        if is_read:
            assert (content, found) == ("a", [("f", json.loads(call)["arguments"])])
        else:
            assert (content, found) == (text, [])


def test_one_bad_call_among_good_ones_loses_none_of_them() -> None:
    good, bad = '{"name": "f", "arguments": {}}', '{"name": f}'
    text = f"<tool_call>{good}</tool_call>\n<tool_call>{bad}</tool_call>"
    content, found = parsed(text + STOP)
    assert found == [("f", {})] and content.strip() == f"<tool_call>{bad}</tool_call>"
