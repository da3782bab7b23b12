"""Chat templates: which one, and what it makes of a conversation.

`AutoTokenizer.apply_chat_template` itself renders, so that what is trained on is to the
character what a server shows the model later.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.documents.chat_spec import TEMPLATES
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from alia_ctx.files import checksum

_SHIPPED = Path(__file__).parent / "templates"
_ANSWER = "an answer"
_PROBE = [
    {"role": "user", "content": "a question"},
    {"role": "assistant", "content": _ANSWER},
]


class ChatTemplate:
    """A Jinja template with the tokenizer whose special tokens it may name."""

    def __init__(self, name: str, tokenizer: HubTokenizer) -> None:
        """`name`: `chatml-tools`, `tokenizer` (the tokenizer's own), or a path.

        DataError where there is none, it is no Jinja, or where the assistant's words begin
        is not known: it does not begin their turn when asked to (`add_generation_prompt`),
        nor do they follow the question without a header, as in Mistral's.
        """
        self.name, self._tokenizer = name, tokenizer
        self._text = self._read()
        asked = self._render(_PROBE[:1], None, prompt=False)
        if self._render(_PROBE[:1], None, prompt=True) == asked:
            answered = self._render(_PROBE, None, prompt=False)
            said = answered.removeprefix(asked).lstrip()
            if not (answered.startswith(asked) and said.startswith(_ANSWER)):
                raise DataError(
                    f"{self}: does not heed add_generation_prompt, so where the "
                    "assistant's words begin is not known; give a template that does, as "
                    f"{TEMPLATES[0]}"
                )

    def __str__(self) -> str:
        return f"chat template {self.name}"

    def _read(self) -> str | None:
        if self.name == "tokenizer":
            if not self._tokenizer.auto.chat_template:
                raise DataError(
                    f"{self._tokenizer.directory}: has no chat template; name one, as "
                    f"{TEMPLATES[0]}"
                )
            return None  # so that transformers chooses among several as it always does
        shipped = self.name in TEMPLATES
        path = _SHIPPED / f"{self.name}.jinja" if shipped else Path(self.name)
        try:
            # As it is: a template of Windows' line ends renders them.
            return path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: cannot be read as a chat template ({error}); give "
                f"{', '.join(TEMPLATES)} or the path of a Jinja file"
            ) from error

    @property
    def text(self) -> str:
        """The template's source; of several those by name, as JSON."""
        own = self._tokenizer.auto.chat_template if self._text is None else self._text
        return own if isinstance(own, str) else json.dumps(own, sort_keys=True)

    @cached_property
    def fingerprint(self) -> str:
        """xxh3_128 of the text and of the special tokens that it may name, in hex."""
        names = json.dumps(self._tokenizer.auto.special_tokens_map, sort_keys=True)
        return checksum(f"{self.text}\0{names}".encode())

    def statement(self) -> dict[str, str]:
        """What a checkpoint states of the template that its conversations have."""
        return {
            "name": Path(self.name).name,
            "fingerprint": self.fingerprint,
            "text": self.text,
        }

    @property
    def dated(self) -> bool:
        """Whether what it renders may depend on the day."""
        return "strftime_now" in self.text

    @cached_property
    def closing(self) -> str:
        """What the template writes behind the words of a turn that is the last."""
        text = self._render(_PROBE, None, prompt=False)
        return text.rpartition(_ANSWER)[2]

    def render(self, conversation: Conversation, *, prompt: bool = False) -> str:
        """The text of a conversation; with `prompt`, up to where the assistant's next
        words begin. RowError where the template refuses it.
        """
        try:
            return self._render(
                conversation.messages_for_template(),
                conversation.tools_for_template(),
                prompt=prompt,
            )
        except DataError as error:
            raise RowError("template_refuses", str(error)) from error

    def _render(self, messages: object, tools: object, *, prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.auto.apply_chat_template(
                    messages,
                    tools=tools,
                    chat_template=self._text,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except Exception as error:  # whatever a template raises, or Jinja for it
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(f"{self}: {reason}") from error
