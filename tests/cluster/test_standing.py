"""`status` of what is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.errors import ConfigError
from alia_ctx.train.faults import RankName, fault, read_faults, record_fault
from alia_ctx.workflow.standing import run_status
from tests.cluster.launched import SLURM, cluster
from tests.small_run import write_run
from tests.train.runs import start


def test_faults_are_counted_and_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    folder = tmp_path / "out/stages/short"
    who = RankName(3, "node7", "GPU 1, H100")
    record_fault(folder, 0, fault("slow", who, 5, f"{who} takes 3.0 times"))
    record_fault(folder, 3, fault("hung", who, 9, f"{who}: no progress"))
    with open(folder / "faults/rank-3.jsonl", "a") as stream:
        stream.write('{"half": \n[1]\n')
    assert [line["kind"] for line in read_faults(folder)] == ["slow", "hung"]
    [short, _] = run_status(path).stages
    assert short.faults == {"slow rank": 1, "hung rank": 1}
    assert "rank 3 on node7 (GPU 1, H100) takes 3.0 times" in short.words[0]


def test_a_directory_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was launched from it"):
        run_status(tmp_path)
    path = write_run(tmp_path)
    workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    status = run_status(tmp_path / "elsewhere")
    assert [stage.state for stage in status.stages] == ["not begun", "not begun"]
    assert status.output == str(tmp_path / "elsewhere")


def test_stages_that_are_newer_than_the_last_checkpoint_are_shown(
    tmp_path: Path,
) -> None:
    """Launched since, or begun without a configuration that is known."""
    path, out = write_run(tmp_path), tmp_path / "out"
    assert start(path) == ""  # `short` is done, of a run of two
    document = yaml.safe_load(path.read_text())
    document["stages"]["longer"] = {
        **document["stages"]["long"],
        "init_from": "long",
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    begun = out / "stages/by hand"
    begun.mkdir()
    line = {"update": 3, "tokens": 30, "loss": 2.5, "seconds": 1.0}
    (begun / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for copied in (out, tmp_path / "copy"):
        if copied != out:  # as a transfer that does not keep times
            shutil.copytree(out, copied, copy_function=shutil.copyfile)
            os.utime(copied / "launch" / next(out.glob("launch/run-*")).name, (0, 0))
        status = run_status(copied)
        shown = {stage.stage: stage.state for stage in status.stages}
        assert list(shown) == ["short", "long", "longer", "by hand"]
        assert shown["short"] == "finished" and shown["longer"] == "not begun"
        assert shown["by hand"] == "begun"
        [by_hand] = [s for s in status.stages if s.stage == "by hand"]
        assert (by_hand.update, by_hand.updates, by_hand.loss) == (3, None, 2.5)
