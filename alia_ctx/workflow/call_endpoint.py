"""Answers of a model behind an OpenAI-compatible endpoint, several at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from itertools import batched
from typing import Any

from alia_ctx.errors import AliaError, ConfigError, DataError, Problem, excerpt
from alia_ctx.evaluation.function_calling import Answer, Case, tools_of
from alia_ctx.files import parse_json
from alia_ctx.workflow.call_generation import SHORTEST
from alia_ctx.workflow.call_writer import CallSettings
from alia_ctx.workflow.openai_server import FailureError, OpenAiServer

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
        self._server = OpenAiServer(url)
        self._url, self._settings = self._server.url, settings
        self._concurrency = concurrency
        self.name = self._served(model)
        self.template = "the server's"
        self.notes: tuple[str, ...] = ()
        self.may_change = True  # it may be started otherwise the next time
        self.statement = {
            "endpoint": self._url,
            "model": self.name,
            "settings": settings,
        }

    def _served(self, model: str | None) -> str:
        """The model's name; ConfigError where the server lists others, and does not
        answer under this one either: transformers serve lists the models of a cache, and
        answers to the path that it was started with.
        """
        status, data = self._server.request("GET", "/models", None)
        try:
            listed = [str(one["id"]) for one in parse_json(data)["data"]]
        except (ValueError, LookupError, TypeError):
            listed = []
        if status != 200 or not listed:
            if model is not None:  # servers need not list their models
                return model
            rule = f"lists no models (status {status})"
            remedy = f"name MODEL ({_OF_TRANSFORMERS})"
            if told := self._server.elsewhere(status):
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
        return self._server.request("POST", "/chat/completions", body)[0] == 200

    def answers(self, cases: Sequence[Case]) -> Iterator[list[tuple[str, Answer]]]:
        """Answers as they come, as many at a time as `concurrency`; in the cases' order.

        A question that the server refuses or fails with has an answer that says why. The
        error is raised where all of a batch are refused, or one fails, and the shortest
        question with a tool does so too: that is how the server was started, or that it is
        down, not what they say.
        """
        for batch in batched(cases, self._concurrency):
            answers, failed, error = self._together(batch)
            refusals = [answer.fault for _, answer in answers if answer.fault]
            if error is None and failed and self._fails():
                error = DataError(str(next(iter(failed.values()))))
            if error is None and len(refusals) == len(batch) and self.refusal():
                error = DataError(
                    f"{self._url}, case {batch[0].id}: {refusals[0]}; correct how the "
                    "server is started (tools, context), or the model's name "
                    f"({_OF_TRANSFORMERS}); answers that are there are kept"
                )
            if error is not None:
                # What the others have cost is kept; a refusal may be for what ails the
                # server.
                yield [(name, answer) for name, answer in answers if not answer.fault]
                raise error
            faults = {name: Answer("", fault=one.fault) for name, one in failed.items()}
            known = {**dict(answers), **faults}
            yield [(case.id, known[case.id]) for case in batch]

    def _together(
        self, cases: Sequence[Case]
    ) -> tuple[list[tuple[str, Answer]], dict[str, FailureError], AliaError | None]:
        """The answers to cases that are all asked at once, and the failures of others;
        with the first error that is of no single one, those that came until a second later.

        Not by a pool: its threads are waited for, and one that hears nothing of its server
        would hold whoever wants to stop for ten minutes.
        """
        asked: dict[str, Future[Answer]] = {}
        for case in cases:
            answer = asked[case.id] = Future()
            words = (answer, self._answer, case)
            threading.Thread(target=_settle, args=words, daemon=True).start()
        failed: dict[str, FailureError] = {}
        error = None
        for name, answer in asked.items():
            try:
                answer.result()
            except FailureError as failure:
                failed[name] = failure
            except AliaError as other:
                wait(asked.values(), timeout=1)
                error = other
                break
        answers = [
            (name, answer.result())
            for name, answer in asked.items()
            if answer.done() and answer.exception() is None
        ]
        return answers, failed, error

    def _fails(self) -> bool:
        """Whether the server fails with the shortest question too, or refuses it."""
        try:
            return bool(self.refusal())
        except DataError:
            return True

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
            status, data = self._server.request(
                "POST", "/chat/completions", body | limit
            )
            if status not in _REFUSED:
                break
            refused = refused or (status, data)
        else:  # the first time says most
            assert refused is not None
            told = excerpt(refused[1], 300)
            return Answer("", fault=f"the server answers {refused[0]}: {told}")
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            answer = parse_json(data)
            choice = answer["choices"][0]
            cut = choice.get("finish_reason") == "length"
            message = choice["message"]
            made = [call["function"] for call in message.get("tool_calls") or ()]
            if not made and message.get("function_call"):  # OpenAI's form before tools
                made = [message["function_call"]]
            calls = tuple(map(_call, made))
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
            told = excerpt(data, 200)
            remedy = (
                self._server.elsewhere(status) or "mend the server, and start again"
            )
            told = f"no answer of OpenAI's form ({error}: {told})"
            raise FailureError(
                f"{self._url}, case {case.id}: {told}; {remedy}: answers are kept",
                f"the server gives {told}",
            ) from error
        return Answer(text, calls, tokens=tokens, cut=cut)

    def _most_tokens(self) -> list[int | None]:
        """Most tokens of an answer to ask for, in turn, as long as it is refused."""
        most = self._settings.max_new_tokens
        return [most, None, *(less for less in _LESS if less < most)]


def _settle(
    answer: Future[Answer], asked: Callable[[Case], Answer], case: Case
) -> None:
    try:
        answer.set_result(asked(case))
    except BaseException as error:  # whoever waits for it has it
        answer.set_exception(error)


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
