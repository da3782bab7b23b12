"""A model on disk behind an OpenAI-compatible address, for as long as a benchmark asks it.

What it reads and how its calls are found is as with questions of one turn; a server for
users is another thing (docs/serving.md).
"""

from __future__ import annotations

import json
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from time import monotonic
from typing import Any, Protocol

from alia_ctx.data.chat import Conversation, RowError
from alia_ctx.data.chat.forms.messages import messages_from
from alia_ctx.evaluation.function_calling import Answer, calls_of, reasoning_and_words
from alia_ctx.files import checksum, parse_json


class Served(Protocol):
    """What is served."""

    name: str
    context: int

    def conversation_ids(self, asked: Conversation) -> list[int]: ...

    def write(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Answer]: ...

    def too_long(self, size: int) -> str: ...


@contextmanager
def served(model: Served, batch_size: int) -> Iterator[str]:
    """The address of `model`; questions that come while it writes are answered together,
    at most `batch_size` at a time. It writes as `model` says, whatever a request says of
    temperature and lengths. What nobody waits for any more is not written.

    At the end what the model raised while it wrote is raised.
    """
    work = _Batches(model, batch_size)
    answering = threading.Thread(target=work.run, daemon=True)
    server = _Server(("127.0.0.1", 0), _handler(model, work))
    listening = threading.Thread(target=server.serve_forever, daemon=True)
    answering.start()
    listening.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        work.end()
        listening.join()
        answering.join()
    if work.failure is not None:
        raise work.failure


@dataclass(frozen=True)
class _Asked:
    """A prompt; `waits` says whether its client is still there."""

    ids: list[int]
    waits: Callable[[], bool]
    answer: Future[Answer] = field(default_factory=Future)


# Clients that were answered together ask again within this, and are written together; who
# writes for seconds need not begin with the first of them alone. After a long batch they
# get longer: those that came meanwhile are there at once, and written without them they
# would be another crowd, each waiting for the other's answers from then on.
_QUIET_SECONDS = 0.05
_QUIET_SHARE, _LONGEST_QUIET = 0.02, 1.0  # of what the last batch took


class _Batches:
    """One thread that writes: a model is asked by one at a time."""

    def __init__(self, model: Served, size: int) -> None:
        self._model, self._size = model, size
        self._waiting: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._ended = False
        self._quiet = _QUIET_SECONDS
        self.failure: Exception | None = None

    def answer(self, ids: list[int], waits: Callable[[], bool]) -> Answer:
        """The answer to a prompt; what the model raises. CancelledError where nobody waits
        for it by the time that it would be written, or all is over.
        """
        asked = _Asked(ids, waits)
        self._waiting.put(asked)
        if self._ended:  # after this nobody may look at what waits
            asked.answer.cancel()
        return asked.answer.result()

    def end(self) -> None:
        self._waiting.put(None)

    def run(self) -> None:
        while (batch := self._gathered()) is not None:
            if batch := [asked for asked in batch if self._is_waited_for(asked)]:
                self._write(batch)
        self._ended = True
        while not self._waiting.empty():
            if (asked := self._waiting.get()) is not None:
                asked.answer.cancel()

    def _gathered(self) -> list[_Asked] | None:
        """Those that come one soon after another, as many as are written together; None at
        the end.
        """
        batch: list[_Asked] = []
        while len(batch) < self._size:
            try:
                asked = self._waiting.get(timeout=self._quiet if batch else None)
            except queue.Empty:
                break
            if asked is None:
                for given_up in batch:
                    given_up.answer.cancel()
                return None
            batch.append(asked)
        return batch

    @staticmethod
    def _is_waited_for(asked: _Asked) -> bool:
        if not asked.waits():
            asked.answer.cancel()
            return False
        return True

    def _write(self, batch: Sequence[_Asked]) -> None:
        prompts = [asked.ids for asked in batch]
        # The same conversation draws the same, whenever it comes.
        names = [checksum(json.dumps(ids).encode()) for ids in prompts]
        began = monotonic()
        try:
            answers = self._model.write(prompts, names)
        except Exception as error:  # memory, most likely; told when all is over
            self.failure = self.failure or error
            for asked in batch:
                asked.answer.set_exception(error)
        else:
            spent = _QUIET_SHARE * (monotonic() - began)
            self._quiet = max(_QUIET_SECONDS, min(spent, _LONGEST_QUIET))
            for asked, answer in zip(batch, answers, strict=True):
                asked.answer.set_result(answer)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours, and others are told as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _is_open(connection: socket.socket) -> bool:
    """Whether a client that has sent its request has not closed the connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _handler(model: Served, work: _Batches) -> type[BaseHTTPRequestHandler]:
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = [{"id": model.name, "object": "model"}]
            self._send(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            try:
                size = int(self.headers.get("Content-Length") or 0)
                body = parse_json(self.rfile.read(size))
                tools = body.get("tools") or None
                asked = Conversation(
                    tuple(messages_from(body["messages"])),
                    None if tools is None else json.dumps(tools),
                )
                ids = model.conversation_ids(asked)
            except (
                RowError,
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
            ) as error:
                self._send(400, _refusal(f"{error}"))
                return
            if len(ids) >= model.context:
                self._send(400, _refusal(model.too_long(len(ids))))
                return
            try:
                answer = work.answer(ids, lambda: _is_open(self.connection))
            except CancelledError:
                self.close_connection = True
                return
            except Exception as error:
                self._send(500, _refusal(f"{type(error).__name__}: {error}"))
                return
            self._send(200, _completion(model.name, next(numbers), len(ids), answer))

        def _send(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Requests are not told."""

    return Handler


def _refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def _completion(
    name: str, number: int, prompt_tokens: int, answer: Answer
) -> dict[str, Any]:
    reasoning, words = reasoning_and_words(answer)
    message: dict[str, Any] = {"role": "assistant", "content": words}
    reason = "length" if answer.cut else "stop"
    if calling := _calling(answer, number):
        message, reason = calling, "tool_calls"
    # As vLLM gives it; a template that shows it has it when it comes back.
    if reasoning:
        message["reasoning_content"] = reasoning
    return {
        "id": f"answer-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer.tokens,
            "total_tokens": prompt_tokens + answer.tokens,
        },
    }


def _calling(answer: Answer, number: int) -> dict[str, Any] | None:
    """The message of an answer that calls; None where it has no calls, or such that the
    next request of the conversation, which brings them back, would be refused for: NaN,
    a call without a name. These stay content.
    """
    found = calls_of(answer).with_objects()
    if not found.calls:
        return None
    try:
        calls = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": called, "arguments": json.dumps(arguments)},
            }
            for index, (called, arguments) in enumerate(found.calls)
        ]
        message = {
            "role": "assistant",
            "content": found.content or None,
            "tool_calls": calls,
        }
        (read,) = messages_from([message])
        # A half of a surrogate pair, which JSON can spell, is no text to a tokenizer.
        json.dumps(read.for_template(), ensure_ascii=False).encode()
    except (RowError, ValueError, RecursionError):  # nested as deep as Python reads
        return None
    return message
