"""A model on disk behind an OpenAI-compatible address, for as long as a benchmark asks it.

What it reads and how its calls are found is as with questions of one turn; a server for
users is another thing (docs/serving.md).
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Protocol

from alia_ctx.data.chat import Conversation, RowError
from alia_ctx.data.chat.forms.messages import messages_from
from alia_ctx.evaluation.function_calling import Answer, calls_of
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
    temperature and lengths.

    At the end what the model raised while it wrote is raised.
    """
    work = _Batches(model, batch_size)
    answering = threading.Thread(target=work.run, daemon=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(model, work))
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


class _Batches:
    """One thread that writes: a model is asked by one at a time."""

    def __init__(self, model: Served, size: int) -> None:
        self._model, self._size = model, size
        self._waiting: queue.SimpleQueue[tuple[list[int], Future[Answer]] | None]
        self._waiting = queue.SimpleQueue()
        self.failure: Exception | None = None

    def answer(self, ids: list[int]) -> Answer:
        """The answer to a prompt; what the model raises."""
        asked: Future[Answer] = Future()
        self._waiting.put((ids, asked))
        return asked.result()

    def end(self) -> None:
        self._waiting.put(None)

    def run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self._size and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self.end()
                    break
                batch.append(following)
            prompts = [ids for ids, _ in batch]
            # The same conversation draws the same, whenever it comes.
            names = [checksum(json.dumps(ids).encode()) for ids in prompts]
            try:
                answers = self._model.write(prompts, names)
            except Exception as error:  # memory, most likely; told when all is over
                self.failure = self.failure or error
                for _, asked in batch:
                    asked.set_exception(error)
            else:
                for (_, asked), answer in zip(batch, answers, strict=True):
                    asked.set_result(answer)


def _handler(model: Served, work: _Batches) -> type[BaseHTTPRequestHandler]:
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = [{"id": model.name, "object": "model"}]
            self._send(200, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            try:
                body = parse_json(self.rfile.read(size))
                tools = body.get("tools") or None
                asked = Conversation(
                    tuple(messages_from(body["messages"])),
                    None if tools is None else json.dumps(tools),
                )
                ids = model.conversation_ids(asked)
            except (RowError, ValueError, LookupError, AttributeError) as error:
                self._send(400, _refusal(f"{error}"))
                return
            if len(ids) >= model.context:
                self._send(400, _refusal(model.too_long(len(ids))))
                return
            try:
                answer = work.answer(ids)
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
    calls = calls_of(answer).with_objects().calls
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    reason = "length" if answer.cut else "stop"
    if calls:
        message["content"] = answer.text.partition("<tool_call>")[0].strip() or None
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": called, "arguments": json.dumps(arguments)},
            }
            for index, (called, arguments) in enumerate(calls)
        ]
        reason = "tool_calls"
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
