"""Directories of checkpoints: begun, committed, published, retained, swept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alia_ctx import checkpoint
from alia_ctx.checkpoint.dcp_files import record_file, write_metadata
from alia_ctx.errors import CheckpointError
from tests.checkpoint.test_opening import MODEL, ROPE


def test_files_of_other_ranks_must_be_here(tmp_path: Path) -> None:
    """A rank that wrote to a file system of its own: its file would be missing later."""
    final = tmp_path / "update-00000005"
    temporary = checkpoint.begin(final)
    with record_file(temporary / "state", 0) as file:
        file.append_tensor("w", (0,), torch.arange(4.0))
    write_metadata(temporary / "state", {"w": ((4,), torch.float32)}, [file.part])
    known = {"state/__1_0.distcp": {"bytes": 3, "xxh3_128": "0"}}
    manifest = checkpoint.Manifest("s1", 5, MODEL, ROPE, 64)
    with pytest.raises(
        CheckpointError, match=r"__1_0\.distcp: was written by another rank"
    ):
        checkpoint.commit(temporary, final, manifest, known=known)
    assert not final.exists()


@pytest.mark.parametrize("what", ["file", "link", "directory", "dangling link"])
def test_whatever_bears_the_final_name_is_replaced(what: str, tmp_path: Path) -> None:
    final, other = tmp_path / "update-00000004", tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("kept")
    if what == "file":
        final.write_text("x")
    elif what == "directory":
        final.mkdir()
    else:
        final.symlink_to(other if what == "link" else tmp_path / "nothing")
    temporary = tmp_path / "new"
    temporary.mkdir()
    (temporary / "a").write_text("a")
    checkpoint.publish(temporary, final)
    assert [p.name for p in final.iterdir()] == ["a"] and not final.is_symlink()
    assert (other / "mine").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "update-00000004"]


def test_what_is_in_the_way_of_a_save_is_named(tmp_path: Path) -> None:
    final = tmp_path / "update-00000004"
    checkpoint.temporary_path(final).write_text("in the way")
    with pytest.raises(
        CheckpointError, match=r"incomplete: is in the way.*move it away"
    ):
        checkpoint.begin(final)


def test_retention_counts_no_damaged_ones(tmp_path: Path) -> None:
    paths = [tmp_path / checkpoint.checkpoint_name(n) for n in (3, 6, 8, 9)]
    for path in paths:
        path.mkdir()
    checkpoint.retain(tmp_path, keep_last=2, keep=[paths[2]])
    assert checkpoint.list_checkpoints(tmp_path) == paths[1:]


def test_what_a_killed_writer_replaced_is_swept_once_its_successor_is_there(
    tmp_path: Path,
) -> None:
    kept = ("update-00000003.replaced-0a1b2c3d", "update-00000006")
    for name in (*kept, "update-00000006.replaced-01234567"):
        (tmp_path / name).mkdir()
    checkpoint.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_names_that_somebody_gave_are_nobodys_to_remove(tmp_path: Path) -> None:
    backups = [
        f"update-0000000{n}.{end}" for n in (3, 6) for end in ("retired", "replaced")
    ]
    for name in (*backups, *(checkpoint.checkpoint_name(n) for n in (3, 6, 9))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("kept")
    checkpoint.retain(tmp_path, keep_last=1)
    checkpoint.sweep(tmp_path)
    new = tmp_path / "new"
    new.mkdir()
    checkpoint.publish(new, tmp_path / checkpoint.checkpoint_name(6))
    checkpoint.publish(
        tmp_path / checkpoint.checkpoint_name(9), tmp_path / "update-00000006"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*backups, checkpoint.checkpoint_name(6)]
    )


def test_a_whole_checkpoint_under_the_temporary_name_is_in_the_way(
    tmp_path: Path,
) -> None:
    final = tmp_path / "update-00000004"
    ours = checkpoint.begin(final)
    (ours / checkpoint.MANIFEST).write_text("{}")
    assert checkpoint.begin(final) == ours, "ours, left by a kill before the rename"
    assert not (ours / checkpoint.MANIFEST).exists()
    (ours / checkpoint.MANIFEST).write_text("{}")
    checkpoint.publish(ours, final)
    final.rename(ours)
    with pytest.raises(
        CheckpointError, match=r"incomplete: is in the way.*move it away"
    ):
        checkpoint.begin(final)
    assert (ours / checkpoint.MANIFEST).exists()


@pytest.mark.parametrize("what", ["link", "dead link", "file", "directory"])
def test_what_is_not_ours_is_never_removed_to_make_room(
    what: str, tmp_path: Path
) -> None:
    final, mine = tmp_path / "update-00000004", tmp_path / "mine"
    temporary = checkpoint.temporary_path(final)
    mine.mkdir()
    (mine / "thesis.txt").write_text("kept")
    if what == "file":
        temporary.write_text("kept")
    elif what == "directory":
        mine.rename(temporary)
    else:
        temporary.symlink_to(mine if what == "link" else tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"is in the way.*move it away"):
        checkpoint.begin(final)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_writer_of_an_older_release_left_is_ours(tmp_path: Path) -> None:
    """It kept no record beside it."""
    final = tmp_path / "update-00000004"
    left = checkpoint.temporary_path(final) / "state" / "__0_0.distcp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    assert checkpoint.begin(final).is_dir() and not left.exists()
