"""What servers read of an export: the template of training, where a turn ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint
from alia_ctx.data.chat.template import ChatTemplate
from alia_ctx.data.documents.chat_spec import CHAT_TEMPLATE
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.data.tokens.tokenizer_files import tokenizer_statement
from alia_ctx.hf import serving
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests.data.chat.tokenizers import byte_level, llama
from tests.hf.exports import read, trained
from tests.hf_models import edit_json, save_model
from tests.small_run import alia
from tests.tokenizers import SPECIAL, save

HEADER, STOP = "<|im_start|>assistant\n", "<|im_end|>"
READ = serving.response_template(HEADER, [STOP, "</s>"], SPECIAL)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


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
    assert "shows no tools: it makes no calls" in card and "hermes" not in card
    shows = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    out = export(tmp_path / "other", shows + WITHOUT_CALLS, "tokenizer")
    card = (out / "README.md").read_text()
    assert "a parser of their own" in card and "hermes" not in card


def test_a_chat_template_s_stop_ends_turns_of_a_base_too(tmp_path: Path) -> None:
    """Its card has programs that chat; how it is sampled stays its own."""
    plain = WITHOUT_CALLS.replace("</s>", "<|im_end|>")
    out = export(tmp_path, plain, None)
    generation = read(out / "generation_config.json")
    ends = HubTokenizer(out).special
    assert generation["eos_token_id"] == [ends["<|im_end|>"], 2]
    assert "temperature" not in generation and "do_sample" not in generation


@pytest.mark.parametrize("calls", ["<tool_call>", "<call>"])
@pytest.mark.parametrize("trained", [True, False])
def test_calls_that_end_with_a_token_of_their_own(
    tmp_path: Path, calls: str, trained: bool
) -> None:
    """Who stops at that of words alone goes on writing behind a call."""
    both = "{{ '<|im_end|>\\n' }}"
    apart = "{{ '<pad>' if m.tool_calls else '<|im_end|>\\n' }}"
    own = WITH_HERMES.replace(both, apart).replace("<tool_call>", calls)
    assert own != WITH_HERMES
    out = export(tmp_path, own, "tokenizer" if trained else None)
    assert read(out / "generation_config.json")["eos_token_id"] == [5, 3, 2]
    settings = read(out / "tokenizer_config.json")
    assert ("response_template" in settings) == (calls == "<tool_call>")
    if calls == "<tool_call>":
        ends = [STOP, "<pad>", "</s>"]
        assert settings["response_template"] == serving.response_template(
            HEADER, ends, SPECIAL
        )


@pytest.mark.parametrize(
    ("text", "name", "left"),
    [
        (WITHOUT_CALLS, "other.jinja", None),
        (WITHOUT_CALLS, "tokenizer", None),  # it had another at the time of training
        (WITH_HERMES + " ", "tokenizer", READ),
        (WITH_HERMES, "tokenizer", {"of": "another format"}),
        (WITH_HERMES, "the_same.jinja", READ),
    ],
)
def test_how_turns_of_another_template_are_read_goes_with_it(
    tmp_path: Path, text: str, name: str, left: Any
) -> None:
    """transformers would read the turns of the one that was trained with so."""
    out = export(tmp_path, WITH_HERMES, None)
    own = {"response_template": {"of": "another format"}, "response_schema": {}}
    edit_json(out / "tokenizer_config.json", **own)
    stated = {"name": name, "text": text, "fingerprint": ""}
    serving.write_chat_template(out, stated)
    serving.complete(out, stated, 480)
    assert (out / "chat_template.jinja").read_text() == text
    settings = read(out / "tokenizer_config.json")
    assert settings.get("response_template") == left
    assert ("response_schema" in settings) == (text == WITH_HERMES)


def test_a_model_that_saw_no_conversations_keeps_its_own(tmp_path: Path) -> None:
    """What its template writes can be read, and how it is sampled is its own affair."""
    out = export(tmp_path, WITH_HERMES, None, temperature=0.6, do_sample=True)
    generation = read(out / "generation_config.json")
    assert (generation["temperature"], generation["eos_token_id"]) == (0.6, [5, 2])
    assert read(out / "tokenizer_config.json")["response_template"] == READ


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", " \n"])
def test_what_ends_a_text_without_an_answer_is_no_part_of_a_turn(
    tmp_path: Path, end: str
) -> None:
    """Or the question that shows the template would stand in `response_template`, and
    transformers find no turn behind any other.
    """
    tail = f"{{% if not add_generation_prompt %}}{{{{ {end!r} }}}}{{% endif %}}"
    out = export(tmp_path, WITH_HERMES + tail, None)
    assert read(out / "tokenizer_config.json")["response_template"] == READ
    assert read(out / "generation_config.json")["eos_token_id"] == [5, 2]


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
