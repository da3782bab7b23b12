"""The programs of ALIA-40b-fc's card, on a small model that has learnt their answers by
heart: `transformers`, and `transformers serve` asked with the `openai` package.

They need packages that the product does not: `make test-serve` makes an environment for
them. The card's text is in `snippets/`; the model's name is found in a Hugging Face cache
that holds the small one, so that it need not be replaced.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.function_calling.small_suite import write_suite
from tests.hf.exports import snippets
from tests.hf.memorised import (
    BAD,
    CALLS,
    IN_PARIS,
    PARIS,
    RESULT,
    WEATHER,
    WORDS,
    export_memorised,
    user,
)
from tests.paths import ROOT
from tests.small_run import alia

openai = pytest.importorskip("openai", reason="run `make test-serve`")
for package in ("fastapi", "uvicorn", "accelerate"):
    pytest.importorskip(package, reason="run `make test-serve`")
pytestmark = pytest.mark.serve

NAME = "BSC-LT/ALIA-40b-fc-2605"
SNIPPETS = Path(__file__).parent / "snippets"
IN_CALL = '{"name": "get_weather", "arguments": {"location": "Paris, France"}}'
IN_GIRONA = {"name": "get_weather", "arguments": {"location": "Girona"}}
HERMES = f"<tool_call>\n{IN_CALL}\n</tool_call>"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face home whose cache holds the small model under the card's name."""
    made = os.environ.get("ALIA_MEMORISED")
    folder = tmp_path_factory.mktemp("memorised")
    model = Path(made) if made else export_memorised(folder)
    home = folder / "home"
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    revision = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(model, repository / "snapshots" / revision)
    return home


def environment(cache: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, "HF_HUB_CACHE": str(cache / "hub")}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def port(cache: Path) -> Iterator[int]:
    """Of a server that takes models from a cache."""
    with serving(cache) as port:
        yield port


@contextmanager
def serving(cache: Path, *model: str) -> Iterator[int]:
    """A server on loopback, started as the documentation says."""
    port, log = free_port(), cache / f"server-{len(model)}.log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", *model]
    with open(log, "w") as stream:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=environment(cache),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 240
        while not answers(port):
            assert server.poll() is None and time.monotonic() < deadline, (
                log.read_text()
            )
            time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as r:
            return bool(r.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def client(port: int) -> Any:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1/", api_key="none", max_retries=0
    )


def ask(client: Any, messages: list[Any], tools: Any = None, **options: Any) -> Any:
    given = {} if tools is None else {"tools": tools}
    return client.chat.completions.create(
        model=NAME, messages=messages, max_tokens=300, temperature=0, **given, **options
    )


def called(calls: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls or []]


# -- the card's snippets ---------------------------------------------------------------


def snippet(name: str) -> str:
    return (SNIPPETS / f"{name}.txt").read_text(encoding="utf-8")


def run(program: str, cache: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(cache), **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_cards_snippets_of_transformers(cache: Path) -> None:
    """One after another in one process: each is a program of its own."""
    shown = snippet("pipeline").replace("\npipe(messages)", "\nprint(pipe(messages))")
    out = run(f"{shown}\n{snippet('direct')}\n{snippet('tools')}", cache)
    answer = WORDS["Who are you?"]
    assert f"'content': '{answer}'" in out  # of the pipeline: without its stop token
    assert f"\n{answer}<|im_end|>\n" in out
    assert out.endswith(f"assistant\n{HERMES}\n")


def test_the_cards_snippet_of_a_client(cache: Path, port: int) -> None:
    """Repaired in one place, where the card lacks a comma, and given its port and the
    tools of the card's snippet before it; then the turn that it prepares is asked for.
    """
    given = snippet("tools")
    tools = given[given.index("tools = [{") : given.index("prompt =")]
    text = snippet("client").replace("tools=tools\n", "tools=tools,\n")
    text = text.replace("localhost:8080", f"127.0.0.1:{port}")
    more = (
        "answer = client.chat.completions.create(model=model, tools=tools, "
        "messages=messages, max_tokens=1000, temperature=0.1)\n"
        "print(answer.choices[0].message.content)\n"
    )
    out = run(f"{tools}\n{text}\n{more}", cache)
    assert '{"location": "Paris, France"}' in out and "get_weather" in out
    assert out.endswith(f"{IN_PARIS}\n")


def test_our_cards_and_pages_snippets_and_our_benchmark(
    cache: Path, tmp_path: Path
) -> None:
    """As they are written, but for the port: the client's of a server that was started
    with the directory, and lists another model, of a cache; the others without one.
    """
    (model,) = cache.glob("hub/models--*/snapshots/*")
    shown = snippets(model / "README.md")
    assert shown == snippets(ROOT / "docs" / "serving.md")
    client, *others = shown
    assert len(others) == 2
    for text in others:
        assert ast.literal_eval(
            run(text, cache, MODEL=str(model)).splitlines()[-1]
        ) == {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": IN_GIRONA}],
        }
    with serving(cache, str(model)) as port:
        given = client.replace("localhost:8000", f"127.0.0.1:{port}")
        out = run(given, cache, MODEL=str(model))
        assert out.startswith("ChatCompletionMessage(content=")
        assert "name='get_weather'" in out and '{"location": "Girona"}' in out
        words = ["evaluate-calls", "--endpoint", f"http://127.0.0.1:{port}/v1"]
        words += ["--data", str(write_suite(tmp_path / "data", each=1)), "--limit", "1"]
        words += ["--categories", "irrelevance", "--output", str(tmp_path / "kept")]
        done = alia(*words, str(model), "--max-new-tokens", "4")
        assert done.returncode == 0, done.stderr
        assert "Irrelevance Detection" in done.stdout
        done = alia(*words, "other")
        assert done.returncode == 2 and "the path of the directory" in done.stderr
        done = alia(*words)
        assert done.returncode == 2 and f"pinned to '{model}'" in done.stderr


# -- transformers serve ----------------------------------------------------------------


def test_plain_chat(client: Any) -> None:
    assert [model.id for model in client.models.list().data] == [NAME]
    for question, answer in WORDS.items():
        choice = ask(client, [user(question)]).choices[0]
        assert (choice.message.content, choice.finish_reason) == (answer, "stop")
        assert not choice.message.tool_calls


@pytest.mark.parametrize("question", CALLS)
def test_calls(client: Any, question: str) -> None:
    """One, two parallel, nested objects, letters beyond ASCII; and the same streamed."""
    tool, expected = CALLS[question]
    choice = ask(client, [user(question)], [tool]).choices[0]
    assert called(choice.message.tool_calls) == expected
    assert not choice.message.content and choice.finish_reason == "tool_calls"
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == len(ids)
    parts = [p.choices[0] for p in ask(client, [user(question)], [tool], stream=True)]
    streamed = [call for part in parts for call in part.delta.tool_calls or []]
    assert called(streamed) == expected
    assert [call.index for call in streamed] == list(range(len(expected)))
    assert not "".join(part.delta.content or "" for part in parts)
    assert parts[-1].finish_reason == "tool_calls"


def test_the_turn_after_a_tools_result(client: Any) -> None:
    first = ask(client, [user(PARIS)], [WEATHER]).choices[0].message
    call = first.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    messages = [user(PARIS), {"role": "assistant", "tool_calls": [call]}, result]
    assert ask(client, messages, [WEATHER]).choices[0].message.content == IN_PARIS
    parts = list(ask(client, messages, [WEATHER], stream=True))
    text = [part.choices[0].delta.content or "" for part in parts]
    assert "".join(text) == IN_PARIS and len([t for t in text if t]) > 1


def test_a_call_that_is_no_json_stays_content(client: Any) -> None:
    message = ask(client, [user("Break it.")], [WEATHER]).choices[0].message
    assert (message.content, message.tool_calls) == (BAD, None)
    parts = [
        p.choices[0] for p in ask(client, [user("Break it.")], [WEATHER], stream=True)
    ]
    assert "".join(part.delta.content or "" for part in parts) == BAD
    assert parts[-1].finish_reason == "stop"
    # and the server goes on
    assert ask(client, [user("Who are you?")]).choices[0].message.content
