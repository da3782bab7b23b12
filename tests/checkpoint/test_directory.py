"""Directories of checkpoints: begun, committed, published, retained, swept."""

from __future__ import annotations

import json
import shutil
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


class Killed(BaseException):
    """Stands for a kill: nothing that guards against errors takes notice."""


def die(*arguments: object, **settings: object) -> None:
    raise Killed


def killed_save(final: Path, moment: str, patch: pytest.MonkeyPatch) -> None:
    """A checkpoint with assets that is written up to the first call of `moment`."""
    temporary = checkpoint.begin(final)
    (temporary / "state" / "__0_0.distcp").write_text("weights")
    (temporary / "assets").mkdir()
    (temporary / "assets" / "LICENSE").write_text("free")
    manifest = checkpoint.Manifest("s1", 4, MODEL, ROPE, 64)
    with patch.context() as patched:
        patched.setattr(moment, die)
        with pytest.raises(Killed):
            checkpoint.commit(temporary, final, manifest)


MOMENTS = ["pathlib.Path.unlink", "alia_ctx.checkpoint.directory.publish", "os.rename"]


@pytest.mark.parametrize("moment", [*MOMENTS, "json.dumps", "os.fsync"])
def test_what_a_killed_writer_left_is_ours_in_a_copy_of_the_run_too(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a copy's inodes are others."""
    killed_save(tmp_path / "run" / "update-00000004", moment, monkeypatch)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for folder in ("copy", "run"):
        final = tmp_path / folder / "update-00000004"
        begun = checkpoint.begin(final)
        assert [path.name for path in begun.rglob("*") if path.is_dir()] == ["state"]
        assert not list(begun.rglob("LICENSE")) and not list(begun.rglob("*.distcp"))
        manifest = checkpoint.Manifest("s1", 4, MODEL, ROPE, 64)
        (begun / "state" / "__0_0.distcp").write_text("weights")
        checkpoint.commit(begun, final, manifest)
        whole = sorted(p.name for p in final.rglob("*") if p.is_file())
        assert whole == ["__0_0.distcp", "manifest.json"]
        assert list(checkpoint.read_manifest(final).files) == ["state/__0_0.distcp"]
        assert sorted(p.name for p in final.parent.iterdir()) == ["update-00000004"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_another_directory_beside_the_record_of_a_killed_writer_is_not_ours(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even at the inode of the one that was begun: file systems give them again."""
    final = tmp_path / "update-00000004"
    killed_save(final, moment, monkeypatch)
    temporary = checkpoint.temporary_path(final)
    for path in temporary.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    other = checkpoint.Manifest("s1", 3, MODEL, ROPE, 64)
    (temporary / "manifest.json").write_text(json.dumps(other.to_json()))
    (temporary / "state").mkdir()
    (temporary / "state" / "__0_0.distcp").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"is in the way.*move it away"):
        checkpoint.begin(final)
    with pytest.raises(CheckpointError, match=r"is in the way.*move it away"):
        checkpoint.require_free(final)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_left_of_remains_that_were_being_removed_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "update-00000004"
    killed_save(final, "os.rename", monkeypatch)
    temporary = checkpoint.temporary_path(final)
    (temporary / "config.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", die)
        with pytest.raises(Killed):
            checkpoint.begin(final)
    assert checkpoint.was_begun(temporary)
    assert checkpoint.begin(final).is_dir()
