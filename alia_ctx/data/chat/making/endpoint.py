"""A model behind an OpenAI-compatible endpoint that words what the grammar decided.

The model writes only what people say: the user's requests. Which function is called
with which arguments stays the grammar's, so that a call is right by construction; and
what the model wrote is checked to say each argument.
"""

from __future__ import annotations

import http.client
import json
import os
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from alia_ctx.data.chat.conversation import Conversation, Message
from alia_ctx.data.chat.making.grammar import MadeConversation, Request
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.verify import request_fault
from alia_ctx.errors import DataError
from alia_ctx.files import parse_json

_TRIES = 3
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Endpoint:
    """Where the model is: the address that `/chat/completions` follows, and its name.

    A key for it is taken from the environment, `OPENAI_API_KEY`.
    """

    url: str
    model: str
    temperature: float = 0.7

    def complete(self, prompt: str, seed: int) -> str:
        """The model's answer to one user message.

        DataError where the endpoint cannot be reached, refuses, or answers otherwise
        than OpenAI's interface says.
        """
        try:
            parts, port = urlsplit(self.url), urlsplit(self.url).port
        except ValueError:  # a port that is no number
            parts, port = urlsplit(""), None
        kinds = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        if parts.scheme not in kinds or not parts.hostname:
            raise DataError(
                f"{self.url}: no http or https address; give one as http://HOST:PORT/v1"
            )
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "seed": seed,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        connection = kinds[parts.scheme](parts.hostname, port, timeout=_TIMEOUT_SECONDS)
        try:
            path = f"{parts.path.rstrip('/')}/chat/completions"
            connection.request("POST", path, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            data = response.read()
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            raise DataError(
                f"{self.url}: does not answer ({error or type(error).__name__}); start "
                "the server, or correct the address"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            told = data[:200].decode("utf-8", "replace")
            raise DataError(
                f"{self.url}: answers {response.status} ({told}); correct the address, "
                "the model's name or the key"
            )
        return self._content(data)

    def _content(self, data: bytes) -> str:
        try:
            answer: Any = parse_json(data)
            content = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"{self.url}: its answer is not of OpenAI's form "
                f"({data[:120].decode('utf-8', 'replace')}); give such an endpoint"
            ) from error
        return content if isinstance(content, str) else ""


def worded(
    made: MadeConversation, endpoint: Endpoint, seed: int
) -> MadeConversation | None:
    """The conversation with its requests in the model's words; None where the model does
    not say what must be said in a few tries.
    """
    messages = [*made.conversation.messages]
    requests = made.requests or (Request(0, ()),)
    for request in requests:
        plain = messages[request.turn].content or ""
        text = _worded(request, plain, made.language, endpoint, seed)
        if text is None:
            return None
        messages[request.turn] = Message("user", text)
    conversation = Conversation(tuple(messages), made.conversation.tools)
    return replace(made, conversation=conversation)


def _worded(
    request: Request, plain: str, language: str, endpoint: Endpoint, seed: int
) -> str | None:
    told = [
        f"- {call.function.name} ({call.function.description}) with "
        f"{json.dumps(call.arguments, ensure_ascii=False)}"
        for call in request.calls
    ]
    kept = "".join(
        f"\nDo not say anything about {name}; it was forgotten."
        for name in request.kept_back
    )
    prompt = (
        f"Write what a user says in {LANGUAGES[language].name} to an assistant, as one "
        "short and natural message. It must have the meaning of this one:\n"
        f"{plain}\n"
        + ("It asks for:\n" + "\n".join(told) + "\n" if told else "")
        + "Every value must stand in it exactly as it is written here, truths as true "
        f"or false.{kept}\nAnswer with the message alone."
    )
    for attempt in range(_TRIES):
        text = endpoint.complete(prompt, seed + attempt).strip()
        if text and request_fault(request.calls, text) is None:
            return text
    return None
