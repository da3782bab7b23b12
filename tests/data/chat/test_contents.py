"""What clients send as contents, through the shipped template as transformers renders it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from tests.data.chat.tokenizers import save_chat_tokenizer
from tests.paths import ROOT

SHIPPED = ROOT / "alia_ctx" / "data" / "chat" / "templates" / "chatml-tools.jinja"


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    directory: Path = save_chat_tokenizer("byte level", folder)
    auto = AutoTokenizer.from_pretrained(directory)

    def rendered(*messages: dict[str, Any], **more: Any) -> str:
        text = auto.apply_chat_template(
            list(messages),
            chat_template=SHIPPED.read_text(),
            tokenize=False,
            **more,
        )
        return str(text)

    return rendered


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_parts_of_text_are_the_text(render: Any, role: str) -> None:
    by_parts = render({"role": role, "content": parts("hi", " there")})
    assert by_parts == render({"role": role, "content": "hi there"})


@pytest.mark.parametrize(
    "result",
    [
        {"temp": 21, "city": "東京", "fine": True, "rest": None},
        [1, 2.5, None],
        [{"type": "car", "doors": 3}],
        ["a", *parts("b")],
        21,
        True,
        [],
    ],
    ids=str,
)
def test_a_result_that_is_no_text_is_json(render: Any, result: Any) -> None:
    text = render({"role": "tool", "content": result})
    shown = text.split("<tool_response>\n")[1].split("\n</tool_response>")[0]
    assert json.loads(shown) == result


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_nothing_is_nothing(render: Any, role: str) -> None:
    empty = render({"role": role, "content": ""})
    assert render({"role": role, "content": None}) == empty
    assert "None" not in empty


@pytest.mark.parametrize("tools", [None, [{"name": "f", "parameters": {}}]])
def test_a_developer_is_a_system_prompt(render: Any, tools: Any) -> None:
    asked = {"role": "user", "content": "hi"}
    texts = {
        render({"role": role, "content": "be short"}, asked, tools=tools)
        for role in ("system", "developer")
    }
    assert len(texts) == 1


def test_what_is_no_text_is_refused(render: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(TemplateError, match="reads text"):
        render({"role": "user", "content": [*parts("what is this?"), image]})
    with pytest.raises(TemplateError, match="only at the beginning"):
        render({"role": "user", "content": "x"}, {"role": "developer", "content": "y"})
