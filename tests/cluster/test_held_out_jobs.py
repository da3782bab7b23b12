"""Held-out text that a job in the queue reads is tokenised before it, by a job too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.errors import DataError
from tests.cluster.launched import SLURM, cluster
from tests.cluster.test_queued import Queue
from tests.distributed import run_distributed
from tests.small_run import write_run
from tests.train.runs import start

TOKENISE = ["tokenize", "CONFIG", "--source", "held_out"]


def held_out_run(folder: Path, **evaluation: Any) -> Path:
    """A run whose plans are there, and whose held-out text was named after that."""
    path = write_run(folder)
    run = load_run(path)
    for name in run.stages:
        workflow.pack(run, name)
    (folder / "held").mkdir()
    for number in range(4):
        words = (f"w{4 + (number * 31 + n) % 190}" for n in range(300))
        (folder / "held" / f"{number}.txt").write_text(" ".join(words))
    document = yaml.safe_load(path.read_text())
    text = {"inputs": [str(folder / "held")]}
    document["evaluation"] = {"held_out": text, "documents": 4, **evaluation}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def launch(path: Path, stages: Any = (), *overrides: str, **how: Any) -> Any:
    over = cluster(path.parent, SLURM)
    return workflow.launch(path, overrides, stages=stages, cluster=over, **how)


def jobs(made: Any) -> dict[str, list[list[str]]]:
    """The commands of each job, by name."""
    return {
        job.name: [
            ["CONFIG" if "run-" in word else word for word in command]
            for command in job.commands
        ]
        for job, _ in made.files
    }


def test_text_named_after_packing_is_tokenised_before_it_is_measured(
    tmp_path: Path,
) -> None:
    path = held_out_run(tmp_path)
    made = jobs(launch(path))
    assert list(made) == ["00-data", "01-short", "02-long", "03-evaluate"]
    assert made["00-data"] == [TOKENISE]
    workflow.tokenize(load_run(path), ["held_out"])  # what that job does
    assert list(jobs(launch(path))) == ["01-short", "02-long", "03-evaluate"]


@pytest.mark.parametrize(
    ("evaluation", "is_read"),
    [
        ({}, False),
        ({"every_updates": 1}, True),
        ({"every_updates": 1, "during": ["leak"]}, False),
        ({"every_updates": 1, "during": ["leak", "retrieval"]}, True),
        (
            {
                "every_updates": 1,
                "during": ["retrieval"],
                "retrieval": {"haystack": "noise"},
            },
            False,
        ),
    ],
)
def test_a_stage_alone_waits_for_text_only_where_it_measures_on_it(
    evaluation: dict[str, Any], is_read: bool, tmp_path: Path
) -> None:
    made = jobs(launch(held_out_run(tmp_path, **evaluation), ["short"]))
    assert ("00-data" in made) is is_read
    assert made.get("00-data", [TOKENISE]) == [TOKENISE]


def test_a_finished_run_that_gets_text_later_has_it_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, queue = held_out_run(tmp_path), Queue(monkeypatch)
    trained = "alia_ctx.workflow.launching.check_trained"
    monkeypatch.setattr(trained, lambda *a, **o: True)
    made = launch(path, submit=True)
    assert jobs(made) == {"00-data": [TOKENISE], "03-evaluate": [["report", "CONFIG"]]}
    assert queue.after == {"100": [], "101": ["100"]}
    # The evaluation failed; another waits for the data that is in the queue still.
    queue.ended.add("101")
    made = launch(path, submit=True)
    assert list(jobs(made)) == ["03-evaluate"]
    assert "the data is in the queue as job 100: no further job" in made.notes
    assert queue.after["102"] == ["100"]


def test_a_stage_waits_for_text_that_a_job_in_the_queue_tokenises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, queue = held_out_run(tmp_path, every_updates=1), Queue(monkeypatch)
    launch(path, ["short"], submit=True)
    assert queue.after == {"100": [], "101": ["100"]}
    queue.ended.add("101")
    made = launch(path, ["short"], submit=True)
    assert list(jobs(made)) == ["01-short"]
    assert queue.after["102"] == ["100"]


def test_a_store_that_was_made_elsewhere_is_tokenised_by_no_job(tmp_path: Path) -> None:
    path = held_out_run(tmp_path)
    text = f"evaluation.held_out={{inputs: [], store: {tmp_path / 'held_out'}}}"
    assert "00-data" not in jobs(launch(path, (), text))


def measure(rank: int, path: str) -> str:
    """The message of the error that ends the evaluation."""
    run = load_run(path)
    with pytest.raises(DataError) as error:
        workflow.measure_models(workflow.evaluation_task(run))
    return str(error.value)


def test_what_is_not_tokenised_is_said_to_be_so(tmp_path: Path) -> None:
    path = held_out_run(tmp_path)
    document = yaml.safe_load(path.read_text())
    del document["stages"]["long"]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert start(path) == ""
    [said] = run_distributed(measure, 1, str(path))
    first, *reasons, remedy = said.splitlines()
    assert first == "nothing can be measured"
    assert reasons[0] == "  positions: the held-out text is not tokenised yet"
    assert remedy == "run `alia-ctx tokenize CONFIG` first"
