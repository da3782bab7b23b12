"""The checkpoints of a stage: what travels with them, what stands in their way, and what
one failed reading must not do. Saves are real ones, of a state of one tensor.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from alia_ctx import checkpoint
from alia_ctx.checkpoint.background_save import BackgroundSave, OwnedState, Staging
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import CheckpointConfig
from alia_ctx.errors import CheckpointError
from alia_ctx.train.checkpoint_manager import CheckpointManager
from tests.checkpoint.test_opening import MODEL, ROPE, failing, flip
from tests.distributed import run_distributed

ASSETS = {"tokenizer.json": b"{}", "LICENSE": b"free", "sub/notes.txt": b""}


class OneTensorEngine:
    """As much of an engine as saving needs: each rank owns four values of one tensor."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._staging = Staging()

    def gather_objects(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def begin_save(self, directory: Path) -> BackgroundSave:
        from alia_ctx.checkpoint import background_save

        box = getattr(background_save, "TensorBox", None) or background_save.Piece
        values = torch.arange(4.0) + 4 * self.rank
        boxes = [box("w", (4 * self.rank,), (4,), values)]
        tensors = {"w": ((4 * self.world_size,), torch.float32)}
        return BackgroundSave(OwnedState(boxes, {}, tensors), directory, self._staging)


class Stage:
    """A manager of checkpoints and what it said."""

    def __init__(self, root: Path, **rules: Any) -> None:
        self.notices: list[str] = []
        settings = CheckpointConfig(**{"every_updates": 2, "keep_last": 2, **rules})
        self.manager = CheckpointManager(
            OneTensorEngine(),  # type: ignore[arg-type]
            root,
            settings,
            self.notices.append,
            lambda: None,
        )

    def save(self, *updates: int) -> None:
        for update in updates:
            self.manager.begin(manifest(update))
        self.manager.finish()

    def save_last(self, update: int) -> str:
        """What the last save of a stage says, where it fails."""
        try:
            self.manager.save(manifest(update))
        except CheckpointError as error:
            return str(error)
        return ""

    def newest(self) -> str:
        """Name of the checkpoint to go on from, or the error."""
        try:
            path = self.manager.newest_whole()
        except CheckpointError as error:
            return f"{type(error).__name__}: {error}"
        return path.name if path else "none"


def manifest(update: int) -> Manifest:
    return Manifest("s1", update, MODEL, ROPE, 64)


def name(update: int) -> str:
    return checkpoint.checkpoint_name(update)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def assets_of(path: Path) -> dict[str, bytes]:
    folder = path / "assets"
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


def write_base(path: Path) -> None:
    """A checkpoint to start from, with assets, as an import leaves it."""
    stage = Stage(path.parent)
    stage.manager._assets = dict(ASSETS)
    stage.save(0)
    if dist.get_rank() == 0:
        (path.parent / name(0)).rename(path)
    dist.barrier()


# -- assets ----------------------------------------------------------------------------


def assets_after_two_resumes(rank: int, folder: str) -> None:
    root, base = Path(folder) / "checkpoints", Path(folder) / "base/base"
    write_base(base)
    first = Stage(root)
    assert first.newest() == "none" and first.manager.damage(base) is None
    dist.barrier()
    if rank == 0:
        shutil.rmtree(base)  # whoever started a stage may tidy up
    first.save(2, 4)
    for updates in ([6, 8, 10], [12, 14]):
        stage = Stage(root)
        assert stage.newest() == name(updates[0] - 2)
        stage.save(*updates)
    stage.manager._finish_sweeping()
    dist.barrier()
    assert names(root) == [name(12), name(14)]
    for path in checkpoint.list_checkpoints(root):
        checkpoint.open_checkpoint(path)
        assert assets_of(path) == ASSETS


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_later_checkpoint_has_the_assets(ranks: int, tmp_path: Path) -> None:
    run_distributed(assets_after_two_resumes, ranks, str(tmp_path))


# -- saves that cannot begin -----------------------------------------------------------


def obstruct_with_file(root: Path, final: Path) -> Callable[[], None]:
    checkpoint.temporary_path(final).write_text("in the way")
    return checkpoint.temporary_path(final).unlink


def obstruct_root(root: Path, final: Path) -> Callable[[], None]:
    """A file where the checkpoints' directory should be."""
    aside = root.with_name("aside")
    root.rename(aside)
    root.write_text("")

    def mend() -> None:
        root.unlink()
        aside.rename(root)

    return mend


def fill_disk(root: Path, final: Path) -> Callable[[], None]:
    """No space while assets are copied."""
    original = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.is_relative_to(root):
            raise OSError(28, "No space left on device", str(path))
        return original(path, data)

    Path.write_bytes = full  # type: ignore[method-assign]

    def mend() -> None:
        Path.write_bytes = original  # type: ignore[method-assign]

    return mend


OBSTACLES: dict[str, tuple[Callable[[Path, Path], Callable[[], None]], str]] = {
    "file": (obstruct_with_file, "is in the way"),
    "root": (obstruct_root, "Not a directory"),
    "disk": (fill_disk, "No space left on device"),
}


def save_past(rank: int, folder: str, obstacle: str) -> None:
    """One save cannot begin, the next can; the last of a stage must."""
    root, base = Path(folder) / "checkpoints", Path(folder) / "base/base"
    write_base(base)
    stage = Stage(root)
    assert stage.newest() == "none" and stage.manager.damage(base) is None
    stage.save(2)
    dist.barrier()
    mend = OBSTACLES[obstacle][0](root, root / name(4)) if rank == 0 else lambda: None
    dist.barrier()
    stage.save(4)
    assert len(stage.notices) == 1 and OBSTACLES[obstacle][1] in stage.notices[0]
    assert "training goes on" in stage.notices[0] and "\n" not in stage.notices[0]
    said = stage.save_last(4)
    assert OBSTACLES[obstacle][1] in said and str(root) in said
    dist.barrier()
    mend()
    dist.barrier()
    assert stage.save_last(4) == ""
    assert assets_of(root / name(4)) == ASSETS
    dist.barrier()
    assert Stage(root).newest() == name(4)


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_a_save_that_cannot_begin_is_loud_and_not_the_end(
    obstacle: str, tmp_path: Path
) -> None:
    run_distributed(save_past, 2, str(tmp_path), obstacle, timeout=100)


def save_where_one_rank_cannot(rank: int, folder: str, bad: int) -> None:
    root = Path(folder)
    stage = Stage(root)
    stage.save(2)
    dist.barrier()
    with failing(root, "EACCES", 10**9 * (rank == bad)):
        stage.save(4)
        said = stage.save_last(6)
    assert f"rank {bad}" in stage.notices[0] or bad == 0, stage.notices
    assert "training goes on" in stage.notices[0] and "as tested" in said
    dist.barrier()
    assert stage.newest() == name(2)
    stage.save(8)
    assert stage.newest() == name(8)


@pytest.mark.parametrize("bad", [0, 1])
def test_any_rank_that_cannot_write_fails_the_save_on_all(
    bad: int, tmp_path: Path
) -> None:
    run_distributed(save_where_one_rank_cannot, 2, str(tmp_path), bad, timeout=100)


# -- damage and failed readings --------------------------------------------------------


def resume_past_damage(rank: int, folder: str) -> None:
    root = Path(folder)
    Stage(root).save(2, 4)
    dist.barrier()
    if rank == 0:
        flip(root / name(4) / "state/__0_0.distcp")
    dist.barrier()
    stage = Stage(root)
    assert stage.newest() == name(2)
    if rank == 0:
        assert (
            "checksum differs" in stage.notices[0] and "passed over" in stage.notices[0]
        )
    stage.save(5, 6)
    stage.manager._finish_sweeping()
    dist.barrier()
    # The damaged one is neither renamed, nor removed, nor counted among those to keep.
    assert names(root) == [name(4), name(5), name(6)]
    again = Stage(root)
    assert again.newest() == name(6)


def test_a_damaged_checkpoint_is_passed_over_and_left_alone(tmp_path: Path) -> None:
    run_distributed(resume_past_damage, 2, str(tmp_path))


def save_over_damage(rank: int, folder: str) -> None:
    root = Path(folder)
    Stage(root).save(2, 4)
    flip(root / name(4) / "state/__0_0.distcp")
    stage = Stage(root)
    assert stage.newest() == name(2)
    assert stage.save_last(4) == ""  # it is there, but not whole
    assert Stage(root).newest() == name(4) and names(root) == [name(2), name(4)]
    before = (root / name(4) / "manifest.json").stat().st_mtime_ns
    assert stage.save_last(4) == ""  # and now it is
    assert (root / name(4) / "manifest.json").stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_replaced_by_a_save_of_its_update(
    tmp_path: Path,
) -> None:
    run_distributed(save_over_damage, 1, str(tmp_path))


def resume_while_one_rank_fails(rank: int, folder: str, fault: str, bad: int) -> None:
    root = Path(folder)
    Stage(root).save(2, 4)
    dist.barrier()
    before = names(root)
    with failing(root, fault, 10**9 * (rank == bad)):
        said = Stage(root).newest()
    assert said.startswith("UnreadableError: rank "), said
    assert f"rank {bad} on {os.uname().nodename}" in said and str(root) in said, said
    dist.barrier()
    assert names(root) == before
    assert Stage(root).newest() == name(4)


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("fault", ["ENOENT", "ESTALE", "EIO", "flip"])
def test_one_failed_reading_changes_nothing(
    fault: str, bad: int, tmp_path: Path
) -> None:
    run_distributed(
        resume_while_one_rank_fails, 2, str(tmp_path), fault, bad, timeout=100
    )


def start_with(rank: int, folder: str) -> str:
    return Stage(Path(folder)).newest()


@pytest.mark.parametrize(
    "remnant",
    [f"{name(4)}.damaged", f"{name(4)}.replaced", f"{name(4)}.retired", name(4)],
)
def test_where_there_were_checkpoints_a_stage_does_not_begin_anew(
    remnant: str, tmp_path: Path
) -> None:
    (tmp_path / remnant).mkdir()
    for said in run_distributed(start_with, 2, str(tmp_path)):
        assert said.startswith("CheckpointError: ") and remnant in said
        assert "begin the stage anew" in said
    assert names(tmp_path) == [remnant]


def test_a_first_save_that_was_killed_is_no_remnant(tmp_path: Path) -> None:
    (tmp_path / f"{name(4)}.incomplete").mkdir()
    assert run_distributed(start_with, 1, str(tmp_path)) == ["none"]
