"""Jobs that died where something of their kind was there before them are told of."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.workflow.standing import run_status
from tests.cluster.launched import SLURM, cluster
from tests.cluster.test_held_out_jobs import held_out_run
from tests.cluster.test_queued import Queue
from tests.distributed import run_distributed
from tests.small_run import write_run
from tests.train.runs import start


def launch(path: Path, *overrides: str, stages: Any = ()) -> list[str]:
    over = cluster(path.parent, SLURM)
    made = workflow.launch(path, overrides, stages=stages, cluster=over, submit=True)
    return list(made.numbers)


def told(path: Path) -> list[str]:
    """What `status` says of the jobs, by the configuration and by the directory."""
    said, same = (run_status(p).problems for p in (path, path.parent / "out"))
    assert said == same
    return said


def test_a_plan_that_was_to_be_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, queue = write_run(tmp_path), Queue(monkeypatch)
    workflow.pack(load_run(path), "short")
    document = yaml.safe_load(path.read_text())
    document["stages"]["short"]["tokens"] = 12288
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert launch(path, stages=["short"]) == ["00-data", "01-short"]
    assert told(path) == []
    queue.ended |= {"100", "101"}
    [said] = told(path)
    assert said.startswith(
        "job 100 has left the queue and the plan of stage short lacks"
    )
    workflow.pack(load_run(path), "short")
    assert told(path) == []
    # A job is judged by what it was for, not by what the configuration says since.
    document["stages"]["short"]["tokens"] = 24576
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert run_status(path).problems == []
    workflow.pack(load_run(path), "short")
    assert run_status(path).problems == []


def test_text_that_was_to_be_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, queue = held_out_run(tmp_path), Queue(monkeypatch)
    launch(path)
    queue.ended |= {"100", "101", "102", "103"}
    data, evaluation = told(path)
    assert "job 100 has left the queue and there are no tokens of held_out" in data
    assert "job 103 has left the queue and there is no report" in evaluation
    workflow.tokenize(load_run(path), ["held_out"])
    [evaluation] = told(path)
    assert "there is no report" in evaluation


def test_a_report_of_before_of_stages_that_are_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, queue = write_run(tmp_path), Queue(monkeypatch)
    report = tmp_path / "out/report/report.md"
    report.parent.mkdir(parents=True)
    report.write_text("of before")
    launch(path)
    queue.ended |= {"100", "101", "102", "103"}
    assert (
        "job 103 has left the queue and the report is older than it" in told(path)[-1]
    )
    os.utime(report, (time.time() + 5,) * 2)
    assert not any("report" in said for said in told(path))


def evaluate(rank: int, path: str) -> None:
    run = load_run(path)
    workflow.measure_models(workflow.evaluation_task(run))
    workflow.report(run)


def test_an_evaluation_that_was_to_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, queue = write_run(tmp_path), Queue(monkeypatch)
    document = yaml.safe_load(path.read_text())
    del document["stages"]["long"]
    document["cluster"] = {"nodes": 1, "ranks_per_node": 1}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert start(path) == ""
    assert launch(path) == ["02-evaluate"]
    queue.ended.add("100")
    report = tmp_path / "out/report"
    report.mkdir()
    (report / "report.md").write_text("by hand, of nothing that is measured")
    assert ["the evaluation is not finished" in said for said in told(path)] == [True]
    shutil.rmtree(report)
    run_distributed(evaluate, 1, str(path))
    assert told(path) == []
    # The report itself was not written.
    os.utime(report / "report.md", (time.time() - 3600,) * 2)
    [said] = told(path)
    assert "older than it; all is measured, `alia-ctx report CONFIG` writes it" in said
    os.utime(report / "report.md")
    # Other settings: the report that is there says nothing of them.
    document["evaluation"]["documents"] = 3
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert told(path) == []
    assert launch(path) == ["02-evaluate"]
    queue.ended.add("101")
    [said] = told(path)
    assert said.startswith("job 101 has left the queue and the evaluation is not")
    run_distributed(evaluate, 1, str(path))
    assert told(path) == []
