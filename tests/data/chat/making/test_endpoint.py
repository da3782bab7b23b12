"""Requests in a model's words: checked, asked for again, kept until the output is whole."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.data.chat import making
from alia_ctx.errors import DataError
from tests.data.chat.making.test_making import SOURCE, all_functions, check


@contextmanager
def server(answer: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint on this machine; `answer` makes (status, body) of a request."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            asked.append(
                {
                    "path": self.path,
                    "key": self.headers.get("Authorization"),
                    **json.loads(self.rfile.read(size)),
                }
            )
            status, body = answer(asked[-1])
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", asked
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def reply(text: str | None, **choice: Any) -> tuple[int, bytes]:
    choices = [{"message": {"content": text}, **choice}]
    return 200, json.dumps({"choices": choices}).encode()


def plain_request(asked: dict[str, Any]) -> str:
    lines = asked["messages"][0]["content"].split("\n")
    return str(lines[1])


def test_a_model_words_requests_and_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    def answer(asked: dict[str, Any]) -> tuple[int, bytes]:
        forgets = asked["seed"] % 4 == 0  # and is asked again
        return reply("Do it." if forgets else f"Friend, {plain_request(asked)} Thanks!")

    output = tmp_path / "made.jsonl"
    with server(answer) as (url, asked):
        making.make_tool_data(
            all_functions(tmp_path),
            making.MakeSpec(count=30),
            output,
            endpoint=making.Endpoint(url, "m"),
        )
    assert {one["path"] for one in asked} == {"/v1/chat/completions"}
    assert {one["key"] for one in asked} == {"Bearer k"}
    assert {one["model"] for one in asked} == {"m"}
    for line in output.read_text().splitlines():
        record = json.loads(line)
        check(record)
        first = record["messages"][0]["content"]
        assert re.fullmatch(r"Friend, .* Thanks!|Do it\.", first)


@pytest.mark.parametrize(
    ("response", "told"),
    [
        ((500, b"busy"), "answers 500"),
        ((200, b"<html>"), "not of OpenAI's form"),
        ((200, b'{"choices": []}'), "not of OpenAI's form"),
        (reply("Do it."), "could not be made"),
    ],
)
def test_an_endpoint_that_does_not_serve(
    response: tuple[int, bytes],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    spec = making.MakeSpec(count=5, kinds=("parallel",))
    found = making.find_functions([str(SOURCE)])
    with server(lambda _: response) as (url, _), pytest.raises(DataError, match=told):
        making.make_tool_data(
            found, spec, tmp_path / "out", endpoint=making.Endpoint(url, "m")
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<think>\nThe user wants: {0}\n</think>\n\n", ""),
        ("<think>\n\n</think>\n\n", "\n"),
        ("The user wants: {0}\n</think>\n\n", ""),  # the prompt opened it
        ("<think>a</think>\n<think>{0}</think>", ""),
        ("[THINK]{0}[/THINK]", ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("ended", [{"finish_reason": "stop"}, {"finish_reason": None}])
def test_what_a_model_reasons_is_said_by_nobody(
    before: str, after: str, ended: dict[str, Any], tmp_path: Path
) -> None:
    def answer(asked: dict[str, Any]) -> tuple[int, bytes]:
        plain = plain_request(asked)
        return reply(f"{before.format(plain)}Friend, {plain}{after}", **ended)

    output = tmp_path / "made"
    spec = making.MakeSpec(count=12)
    plain = tmp_path / "plain"
    making.make_tool_data(all_functions(tmp_path), spec, plain)
    with server(answer) as (url, _):
        endpoint = making.Endpoint(url, "m")
        making.make_tool_data(all_functions(tmp_path), spec, output, endpoint=endpoint)
    for made, line in zip(
        output.read_text().splitlines(), plain.read_text().splitlines(), strict=True
    ):
        first = json.loads(line)["messages"][0]["content"]
        assert json.loads(made)["messages"][0]["content"] == f"Friend, {first}"


@pytest.mark.parametrize(
    ("text", "choice", "reason"),
    [
        ("{0}", {"finish_reason": "length"}, "not whole: finish_reason length"),
        ("{0}", {"finish_reason": "content_filter"}, "finish_reason content_filter"),
        (None, {"finish_reason": "tool_calls"}, "finish_reason tool_calls"),
        ("<think>{0}", {"finish_reason": "stop"}, "no words"),
        ("<think>{0}</think>\n", {"finish_reason": "stop"}, "no words"),
        (None, {"finish_reason": "stop"}, "no words"),
    ],
)
@pytest.mark.parametrize("kind", ["single", "irrelevant"])
def test_answers_that_are_not_whole_are_refused_by_reason(
    text: str | None, choice: dict[str, Any], reason: str, kind: Any, tmp_path: Path
) -> None:
    """Also for requests that no function serves, in which no argument could be missed."""

    def answer(asked: dict[str, Any]) -> tuple[int, bytes]:
        said = None if text is None else text.format(plain_request(asked))
        is_whole = (
            asked["seed"] % 8 < 3
        )  # of the tries for one conversation all or some
        return reply(plain_request(asked)) if is_whole else reply(said, **choice)

    spec = making.MakeSpec(count=6, kinds=(kind,))
    with server(answer) as (url, _):
        made = making.make_tool_data(
            all_functions(tmp_path),
            spec,
            tmp_path / "made",
            endpoint=making.Endpoint(url, "m"),
        )
    assert made.written == 6
    ((why, number),) = made.refused.items()
    assert why.startswith(f"{kind}: ") and why.endswith(reason) and number
    for line in (tmp_path / "made").read_text().splitlines():
        assert "<think>" not in json.loads(line)["messages"][0]["content"]


def test_a_busy_endpoint_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few failures one after another end nothing; a pause that is asked for is kept."""
    paused: list[float] = []
    monkeypatch.setattr("time.sleep", paused.append)
    answers = iter([503, 429, 502, 200, 200, 500, 500, 500])

    def answer(asked: dict[str, Any]) -> tuple[int, bytes]:
        status = next(answers, 200)
        return reply(plain_request(asked)) if status == 200 else (status, b"no")

    found, spec = all_functions(tmp_path), making.MakeSpec(count=12)
    with server(answer) as (url, asked):
        made = making.make_tool_data(
            found, spec, tmp_path / "made", endpoint=making.Endpoint(url, "m")
        )
    assert made.written == 12 and len(asked) == 18
    assert paused == [1.0, 7.0, 16.0, 1.0, 4.0, 16.0]
    assert sorted(p.name for p in tmp_path.glob("made*")) == [
        "made",
        "made.json",
    ]


def test_what_a_model_made_is_kept_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that is gone for good, a kill in the middle of a line, other settings."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    down: list[int] = []

    def answer(asked: dict[str, Any]) -> tuple[int, bytes]:
        return (
            (503, b"") if down and len(seen) > down[0] else reply(plain_request(asked))
        )

    found, spec = all_functions(tmp_path), making.MakeSpec(count=40)
    output, part = tmp_path / "made", tmp_path / "made.partial"
    with server(answer) as (url, seen):
        endpoint = making.Endpoint(url, "m")

        def make(spec: making.MakeSpec = spec, name: str = "made") -> Any:
            return making.make_tool_data(
                found, spec, tmp_path / name, endpoint=endpoint
            )

        whole = make(name="whole")
        total = len(seen)
        down.append(total + 30)
        with pytest.raises(DataError, match=r"answers 503.*is kept, start again"):
            make()
        assert not output.exists() and part.stat().st_size
        with part.open("ab") as stream:
            stream.write(b'{"index": 4')
        before = part.read_bytes()
        with pytest.raises(DataError, match=r"spec\.seed: 0 there, 1 now"):
            make(making.MakeSpec(count=40, seed=1))
        assert part.read_bytes() == before
        down.clear()
        done = len(seen)
        assert make() == whole
        assert len(seen) - done < total, "what was made is not asked for again"
    assert output.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not part.exists()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "ftp://x/v1", "nowhere", "http://x:y/v1"]
)
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not answer|no http or https address"):
        making.Endpoint(url, "m").complete("p", 0)
