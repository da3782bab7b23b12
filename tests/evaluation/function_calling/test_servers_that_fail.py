"""Endpoints that do not answer, or answer what no server should, as a user meets them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.errors import AliaError
from tests.evaluation.function_calling.server import answering, said, served
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_evaluate_calls import alia


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "data")


def test_who_stops_waits_for_no_server(suite: Path, tmp_path: Path) -> None:
    """One that hears nothing has minutes to answer, and Ctrl-C ends the command."""
    asked, over = threading.Event(), threading.Event()

    def waits(_: dict[str, Any]) -> dict[str, Any]:
        asked.set()
        over.wait(60)
        return said("late")

    with served(waits) as url:
        words = ["evaluate-calls", "--endpoint", url, "--data", str(suite)]
        words += ["--output", str(tmp_path / "out")]
        program = subprocess.Popen(
            [sys.executable, "-m", "alia_ctx.cli", *words], stderr=subprocess.PIPE
        )
        try:
            assert asked.wait(60)
            program.send_signal(signal.SIGINT)
            _, told = program.communicate(timeout=20)
        finally:
            program.kill()
            over.set()
    assert program.returncode == 130
    assert b"Traceback" not in told


def test_a_number_of_tokens_that_is_none(suite: Path, tmp_path: Path) -> None:
    choice = '{"message": {"content": "x"}, "finish_reason": "stop"}'
    page = f'{{"choices": [{choice}], "usage": {{"completion_tokens": 1e999}}}}'
    with answering(200, page) as url:
        words = ["--endpoint", url, "--data", suite, "--output", tmp_path / "out"]
        with pytest.raises(AliaError, match=r"no answer of OpenAI's form .*infinity"):
            alia("evaluate-calls", "model", *words)
