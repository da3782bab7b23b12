"""Results by other settings than the configuration has now are named, and not shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from alia_ctx import workflow
from alia_ctx.cli.run_commands import app
from alia_ctx.identity import IdentityError, statement
from alia_ctx.report import Result
from alia_ctx.workflow import evaluation_tasks
from alia_ctx.workflow.measuring import Measurement
from alia_ctx.workflow.outdated_results import with_outdated

CONTRAST = {"name": "s", "checkpoint": {"update": 9}}


class Text:
    where, fingerprint, sources = "text", "0", ()
    lengths = np.array([16, 16])

    def sources_of(self, documents: list[int]) -> list[int]:
        return [0] * len(documents)

    def document(self, number: int, start: int, stop: int) -> np.ndarray:
        return np.arange(16)[start:stop] + number


def measurement(text: Any, documents: int = 2) -> Measurement:
    return Measurement(text, 16, documents, (0, 8, 16), 8, 64)


def result(evaluator: str, precision: str = "fp32", documents: int = 2) -> Result:
    text: Any = Text()
    settings = measurement(text, documents).settings(
        evaluator, {"contrast_model": CONTRAST}
    )
    settings |= {"precision": precision, "through": "engine"}
    return Result("s", evaluator, 16, {}, statement({"settings": settings}))


EVALUATORS = ("positions", "blocks", "longppl", "retrieval", "passkey", "leak")


def outdated(
    monkeypatch: pytest.MonkeyPatch, results: list[Result], text: Any, **changed: Any
) -> list[list[str]]:
    run: Any = SimpleNamespace(
        stages={"s": None}, engine=SimpleNamespace(precision="fp32")
    )
    on = replace(measurement(text), **changed)
    monkeypatch.setattr(evaluation_tasks, "run_measurement", lambda *_: on)
    monkeypatch.setattr(evaluation_tasks, "run_contexts", lambda *_: [8, 16])
    problems: list[str] = []
    made = with_outdated(run, 8, results, {"s": CONTRAST["checkpoint"]}, problems)
    assert not problems
    return [list(r.outdated) for r in made]


def test_every_evaluator_is_compared_with_the_settings_of_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = [result(name) for name in EVALUATORS]
    assert outdated(monkeypatch, results, Text()) == [[]] * 6
    other = outdated(monkeypatch, results, Text(), documents=1, native=4)
    assert [bool(lines) for lines in other] == [True] * 5 + [False]
    assert other[0] == ["settings.documents: 2 there, 1 now"]
    rough = outdated(monkeypatch, [result(n, "bf16") for n in EVALUATORS], Text())
    assert all(lines == ["settings.precision: bf16 there, fp32 now"] for lines in rough)


def test_what_cannot_be_known_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is gone decides nothing; results of release 0.1 do not say."""
    gone = [result("positions", documents=1), result("positions", "bf16")]
    found = outdated(monkeypatch, gone, None)
    assert [bool(lines) for lines in found] == [False, True]
    old = Result("s", "positions", 16, {}, {"checkpoint": {}})
    assert outdated(monkeypatch, [old], Text()) == [[]]


@pytest.mark.parametrize(
    ("stale", "text", "status"),
    [
        ([], "all well", 0),
        (["positions of s is not shown"], "all well", 2),
        (["positions of s is not shown"], IdentityError("it", ["x"], "do"), 2),
    ],
)
def test_the_command_says_where_the_page_is_whatever_is_stale(
    stale: list[str],
    text: str | IdentityError,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def as_text(run: Any) -> str:
        if isinstance(text, IdentityError):
            raise text
        return text

    page = tmp_path / "index.html"
    monkeypatch.setattr(workflow, "write_page", lambda *a, **k: page)
    monkeypatch.setattr(workflow, "stale_results", lambda *a: stale)
    monkeypatch.setattr(workflow, "text_report", as_text)
    monkeypatch.setattr("alia_ctx.cli.report_commands.load_run", lambda *a: None)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run.yaml")])
    said = done.output
    assert f"page:   {page}" in said
    assert all(line in said for line in stale)
    if isinstance(text, IdentityError):
        assert done.exception is text
    else:
        assert done.exit_code == status


def test_a_damaged_line_of_the_log_is_counted_where_it_stands(tmp_path: Path) -> None:
    """Before training goes on and puts it aside."""
    from alia_ctx.train.metrics_log import broken_lines, read_lines

    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"update": 1, "loss": 2.0}\n{"update": 2, "lo\n\n[]\n{"update": 3}\n'
    )
    assert broken_lines(log) == [2, 4]
    assert [line["update"] for line in read_lines(log)] == [1, 3]
    assert broken_lines(tmp_path / "none.jsonl") == []
