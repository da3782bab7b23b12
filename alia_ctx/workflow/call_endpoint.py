"""Answers of a model behind an OpenAI-compatible endpoint, several at a time."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from itertools import batched
from typing import Any
from urllib.parse import urlsplit

from alia_ctx.errors import AliaError, ConfigError, DataError, Problem
from alia_ctx.evaluation.function_calling import Answer, Case, tools_of
from alia_ctx.files import parse_json
from alia_ctx.workflow.call_generation import SHORTEST
from alia_ctx.workflow.call_writer import CallSettings

_TIMEOUT_SECONDS = 600.0
_PAUSES_SECONDS = (1.0, 4.0, 16.0)
_REFUSED = (400, 413, 422)  # the request itself, as where it is too long
# Servers (vLLM, SGLang) refuse a question that fits, where it and the most tokens of its
# answer do not: without a number the answer ends with their context. A server that wants
# one gets less and less.
_LESS = (256, 64, 16)
_OF_TRANSFORMERS = (
    "to transformers serve it is the path of the directory that it was started with"
)


class EndpointModel:
    """A served model; a key for it is taken from `OPENAI_API_KEY`.

    What is behind the address is not known: a server that was started with another
    model of the same name is not noticed.

    Args:
        url: the address that `/chat/completions` follows.
        model: its name there; None is the only one that the server lists. To
            transformers serve it is the path that it was started with.
    """

    def __init__(
        self,
        url: str,
        settings: CallSettings,
        model: str | None = None,
        concurrency: int = 8,
    ) -> None:
        self._scheme, self._host, self._port, self._path = _parts(url)
        url = url.rstrip("/")  # one server, however it is written
        self._url, self._settings = url, settings
        self._concurrency = concurrency
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not _is_plain(self._key):
            rule = "has characters that no header may have"
            remedy = "set the server's key, or none"
            raise ConfigError("", [Problem("OPENAI_API_KEY", "...", rule, remedy)])
        self.name = self._served(model)
        self.template = "the server's"
        self.notes: tuple[str, ...] = ()
        self.may_change = True  # it may be started otherwise the next time
        self.statement = {
            "endpoint": url,
            "model": self.name,
            "settings": settings,
        }

    def _served(self, model: str | None) -> str:
        """The model's name; ConfigError where the server lists others, and does not
        answer under this one either: transformers serve lists the models of a cache, and
        answers to the path that it was started with.
        """
        status, data = self._request("GET", "/models", None)
        try:
            listed = [str(one["id"]) for one in parse_json(data)["data"]]
        except (ValueError, LookupError, TypeError):
            listed = []
        if status != 200 or not listed:
            if model is not None:  # servers need not list their models
                return model
            rule = f"lists no models (status {status})"
            remedy = f"name MODEL ({_OF_TRANSFORMERS})"
            if told := self._elsewhere(status):
                remedy = f"{told}, or MODEL"
            raise ConfigError("", [Problem("--endpoint", self._url, rule, remedy)])
        if model is None and len(listed) == 1:
            return listed[0]
        if model is None or (model not in listed and not self._answers_to(model)):
            rule = f"is not one of the models of {self._url}"
            if model is None:
                rule = f"is needed, as {self._url} has several models"
            remedy = f"there are {', '.join(listed[:8])} ({_OF_TRANSFORMERS})"
            raise ConfigError("", [Problem("MODEL", model, rule, remedy)])
        return model

    def _answers_to(self, model: str) -> bool:
        said = list(SHORTEST.messages)
        body = {"model": model, "messages": said, "max_tokens": 1}
        return self._request("POST", "/chat/completions", body)[0] == 200

    def answers(self, cases: Sequence[Case]) -> Iterator[list[tuple[str, Answer]]]:
        """Answers as they come, as many at a time as `concurrency`; in the cases' order.

        DataError where the server refuses questions and also the shortest with a tool:
        that is how it was started, not how long they are.
        """
        for batch in batched(cases, self._concurrency):
            answers, error = self._together(batch)
            if error is not None:
                yield answers  # what the others have cost is not lost
                raise error
            refusals = [answer.fault for _, answer in answers if answer.fault]
            if len(refusals) == len(batch) and self.refusal():
                raise DataError(
                    f"{self._url}, case {batch[0].id}: {refusals[0]}; correct how the "
                    "server is started (tools, context), or the model's name "
                    f"({_OF_TRANSFORMERS}); answers that are there are kept"
                )
            yield answers

    def _together(
        self, cases: Sequence[Case]
    ) -> tuple[list[tuple[str, Answer]], AliaError | None]:
        """The answers to cases that are all asked at once; with the first error of them,
        those that came until a second later.

        Not by a pool: its threads are waited for, and one that hears nothing of its server
        would hold whoever wants to stop for ten minutes.
        """
        asked: dict[str, Future[Answer]] = {}
        for case in cases:
            answer = asked[case.id] = Future()
            words = (answer, self._answer, case)
            threading.Thread(target=_settle, args=words, daemon=True).start()
        try:
            return [(name, answer.result()) for name, answer in asked.items()], None
        except AliaError as error:
            wait(asked.values(), timeout=1)
            came = [
                (name, answer.result())
                for name, answer in asked.items()
                if answer.done() and answer.exception() is None
            ]
            # What is refused may be for what ails the server.
            return [(name, answer) for name, answer in came if not answer.fault], error

    def refusal(self) -> str:
        """Why the server refuses the shortest question with a tool, if it does."""
        return self._answer(SHORTEST).fault

    def serving(self) -> AbstractContextManager[str]:
        """Its address."""
        return nullcontext(self._url)

    def close(self) -> None:
        """Nothing of it is held here."""

    def _answer(self, case: Case) -> Answer:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(case.messages),
            "temperature": self._settings.temperature,
            "seed": self._settings.seed,
        }
        tools = tools_of(case.functions, case.language, self._settings.names)
        if tools:
            body["tools"] = tools
        refused = None
        for most in self._most_tokens():
            limit = {} if most is None else {"max_tokens": most}
            status, data = self._request("POST", "/chat/completions", body | limit)
            if status not in _REFUSED:
                break
            refused = refused or (status, data)
        else:  # the first time says most
            assert refused is not None
            told = " ".join(refused[1][:300].decode("utf-8", "replace").split())
            return Answer("", fault=f"the server answers {refused[0]}: {told}")
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            answer = parse_json(data)
            choice = answer["choices"][0]
            cut = choice.get("finish_reason") == "length"
            message = choice["message"]
            calls = tuple(
                _call(call["function"]) for call in message.get("tool_calls") or ()
            )
            text = _text(message.get("content"))
            tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
        # Infinity is JSON to Python, and no number of tokens (OverflowError).
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:
            told = " ".join(data[:200].decode("utf-8", "replace").split())
            remedy = self._elsewhere(status) or "mend the server, and start again"
            raise DataError(
                f"{self._url}, case {case.id}: no answer of OpenAI's form ({error}: "
                f"{told}); {remedy}: answers are kept"
            ) from error
        return Answer(text, calls, tokens=tokens, cut=cut)

    def _elsewhere(self, status: int) -> str:
        """What to do where nothing is at the address, if it lacks what most have."""
        if status != 404 or self._path.endswith("/v1"):
            return ""
        return f"most servers answer at {self._url}/v1; name that"

    def _most_tokens(self) -> list[int | None]:
        """Most tokens of an answer to ask for, in turn, as long as it is refused."""
        most = self._settings.max_new_tokens
        return [most, None, *(less for less in _LESS if less < most)]

    def _request(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """(status, body); tried again where the server is busy or the line breaks."""
        kinds = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        for pause in (*_PAUSES_SECONDS, None):
            try:
                connection = kinds[self._scheme](
                    self._host, self._port, timeout=_TIMEOUT_SECONDS
                )
                try:
                    address = f"{self._path}{path}"
                    connection.request(method, address, data, headers)
                    response = connection.getresponse()
                    answer = response.status, response.read()
                finally:
                    connection.close()
            # A server goes on with what is given up: asked again it would do it twice.
            except (ConnectionRefusedError, TimeoutError) as error:
                raise self._silent(error) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                if pause is None:
                    raise self._silent(error) from error
            else:
                if answer[0] in (401, 403):
                    rule = f"is refused by {self._url} (status {answer[0]})"
                    value = "..." if self._key else None
                    remedy = "set the key of this server"
                    problem = Problem("OPENAI_API_KEY", value, rule, remedy)
                    raise ConfigError("", [problem])
                if pause is None or not (answer[0] == 429 or answer[0] >= 500):
                    return answer
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _silent(self, error: Exception) -> DataError:
        return DataError(
            f"{self._url}: does not answer ({error or type(error).__name__}); start the "
            "server, or correct the address; answers that are there are kept"
        )


def _settle(
    answer: Future[Answer], asked: Callable[[Case], Answer], case: Case
) -> None:
    try:
        answer.set_result(asked(case))
    except BaseException as error:  # whoever waits for it has it
        answer.set_exception(error)


def _parts(url: str) -> tuple[str, str, int | None, str]:
    """(scheme, host, port, path) of an address; ConfigError where it is none."""
    remedy = "as in http://HOST:PORT/v1"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # a bracket, or a port that is none
        raise ConfigError(
            "", [Problem("--endpoint", url, str(error), remedy)]
        ) from error
    rule = None
    if parts.scheme not in ("http", "https") or not host:
        rule = "is no http or https address"
    elif not _is_plain(url):
        rule = "has characters that no address may have"
    elif parts.username is not None or parts.password is not None:
        url = url.replace(parts.netloc, f"...@{parts.netloc.rpartition('@')[2]}")
        rule, remedy = "names a user", "leave it out; a key is that of OPENAI_API_KEY"
    elif parts.query or parts.fragment:
        rule = "has more than a path"
    if rule is not None or host is None:
        raise ConfigError("", [Problem("--endpoint", url, rule or "", remedy)])
    return parts.scheme, host, port, parts.path.rstrip("/")


def _is_plain(text: str) -> bool:
    """Whether HTTP can send a text as it is."""
    return all("!" <= letter <= "~" for letter in text)


def _call(function: dict[str, Any]) -> tuple[str, str]:
    """Name and text of the arguments, as a server gives them.

    BFCL finds no call in an answer where arguments are no text. Those are kept as the
    JSON of their JSON: a text, which is read as no object.
    """
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(json.dumps(arguments))
    return "" if name is None else str(name), arguments


def _text(content: Any) -> str:
    """Words of a message, which may be a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return content if isinstance(content, str) else ""
