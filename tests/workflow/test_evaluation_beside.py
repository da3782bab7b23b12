"""One stage evaluated beside the report's comparison, on text that is short for another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import DataError
from alia_ctx.workflow.evaluation_tasks import what_is_missing
from alia_ctx.workflow.never_measured import keep_reason, kept_reason
from tests.config.test_places import changed
from tests.small_run import write_run


def test_documents_as_long_as_the_context_that_is_asked_for(tmp_path: Path) -> None:
    """The longest context is 256; no held-out document has more than 100 tokens."""
    path = write_run(tmp_path, tokens=512)
    starts = {100: 4, 40: 5, 90: 6}  # copies of one would be one
    documents = [np.arange(at, at + length) for length, at in starts.items()]
    write_store(tmp_path / "brief", documents, 200)
    changed(path, evaluation__held_out={"store": str(tmp_path / "brief")})
    run = load_run(path, stages=["short"])
    workflow.pack(run, "short")
    workflow.train(run, "short")
    short = workflow.evaluation_task(run, ["short"], [64], ["positions"])
    bands = workflow.measure_models(short).positions()["short at 64"]
    assert [band.tokens for band in bands.bands()] == [2 * 63, 0]
    too_long = workflow.evaluation_task(run, ["short"], [128], ["positions"])
    with pytest.raises(DataError, match=r"no document of .* has 128 tokens"):
        workflow.measure_models(too_long)


def test_what_can_never_be_measured_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No passkey fits: it is found once, while the settings are the same."""
    path = write_run(tmp_path, tokens=512)
    changed(path, evaluation__measure=["positions", "passkey"])
    run = load_run(path)
    for name in run.stages:
        workflow.pack(run, name)
        workflow.train(run, name)
    found = workflow.measure_models(workflow.evaluation_task(run))
    reasons = [r.reason for r in found.results if r.evaluator == "passkey"]
    assert any(reasons)
    assert not what_is_missing(run)
    workflow.report(run)
    launched = workflow.launch(path)
    assert not launched.files and "the evaluation is finished: no job" in launched.notes
    capsys.readouterr()
    again = workflow.measure_models(workflow.evaluation_task(run))
    assert [r.reason for r in again.results if r.evaluator == "passkey"] == reasons
    assert "evaluating" not in capsys.readouterr().err
    other = load_run(path, ["evaluation.retrieval.digits=5"])
    assert len(what_is_missing(other)) >= reasons.count(reasons[0])


def test_a_reason_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    result, made_from = tmp_path / "base" / "passkey-64.json", {"model": "a"}
    assert kept_reason(result, lambda: made_from) is None
    keep_reason(result, made_from, "too short")
    assert kept_reason(result, lambda: made_from) == (made_from, "too short")
    assert kept_reason(result, lambda: {"model": "b"}) is None
    assert not list(result.parent.glob("*.json"))
    (file,) = result.parent.iterdir()
    file.write_text(file.read_text().replace("short", "long"))
    assert kept_reason(result, lambda: made_from) is None
