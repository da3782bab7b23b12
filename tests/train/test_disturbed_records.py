"""What a stage writes down beside its checkpoints cannot be written, was edited, or has
vanished: all ranks end alike, what was trained is kept, and the stage goes on to the same
end. Two gloo ranks, one set of processes.
"""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from alia_ctx import checkpoint, workflow
from alia_ctx.errors import AliaError
from alia_ctx.train.metrics_log import JsonLines
from alia_ctx.train.stage_identity import CHANGES
from alia_ctx.workflow.chain import run_directory
from tests.distributed import run_distributed
from tests.small_run import state_checksums, write_run
from tests.workflow.scenarios import Run

TWO = ["cluster.ranks_per_node=2"]


class Disturbed(Run):
    """A stage of four updates on two ranks; everything but training is done by rank 0."""

    def __init__(self, rank: int, path: Path, name: str, like: Run | None = None):
        folder = path.parent / name
        if rank == 0 and like is not None:
            shutil.copytree(like.output, folder / "out")
        dist.barrier()
        super().__init__(path, folder)
        self.rank = rank

    def go_on(self, *overrides: str, exit_before: float | None = None) -> str:
        dist.barrier()
        try:
            config = self.config(*TWO, *overrides)
            workflow.train(config, "short", exit_before=exit_before)
        except (AliaError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            dist.barrier()
        return ""

    @property
    def stage(self) -> Path:
        return run_directory(self.config()).stage("short")

    def end(self) -> dict[str, Any]:
        newest = checkpoint.latest(self.stage / "checkpoints")
        assert newest is not None
        return {"updates": newest.name, "state": state_checksums(newest)}


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")
    through = Disturbed(rank, path, "through")
    if rank == 0:
        workflow.pack(through.config(), "short")
    stopped_like = Disturbed(rank, path, "stopped", like=through)
    seen: dict[str, Any] = {"through": [through.go_on(), through.end()]}
    stopped_like.go_on(exit_before=0.0)  # after update 1

    log_is_a_directory = Disturbed(rank, path, "directory", like=stopped_like)
    log = log_is_a_directory.stage / "metrics.jsonl"
    if rank == 0:
        log.rename(log.with_name("aside"))
        log.mkdir()
    said = log_is_a_directory.go_on()
    if rank == 0:
        log.rmdir()
        log.with_name("aside").rename(log)
    seen["directory"] = [said, log_is_a_directory.go_on(), log_is_a_directory.end()]

    full = Disturbed(rank, path, "full", like=stopped_like)
    append = JsonLines.append

    def no_space(self: JsonLines, line: Any) -> None:
        if line["update"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        append(self, line)

    JsonLines.append = no_space  # type: ignore[method-assign]
    said = full.go_on()
    JsonLines.append = append  # type: ignore[method-assign]
    seen["full"] = [said, full.end()["updates"], full.go_on(), full.end()]

    edited = Disturbed(rank, path, "edited", like=stopped_like)
    log = edited.stage / "metrics.jsonl"
    if rank == 0:
        line = json.loads(log.read_text())
        log.write_text(json.dumps({**line, "loss": "4.5"}) + "\n")
    seen["edited"] = [edited.go_on(), edited.end()]

    gone = Disturbed(rank, path, "gone", like=stopped_like)
    if rank == 0:
        gone.stage.rename(gone.stage.with_name("aside"))
        gone.stage.mkdir()
    said = gone.go_on()
    left = [p.name for p in gone.stage.iterdir()]
    dist.barrier()
    if rank == 0:
        gone.stage.rmdir()
        gone.stage.symlink_to(gone.folder / "not mounted")
    linked = gone.go_on()
    made = (gone.folder / "not mounted").exists()
    dist.barrier()
    if rank == 0:
        gone.stage.unlink()
    seen["gone"] = [said, left, linked, made, gone.go_on(), gone.end()]

    precise = Disturbed(rank, path, "precise", like=stopped_like)
    precise.go_on("engine.precision=bf16", "engine.layers=auto")
    newest = checkpoint.latest(precise.stage / "checkpoints")
    assert newest is not None
    seen["precise"] = checkpoint.read_manifest(newest).extra.get(CHANGES)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("records")
    write_run(folder)
    return run_distributed(scenarios, 2, str(folder), timeout=400)


def test_a_log_that_cannot_be_opened_ends_all_ranks_alike(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        said, went_on, end = rank["directory"]
        assert said.startswith("LogError") and "metrics.jsonl" in said
        assert went_on == "" and end == rank["through"][1]


def test_a_line_that_cannot_be_written_ends_all_ranks_after_a_save(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        said, saved, went_on, end = rank["full"]
        assert said.startswith("LogError") and "the line of update 3 cannot" in said
        assert saved == checkpoint.checkpoint_name(3)
        assert went_on == "" and end == rank["through"][1]
    assert "No space left" in seen[0]["full"][0]


def test_an_edited_line_is_a_loss_that_is_not_known(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["edited"] == ["", rank["through"][1]]


def test_a_stage_whose_directory_is_not_mounted_does_not_begin_anew(
    seen: list[dict[str, Any]],
) -> None:
    """An empty directory, and a link that leads nowhere; moved away it begins anew."""
    for rank in seen:
        empty, left, linked, made, anew, end = rank["gone"]
        assert empty.startswith("CheckpointError") and "short is empty, but" in empty
        assert left == []
        assert "is a link to" in linked and "mount it" in linked and not made
        assert anew == "" and end == rank["through"][1]


def test_a_precision_that_changes_while_a_stage_trains_is_on_record(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        assert rank["precise"] == [
            {
                "after_update": 1,
                "settings": [
                    "engine.precision: fp32 there, bf16 now",
                    "engine.layers: local there, auto now",
                ],
            }
        ]
