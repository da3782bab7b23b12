"""How the records of a source are read as conversations: `chat` of a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alia_ctx.errors import Problem

ChatForm = Literal[
    "auto",
    "xlam",
    "glaive",
    "toolace",
    "toucan",
    "when2call",
    "dolci",
    "openai",
    "sharegpt",
]
TrainOn = Literal["assistant", "assistant_with_header", "last_turn"]
MaxLength = Literal["drop", "split"]
# Under which a checkpoint states the template of the conversations it was trained on.
CHAT_TEMPLATE = "chat_template"
TEMPLATES = ("chatml-tools", "tokenizer")


@dataclass(frozen=True)
class ChatSpec:
    """Conversations in place of text: form, template, and what of them is trained.

    format: form of the records; `auto` goes by the columns of each.
    template: `chatml-tools` (shipped), `tokenizer` (the tokenizer's own), or the path of
    a Jinja file.
    train_on: the assistant's words, calls and stop token (`assistant`), these with the
    header before them, or those of its last turn alone.
    max_length: what becomes of a conversation above `max_tokens`: it is left out
    (`drop`), or loses turns from its end until it fits (`split`); both are counted.
    max_tokens: None is the longest context of the run's stages.
    strict: a row that cannot be used stops the work instead of being counted.
    """

    format: ChatForm = "auto"
    template: str = "chatml-tools"
    train_on: TrainOn = "assistant"
    max_length: MaxLength = "drop"
    max_tokens: int | None = None
    strict: bool = False

    def problems(self, key: str) -> list[Problem]:
        """Rules that it breaks; `key` is its place in the configuration."""
        problems = []
        if self.template not in TEMPLATES and not Path(self.template).is_file():
            problems.append(
                Problem(
                    f"{key}.template",
                    self.template,
                    "is no shipped template and no file",
                    f"give {', '.join(TEMPLATES)} or the path of a Jinja file",
                )
            )
        if self.max_tokens is not None and self.max_tokens < 2:
            problems.append(
                Problem(
                    f"{key}.max_tokens",
                    self.max_tokens,
                    "must be at least 2",
                    "leave it out for the longest context of the stages",
                )
            )
        return problems
