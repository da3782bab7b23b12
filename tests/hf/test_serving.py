"""What servers read of an export: calls as Hermes writes them, the template of training,
where a turn ends.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from alia_ctx import checkpoint
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.documents.chat_spec import CHAT_TEMPLATE
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.data.tokens.tokenizer_files import tokenizer_statement
from alia_ctx.hf import serving
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests.data.chat.tokenizers import byte_level, llama
from tests.hf import hermes
from tests.hf.exports import read, trained
from tests.hf_models import edit_json, save_model
from tests.small_run import alia
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


# -- exports ---------------------------------------------------------------------------

WITH_HERMES = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITHOUT_CALLS = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def export(
    root: Path,
    own: str | None,
    name: str | None,
    make: Any = byte_level,
    **generation: Any,
) -> Path:
    """An export of a model with a tokenizer whose template is `own`, trained on
    conversations of the template `name`, if any.
    """
    save_model(root / "hf", rope="linear", vocab_size=480)
    for file in (root / "hf").glob("*"):
        if "token" in file.name or "template" in file.name:
            file.unlink()
    extra = {} if own is None else {"chat_template": own}
    save(make(), root / "tokenizer", **extra)
    for file in (root / "tokenizer").iterdir():
        (root / "hf" / file.name).write_bytes(file.read_bytes())
    edit_json(root / "hf" / "generation_config.json", **generation)
    import_hf(root / "hf", root / "ck")
    trained(root / "ck", tokenizer=str(root / "tokenizer"))
    manifest = checkpoint.read_manifest(root / "ck")
    said = {"tokenizer": tokenizer_statement(root / "tokenizer")}
    if name is not None:
        template = ChatTemplate(name, HubTokenizer(root / "tokenizer", "llama"))
        said[CHAT_TEMPLATE] = template.statement()
    later = dataclasses.replace(manifest, extra=said)
    (root / "ck" / "manifest.json").write_text(json.dumps(later.to_json()))
    export_hf(root / "ck", root / "out")
    return root / "out"


def test_the_template_of_training_and_no_other(tmp_path: Path) -> None:
    """Not one of the tokenizer's own: one called `tool_use` would win where tools are."""
    from transformers import AutoTokenizer

    own = [
        {"name": "default", "template": WITHOUT_CALLS},
        {"name": "tool_use", "template": WITHOUT_CALLS + "other"},
    ]
    out = export(tmp_path, own, "chatml-tools", temperature=0.6, top_p=0.9)
    trained_with = ChatTemplate("chatml-tools", HubTokenizer(tmp_path / "tokenizer"))
    loaded = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "a question"}]
    shown = loaded.apply_chat_template(
        messages, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert shown == trained_with._render(messages, TOOLS, prompt=True)
    assert (out / "chat_template.jinja").read_text() == trained_with.text
    assert "chat_template" not in read(out / "tokenizer_config.json")
    generation = read(out / "generation_config.json")
    assert generation["eos_token_id"] == [5, 2]
    assert (generation["temperature"], generation["do_sample"]) == (0.1, True)
    assert generation["top_p"] == 0.9
    assert read(out / "config.json")["eos_token_id"] == 2
    assert read(out / "tokenizer_config.json")["response_template"] == READ
    card = (out / "README.md").read_text()
    assert "not the base model's 0.6" in card
    assert (
        "--max-model-len 512 --enable-auto-tool-choice --tool-call-parser hermes"
        in card
    )
    # It decides no ids: what compares tokenizers finds the one of training.
    assert tokenizer_statement(out) == tokenizer_statement(tmp_path / "tokenizer")
    assert verify(out, tmp_path / "ck", logits=False).ok


@pytest.mark.parametrize("make", [byte_level, llama])
def test_ids_are_read_as_text_is(tmp_path: Path, make: Any) -> None:
    """By servers: the prompt before the turn and the turn itself, as decoded ids."""
    from transformers import AutoTokenizer

    out = export(tmp_path, None, "chatml-tools", make, temperature=0.15)
    assert read(out / "generation_config.json")["temperature"] == 0.15
    loaded = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "the rain"}]
    prompt = loaded.apply_chat_template(messages, add_generation_prompt=True)[
        "input_ids"
    ]
    text = (
        '<tool_call>\n{"name": "f", "arguments": {"a": "ra"}}\n</tool_call><|im_end|>'
    )
    ids = loaded.encode(text, add_special_tokens=False)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "ra"}}}
    assert loaded.parse_response(ids, prefix=prompt) == {
        "role": "assistant",
        "tool_calls": [call],
    }


def test_a_template_whose_calls_are_others(tmp_path: Path) -> None:
    out = export(tmp_path, WITHOUT_CALLS, "tokenizer")
    assert "response_template" not in read(out / "tokenizer_config.json")
    assert read(out / "generation_config.json")["eos_token_id"] == 2
    card = (out / "README.md").read_text()
    assert "a parser of their own" in card and "hermes" not in card


def test_a_model_that_saw_no_conversations_keeps_its_own(tmp_path: Path) -> None:
    """What its template writes can be read, and how it is sampled is its own affair."""
    out = export(tmp_path, WITH_HERMES, None, temperature=0.6, do_sample=True)
    generation = read(out / "generation_config.json")
    assert (generation["temperature"], generation["eos_token_id"]) == (0.6, [5, 2])
    assert read(out / "tokenizer_config.json")["response_template"] == READ


def test_nothing_to_read_where_there_is_no_template(tmp_path: Path) -> None:
    out = export(tmp_path, None, None)
    assert "response_template" not in read(out / "tokenizer_config.json")
    assert "temperature" not in read(out / "generation_config.json")
    card = (out / "README.md").read_text()
    assert "--max-model-len 512" in card and "--tool-call-parser" not in card


def test_what_was_measured_stands_in_the_card(tmp_path: Path) -> None:
    """As a section of it: headings below its own, pictures left out."""
    out = export(tmp_path, None, "chatml-tools")
    report = tmp_path / "report.md"
    report.write_text("# Calls\n\n| simple |\n|---|\n| 71.0 |\n\n![plot](plot.png)\n")
    done = alia(
        "export-hf",
        str(tmp_path / "ck"),
        str(out),
        *("--overwrite", "--evaluation", str(report)),
    )
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text()
    assert "## Evaluation\n\n### Calls\n\n| simple |\n|---|\n| 71.0 |" in card
    assert "plot.png" not in card
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = ("export-hf", str(tmp_path / "ck"), str(out), "--overwrite", "--evaluation")
    done = alia(*again, str(tmp_path / "none.md"))
    assert done.returncode == 2 and "none.md: cannot be read as text" in done.stderr
    assert "Traceback" not in done.stderr
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
