"""A model behind an OpenAI-compatible endpoint that words what the grammar decided.

The model writes only what people say: the user's requests. Which function is called
with which arguments stays the grammar's, so that a call is right by construction; and
what the model wrote is checked to say each argument.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from alia_ctx.data.chat.conversation import Conversation, Message
from alia_ctx.data.chat.making.drawing import NotMadeError
from alia_ctx.data.chat.making.grammar import MadeConversation, Request
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.verify import request_fault
from alia_ctx.data.chat.reasoning import split_reasoning
from alia_ctx.errors import DataError, excerpt
from alia_ctx.files import parse_json

_TRIES = 3
_TIMEOUT_SECONDS = 120.0
_PAUSES_SECONDS = (1.0, 4.0, 16.0, 60.0)
_LONGEST_PAUSE_SECONDS = 300.0
_BUSY = (408, 425, 429, 500, 502, 503, 504, 529)  # not now; 529 is "overloaded"


@dataclass(frozen=True)
class Endpoint:
    """Where the model is: the address that `/chat/completions` follows, and its name.

    A key for it is taken from the environment, `OPENAI_API_KEY`.
    """

    url: str
    model: str
    temperature: float = 0.7

    @cached_property
    def _answered(self) -> list[bool]:
        """Not empty once it has answered: an address where nobody ever did is mistyped."""
        return []

    def address(self) -> tuple[type[http.client.HTTPConnection], str, int | None, str]:
        """How it is reached: connection, host, port, path; DataError where it is none."""
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
        return kinds[parts.scheme], parts.hostname, port, parts.path

    def complete(self, prompt: str, seed: int) -> str:
        """The model's whole answer to one user message, without what it reasoned. Where the
        endpoint is busy, down, or silent it is asked again some times, after the pause that
        it asks for, if it does.

        NotMadeError where the answer has no words or is not whole (cut at a limit, or by a
        filter); DataError where the endpoint cannot be reached at all, does not come back,
        refuses, or answers otherwise than OpenAI's interface says.
        """
        kind, host, port, path = self.address()
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "seed": seed,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        path = f"{path.rstrip('/')}/chat/completions"
        for pause in (*_PAUSES_SECONDS, None):
            asked_for = None
            connection = kind(host, port, timeout=_TIMEOUT_SECONDS)
            try:
                connection.request("POST", path, json.dumps(body).encode(), headers)
                response = connection.getresponse()
                status, data = response.status, response.read()
                asked_for = response.headers.get("Retry-After")
            except (TimeoutError, OSError, http.client.HTTPException) as error:
                if pause is None or not self._answered:
                    raise DataError(
                        f"{self.url}: does not answer ({error or type(error).__name__}); "
                        f"start the server, or correct the address{self._kept()}"
                    ) from error
            else:
                if status == 200:
                    self._answered.append(True)
                    return self._content(data)
                if pause is None or status not in _BUSY:
                    told = excerpt(data, 200)
                    raise DataError(
                        f"{self.url}: answers {status} ({told}); correct the address, "
                        f"the model's name or the key{self._kept()}"
                    )
            finally:
                connection.close()
            time.sleep(_pause(asked_for, pause))
        raise AssertionError("the last try returns or raises")

    def _kept(self) -> str:
        return "; what is made is kept, start again to go on" if self._answered else ""

    def _content(self, data: bytes) -> str:
        try:
            choice: Any = parse_json(data)["choices"][0]
            content, ended = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.url}: its answer is not of OpenAI's form "
                f"({data[:120].decode('utf-8', 'replace')}); give such an endpoint"
            ) from error
        if ended and ended != "stop":  # some servers say nothing of it
            raise NotMadeError(
                f"the model's answer is not whole: finish_reason {ended}"
            )
        _, words = split_reasoning(content if isinstance(content, str) else "")
        if not words.strip():
            raise NotMadeError("the model's answer has no words")
        return words.strip()


def _pause(asked_for: str | None, usual: float) -> float:
    """Seconds to wait: what `Retry-After` says (RFC 9110: seconds, or a date), within
    limits, or the usual.
    """
    if asked_for is None:
        return usual
    try:
        seconds = float(asked_for)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked_for).timestamp() - time.time()
        except ValueError:
            seconds = usual
    return (
        min(max(seconds, 0.0), _LONGEST_PAUSE_SECONDS) if seconds == seconds else usual
    )


def worded(made: MadeConversation, endpoint: Endpoint, seed: int) -> MadeConversation:
    """The conversation with its requests in the model's words; NotMadeError where the model
    does not say what must be said in a few tries.
    """
    messages = [*made.conversation.messages]
    requests = made.requests or (Request(0, ()),)
    for request in requests:
        plain = messages[request.turn].content or ""
        text = _worded(request, plain, made.language, endpoint, seed)
        messages[request.turn] = Message("user", text)
    conversation = Conversation(tuple(messages), made.conversation.tools)
    return replace(made, conversation=conversation)


def _worded(
    request: Request, plain: str, language: str, endpoint: Endpoint, seed: int
) -> str:
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
    fault = ""
    for attempt in range(_TRIES):
        try:
            text = endpoint.complete(prompt, seed + attempt)
        except NotMadeError as error:
            fault = str(error)
            continue
        if request_fault(request.calls, text) is None:
            return text
        fault = "the model does not say the arguments"
    raise NotMadeError(fault)
