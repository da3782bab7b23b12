"""The server of a model for as long as a benchmark asks it."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.chat import Conversation
from alia_ctx.data.chat.forms.messages import messages_from
from alia_ctx.evaluation.function_calling import Answer
from alia_ctx.workflow import call_server
from alia_ctx.workflow.call_server import _Batches, _completion, served


class Slow:
    """Says what it was asked; waits before each batch until it is told to go on."""

    name, context = "m", 100

    def __init__(self) -> None:
        self.written: list[str] = []
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)

    def conversation_ids(self, asked: Conversation) -> list[int]:
        return list((asked.messages[-1].content or "").encode())

    def too_long(self, size: int) -> str:
        return f"{size} is too long"

    def write(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Answer]:
        self.begun.put(len(prompts))
        assert self.go_on.acquire(timeout=60)
        texts = [bytes(prompt).decode() for prompt in prompts]
        self.written += texts
        return [Answer(text) for text in texts]


def body(text: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()


def send(url: str, text: str) -> socket.socket:
    """A client that has sent its request, and waits."""
    parts = urlsplit(url)
    assert parts.port
    client = socket.create_connection(("127.0.0.1", parts.port))
    data = body(text)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    return client


def test_what_nobody_waits_for_is_not_written(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither what was given up before it began, nor anything of it on the terminal."""
    model = Slow()
    with served(model, 1) as url:
        first = send(url, "first")
        assert model.begun.get(timeout=60) == 1
        gone = [send(url, f"gone {number}") for number in range(3)]
        last = send(url, "last")
        for client in (first, *gone):  # the first one's answer is being written
            client.close()
        model.go_on.release()
        assert model.begun.get(timeout=60) == 1
        model.go_on.release()
        assert b'"last"' in last.makefile("rb").read()
        last.close()
        model.go_on.release()
        with urlopen(f"{url}/chat/completions", body("another")) as answer:
            assert b"another" in answer.read()
    assert model.written == ["first", "last", "another"]
    assert capfd.readouterr().err == ""


def test_clients_that_ask_one_soon_after_another_are_answered_together() -> None:
    """Else the first of them would be answered alone, and all others wait for it."""
    model = Slow()
    with served(model, 4) as url:
        for _ in range(2):  # again, when they have been answered
            clients = [send(url, f"client {number}") for number in range(3)]
            assert model.begun.get(timeout=60) == 3
            model.go_on.release()
            for client in clients:
                assert b'"client' in client.makefile("rb").read()
                client.close()
        clients = [send(url, f"client {number}") for number in range(5)]
        assert model.begun.get(timeout=60) == 4  # a batch is full
        model.go_on.release()
        assert model.begun.get(timeout=60) == 1
        model.go_on.release()
        for client in clients:
            assert b'"client' in client.makefile("rb").read()
            client.close()


def test_who_was_answered_is_not_left_behind_by_who_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a batch of 20 seconds, two crowds that take turns would wait 40 each."""
    seconds = itertools.count(0, 20)
    monkeypatch.setattr(call_server, "monotonic", lambda: next(seconds))
    model = Slow()
    with served(model, 8) as url:
        first = send(url, "first")
        assert model.begun.get(timeout=60) == 1
        others = [send(url, f"client {number}") for number in range(2)]
        time.sleep(0.2)  # they are there
        model.go_on.release()
        assert b'"first"' in first.makefile("rb").read()
        first.close()
        time.sleep(0.15)  # longer than clients get after a short batch
        again = send(url, "client, again")
        assert model.begun.get(timeout=60) == 3
        model.go_on.release()
        for client in (*others, again):
            assert b'"client' in client.makefile("rb").read()
            client.close()


def test_who_asks_when_all_is_over_does_not_wait_for_ever() -> None:
    """A request may still be read while the server ends."""
    work = _Batches(Slow(), 1)
    writing = threading.Thread(target=work.run)
    writing.start()
    work.end()
    writing.join(timeout=60)
    refused: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask() -> None:
        try:
            work.answer([1], lambda: True)
        except CancelledError:
            refused.put("nobody writes any more")

    threading.Thread(target=ask, daemon=True).start()
    assert refused.get(timeout=60)


def test_requests_that_cannot_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    """Are refused; the next is answered."""
    model = Slow()
    with served(model, 1) as url:
        port = urlsplit(url).port
        assert port
        for length, data in (("x", b""), ("2", b"[]"), ("16", b'{"messages": [1]')):
            client = socket.create_connection(("127.0.0.1", port))
            head = f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
            client.sendall(head.encode() + data)
            assert b" 400 " in client.recv(10_000)
            client.close()
        model.go_on.release()
        with urlopen(f"{url}/chat/completions", body("another")) as answer:
            assert b"another" in answer.read()
    assert capfd.readouterr().err == ""


CALL = '{"name": "cd", "arguments": {"folder": "a"}}'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"I go. <tool_call>{CALL}</tool_call>", "I go."),
        (f"<tool_call>{CALL}", None),
        (f"I go. <TOOLCALL>[{CALL}]</TOOLCALL> Now.", "I go."),
        (f"I go. <functioncall> {CALL}", "I go."),
        ('[cd(folder="a")]', None),
        (CALL, None),
        (f" [{CALL}]", None),
    ],
)
def test_a_call_is_not_content_too(text: str, content: str | None) -> None:
    message = _completion("m", 0, 1, Answer(text))["choices"][0]["message"]
    assert message["content"] == content
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "cd", "arguments": '{"folder": "a"}'}


def tagged(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>'


@pytest.mark.parametrize(
    "text",
    [
        "I stay.",
        tagged('"cd"', '"a"'),
        tagged('"cd"', '{"a": NaN}'),
        tagged('"cd"', '{"a": [{"b": -Infinity}]}'),
        tagged('"cd"', '{"a": 1e999}'),
        tagged('"cd"', '{"a": "\\ud800"}'),
        tagged('"cd"', '{"\\udfff": 1}'),
        tagged('"\\ud800"', "{}"),
        tagged('""', "{}"),
        tagged('" "', "{}"),
        f"Both. {tagged('"cd"', '{}')}{tagged('""', '{}')}",
    ],
)
def test_what_is_no_call_is_content(text: str) -> None:
    message = _completion("m", 0, 1, Answer(text))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": text}


NAMES = st.text(max_size=4) | st.sampled_from(["cd", " ", "\ud800", "a.b"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@given(st.lists(st.tuples(NAMES, st.dictionaries(st.text(), VALUES)), min_size=1))
@settings(max_examples=200, deadline=None)
def test_what_is_handed_out_is_taken_back(calls: list[Any]) -> None:
    """As a client sends it, in the next request."""
    text = "".join(tagged(json.dumps(n), json.dumps(a)) for n, a in calls)
    message = _completion("m", 0, 1, Answer(text))["choices"][0]["message"]
    (read,) = messages_from(json.loads(json.dumps([message])))
    if "tool_calls" in message:
        json.dumps(read.for_template(), ensure_ascii=False).encode()
        assert [(c.name, json.loads(c.arguments)) for c in read.calls] == calls
    else:
        assert message["content"] == text


def test_calls_nested_as_deep_as_python_reads_are_content_or_calls() -> None:
    """An error would close the connection, and the benchmark take it for the server's."""
    reasons = set[str]()
    for depth in range(700, 1_010):
        nested = '{"a": ' * depth + "1" + "}" * depth
        text = f'<tool_call>{{"name": "f", "arguments": {nested}}}</tool_call>'
        (choice,) = _completion("m", 0, 1, Answer(text))["choices"]
        reasons.add(choice["finish_reason"])
    assert reasons == {"tool_calls", "stop"}
