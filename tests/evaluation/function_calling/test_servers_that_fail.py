"""Endpoints that do not answer, or answer what no server should, as a user meets them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling.ledger import NAME
from alia_ctx.workflow import openai_server
from tests.evaluation.function_calling.server import answering, said, served
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_evaluate_calls import alia, right_reply


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def test_who_stops_waits_for_no_server(suite: Path, tmp_path: Path) -> None:
    """One that hears nothing has minutes to answer, and Ctrl-C ends the command."""
    asked, over = threading.Event(), threading.Event()

    def waits(_: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        over.wait(300)
        return said("late")

    with served(waits) as url:
        words = ["evaluate-calls", "--endpoint", url, "--data", str(suite)]
        words += ["--output", str(tmp_path / "out")]
        program = subprocess.Popen(
            [sys.executable, "-m", "alia_ctx.cli", *words], stderr=subprocess.PIPE
        )
        try:
            assert asked.wait(150)
            program.send_signal(signal.SIGINT)
            _, told = program.communicate(timeout=60)
        finally:
            program.kill()
            over.set()
    assert program.returncode == 130
    assert b"Traceback" not in told
    assert told.endswith(b"stopped; what is finished stays, start again to go on\n")


def test_a_number_of_tokens_that_is_none(suite: Path, tmp_path: Path) -> None:
    choice = '{"message": {"content": "x"}, "finish_reason": "stop"}'
    page = f'{{"choices": [{choice}], "usage": {{"completion_tokens": 1e999}}}}'
    with answering(200, page) as url:
        words = ["--endpoint", url, "--data", suite, "--output", tmp_path / "out"]
        with pytest.raises(AliaError, match=r"no answer of OpenAI's form .*infinity"):
            alia("evaluate-calls", "model", *words)


def test_one_server_however_its_address_is_written(suite: Path, tmp_path: Path) -> None:
    words = ["--data", suite, "--output", tmp_path / "out", "--limit", 1]
    with served(right_reply) as url:
        alia("evaluate-calls", "--endpoint", url, *words)
        kept = (tmp_path / "out" / "model" / NAME).read_bytes()
        alia("evaluate-calls", "--endpoint", f"{url}/", *words)
    assert (tmp_path / "out" / "model" / NAME).read_bytes() == kept


def test_an_address_without_v1(suite: Path, tmp_path: Path) -> None:
    options = ["--data", suite, "--output", tmp_path / "out"]
    with answering(404, '{"detail": "Not Found"}') as url:
        root = url.removesuffix("/v1")
        for number, words in enumerate(([], ["model"])):
            where = ["--output", tmp_path / f"out{number}", "--data", suite]
            with pytest.raises(AliaError, match=f"most servers answer at {root}/v1"):
                alia("evaluate-calls", *words, "--endpoint", root, *options)
            with pytest.raises(AliaError) as error:
                alia("evaluate-calls", *words, "--endpoint", f"{root}/v1", *where)
            assert "most servers" not in str(error.value)


def test_a_server_that_takes_too_long(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, as it goes on with what nobody waits for."""
    asked: list[str] = []
    over = threading.Event()

    def waits(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body["messages"][-1]["content"])
        over.wait(300)
        return said("late")

    monkeypatch.setattr(openai_server, "_TIMEOUT_SECONDS", 0.5)
    words = ["--data", suite, "--output", tmp_path / "out", "--batch-size", 1]
    with served(waits) as url:
        with pytest.raises(AliaError, match=r"does not answer \(timed out\).*are kept"):
            alia("evaluate-calls", "--endpoint", url, *words)
        over.set()
    assert len(asked) == len(set(asked)) == 2  # the shortest one too


@pytest.mark.parametrize("broken", [404, {"content": ["x"]}, "silence"])
def test_a_question_that_a_server_fails_with_holds_up_no_other(
    broken: Any, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is wrong, said, and asked again the next time; the others are not."""
    asked: list[str] = []
    mended = threading.Event()

    def breaks(body: dict[str, Any]) -> dict[str, Any] | int:
        text = body["messages"][-1]["content"]
        asked.append(text)
        if text == "multiple 1?" and not mended.is_set():
            if broken != "silence":
                return broken  # type: ignore[no-any-return]
            mended.wait(60)
        return said("Noon.") if text == "What time is it?" else right_reply(body)

    if broken == "silence":
        monkeypatch.setattr(openai_server, "_TIMEOUT_SECONDS", 2.0)
    words = ["evaluate-calls", "--data", suite, "--output", tmp_path / "out"]
    words += ["--batch-size", 4, "--categories", "multiple,parallel", "--json"]
    with served(breaks) as url:
        scored = json.loads(alia(*words, "--endpoint", url))["models"]["model"]
        mended.set()
        again = json.loads(alia(*words, "--endpoint", url))["models"]["model"]
    assert scored["unanswered"] == {"multiple": 1}
    assert scored["categories"]["multiple"]["right"] == 1
    assert scored["categories"]["parallel"]["right"] == 2
    assert "the server" in scored["fault"]
    assert again["unanswered"] == {} and again["categories"]["multiple"]["right"] == 2
    for text in ("multiple 0?", "parallel 0?", "parallel 1?"):
        assert asked.count(text) == 1
    assert asked.count("multiple 1?") == 2


def test_what_came_before_a_server_went_down_is_kept(
    suite: Path, tmp_path: Path
) -> None:
    """Of questions that were asked together too."""
    asked: list[str] = []
    down = threading.Event()

    def breaks(body: dict[str, Any]) -> dict[str, Any] | int:
        text = body["messages"][-1]["content"]
        asked.append(text)
        if text == "multiple 1?":
            down.set()
        return 404 if down.is_set() and "multiple 0" not in text else said("No.")

    words = ["evaluate-calls", "--data", suite, "--output", tmp_path / "out"]
    words += ["--batch-size", 2, "--categories", "multiple,parallel"]
    with served(breaks) as url:
        with pytest.raises(AliaError, match=r"case multiple_1: .*are kept"):
            alia(*words, "--endpoint", url)
        down.clear()
        asked.clear()
        with pytest.raises(AliaError, match=r"case multiple_1: .*are kept"):
            alia(*words, "--endpoint", url)
    assert "multiple 0?" not in asked and "multiple 1?" in asked


def test_a_server_that_stops_and_is_started_again(suite: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    dead = [True]

    def dies(body: dict[str, Any]) -> dict[str, Any] | int:
        asked.append(body["messages"][-1]["content"])
        return 404 if dead and len(asked) > 9 else right_reply(body)

    words = ["--data", suite, "--output", tmp_path / "out", "--batch-size", 3]
    with served(dies) as url:
        with pytest.raises(AliaError, match=r"status 404.*answers are kept"):
            alia("evaluate-calls", "--endpoint", url, *words)
        kept = (tmp_path / "out" / "model" / NAME).read_text().count("\n") - 1
        assert kept == 9
        asked.clear()
        dead.clear()  # it is well again
        found = json.loads(alia("evaluate-calls", "--endpoint", url, *words, "--json"))
    assert len(asked) == 26 - 9
    assert {row["accuracy"] for row in found["models"]["model"]["rows"]} == {1, None}
    elsewhere = pytest.raises(AliaError, match=r"model\.endpoint")  # another, maybe
    with served(right_reply) as other, elsewhere:
        alia("evaluate-calls", "--endpoint", other, *words)
