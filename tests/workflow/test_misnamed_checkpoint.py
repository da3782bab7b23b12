"""A copy of a checkpoint under the number of an update that its finished stage never has:
whoever meets it says that no training makes it, and what to do about it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from alia_ctx import workflow
from tests.workflow.scenarios import Run, message


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    run = Run(Path(folder, "run.yaml"), Path(folder, "first"))
    config = run.config()
    workflow.pack(config, "short")
    seen: dict[str, Any] = {"train": run.train("short")}
    checkpoints = run.output / "stages/short/checkpoints"
    copy = checkpoints / "update-00000006"
    shutil.copytree(checkpoints / "update-00000004", copy)
    seen["copy"] = str(copy)
    seen["refusals"] = [
        message(lambda: workflow.check_trained(config, "short")),
        message(lambda: workflow.finished_checkpoint(config, "short")),
        run.train("short"),
        run.run(),
    ]
    more = (
        "stages.short.tokens=4096"  # eight updates: it is one of them, and made again
    )
    workflow.pack(run.config(more), "short")
    seen["longer"] = run.train("short", more)
    seen["last"] = workflow.finished_checkpoint(run.config(more), "short").name
    return seen


def test_a_copy_beyond_the_end_is_to_be_moved_away(seen: dict[str, Any]) -> None:
    assert seen["train"] == ""
    for said in seen["refusals"]:
        assert said.startswith("DamagedError: ") and "of update 4" in said, said
        assert "ends at update 4, so that no training makes this one again" in said
        assert f"move {seen['copy']} away" in said


def test_a_longer_stage_makes_it_again(seen: dict[str, Any]) -> None:
    assert (seen["longer"], seen["last"]) == ("", "update-00000008")
