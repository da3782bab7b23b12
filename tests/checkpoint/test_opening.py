"""The door to a checkpoint: whatever it says of itself is compared before it is used."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from alia_ctx import checkpoint
from alia_ctx.checkpoint.dcp_files import record_file, write_metadata
from alia_ctx.checkpoint.manifest import DamagedError, UnreadableError
from alia_ctx.errors import CheckpointError
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from tests.distributed import run_distributed

MODEL = ModelSpec(
    num_hidden_layers=1,
    hidden_size=8,
    intermediate_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=32,
)
ROPE = RopeSpec("default", 10000.0)


def write_checkpoint(final: Path) -> Path:
    """A committed checkpoint of one tensor, with an asset and a ledger."""
    temporary = checkpoint.begin(final)
    with record_file(temporary / "state", 0) as file:
        file.append_tensor("w", (0,), torch.arange(4000.0))
    write_metadata(temporary / "state", {"w": ((4000,), torch.float32)}, [file.part])
    (temporary / "assets/sub").mkdir(parents=True)
    (temporary / "assets/tokenizer.json").write_text("{}")
    (temporary / "assets/sub/notes.txt").write_text("")
    entry = checkpoint.StageLedger("s1", 64, ROPE, 1e-3, updates=4, tokens=256)
    manifest = checkpoint.Manifest(
        "s1", 4, MODEL, ROPE, 64, (entry,), config={"seed": 1, "x": [1.5, None]}
    )
    checkpoint.commit(temporary, final, manifest)
    return final


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "update-00000004")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((path / "manifest.json").read_text())
    change(document)
    (path / "manifest.json").write_text(json.dumps(document))


def test_a_whole_checkpoint_opens(path: Path) -> None:
    manifest = checkpoint.open_checkpoint(path)
    assert manifest.ledger[0].tokens == 256 and manifest.model == MODEL
    assert set(manifest.files) == {
        "state/.metadata",
        "state/__0_0.distcp",
        "state/metadata.json",
        "assets/tokenizer.json",
        "assets/sub/notes.txt",
    }


def test_a_checkpoint_under_the_name_of_another_update_is_not_believed(
    path: Path,
) -> None:
    """A copy made by hand would else be the newest, and gone on from."""
    for name in ("copy", "final", "update-4"):
        shutil.copytree(path, path.with_name(name))
        assert checkpoint.open_checkpoint(path.with_name(name)).update == 4
    for name in ("update-00000010", "update-00000003"):
        shutil.copytree(path, path.with_name(name))
        with pytest.raises(DamagedError, match=f"{name}: is of update 4"):
            checkpoint.open_checkpoint(path.with_name(name))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "theta": (lambda d: d["rope"].update(theta=1e6), "rope changed"),
    "context": (lambda d: d.update(context=128), "context changed"),
    "ledger": (lambda d: d["ledger"][0].update(tokens=257), "ledger changed"),
    "no ledger": (lambda d: d.update(ledger=[]), "ledger changed"),
    "config": (lambda d: d["config"].update(seed=2), "config changed"),
    "new in config": (lambda d: d["config"].update(y=0), "config changed"),
    "model": (lambda d: d["model"].update(rms_norm_eps=1e-6), "model changed"),
    "update": (lambda d: d.update(update=5), "update changed"),
    "stage": (lambda d: d.update(stage="s2"), "stage changed"),
    "parent": (lambda d: d.update(parent="x"), "parent changed"),
    "extra": (lambda d: d.update(extra={"dtype": "x"}), "extra changed"),
    "optimizer": (lambda d: d.update(has_optimizer=True), "has_optimizer changed"),
    "two": (lambda d: d.update(context=1, update=1), "context, update changed"),
    "no files": (lambda d: d.update(files={}), "files changed"),
    "one file less": (lambda d: d["files"].popitem(), "files changed"),
    "left out": (lambda d: d.pop("parent"), "parent changed"),
    "added": (lambda d: d.update(note="x"), "note changed"),
    "statement": (lambda d: d["statement"].update(context="0"), "context changed"),
    "no statement": (lambda d: d.pop("statement"), "checksums are missing"),
    "odd statement": (lambda d: d.update(statement=[1]), "checksums are missing"),
    "claims to be old": (
        lambda d: d.update(format_version=1),
        "format_version changed",
    ),
    "of the future": (
        lambda d: d.update(format_version=3),
        "this release reads 1 and 2",
    ),
    "true": (lambda d: d.update(format_version=True), "format_version changed"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_manifest_is_refused_by_what_was_edited(
    name: str, path: Path
) -> None:
    change, said = EDITS[name]
    edit(path, change)
    with pytest.raises(CheckpointError, match=f"manifest.json: .*{said}"):
        checkpoint.open_checkpoint(path)
    with pytest.raises(CheckpointError, match=f"manifest.json: .*{said}"):
        checkpoint.read_manifest(path)


def test_another_spelling_of_the_same_manifest_opens(path: Path) -> None:
    edit(path, lambda document: None)
    assert "\n" not in (path / "manifest.json").read_text()
    assert checkpoint.open_checkpoint(path).context == 64


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"format_version": 2}'])
def test_a_broken_manifest_is_damage(text: str, path: Path) -> None:
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.open_checkpoint(path)


def make_old(document: dict[str, Any]) -> None:
    document.pop("statement")
    document["format_version"] = 1


def test_a_manifest_of_release_0_1_opens_and_its_files_are_checked(path: Path) -> None:
    edit(path, make_old)
    assert checkpoint.open_checkpoint(path).context == 64
    (path / "assets/tokenizer.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"tokenizer\.json: checksum differs"):
        checkpoint.open_checkpoint(path)
    edit(path, lambda document: document.update(files={}))
    with pytest.raises(DamagedError, match=r"names no state/\.metadata"):
        checkpoint.open_checkpoint(path)


def flip(file: Path, at: int = 100) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit in weights": (
        lambda p: flip(p / "state/__0_0.distcp", 9000),
        "__0_0.distcp: checksum differs",
    ),
    "bit in metadata": (
        lambda p: flip(p / "state/.metadata"),
        ".metadata: checksum differs",
    ),
    "cut": (
        lambda p: os.truncate(p / "state/__0_0.distcp", 9000),
        "__0_0.distcp: 9000 bytes instead of",
    ),
    "missing weights": (
        lambda p: (p / "state/__0_0.distcp").unlink(),
        "__0_0.distcp: missing",
    ),
    "missing asset": (
        lambda p: (p / "assets/tokenizer.json").unlink(),
        "tokenizer.json: missing",
    ),
    "missing assets": (lambda p: shutil.rmtree(p / "assets"), "assets/.*: missing"),
    "more weights": (
        lambda p: shutil.copy(p / "state/__0_0.distcp", p / "state/__1_0.distcp"),
        "__1_0.distcp: is not among",
    ),
    "common.pt": (
        lambda p: (p / "state/common.pt").write_bytes(b""),
        "common.pt: is not among",
    ),
    "more assets": (
        lambda p: (p / "assets/LICENSE").write_text("mine"),
        "LICENSE: is not among",
    ),
    "beside": (lambda p: (p / "notes").write_text("x"), "notes: is not among"),
    "hidden": (lambda p: (p / ".x").write_text("x"), ".x: is not among"),
    "another manifest": (
        lambda p: shutil.copy(p / "manifest.json", p / "state"),
        "state/manifest.json: is not among",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str, path: Path) -> None:
    damage, said = DAMAGES[name]
    damage(path)
    with pytest.raises(DamagedError, match=said):
        checkpoint.open_checkpoint(path)
    with pytest.raises(DamagedError, match=said):
        checkpoint.verify_files(path, checkpoint.read_manifest(path))


def test_tensor_files_can_be_left_to_the_caller(path: Path) -> None:
    flip(path / "state/__0_0.distcp", 9000)
    checkpoint.open_checkpoint(path, weights=False)
    flip(path / "state/.metadata")
    with pytest.raises(DamagedError, match=r"\.metadata"):
        checkpoint.open_checkpoint(path, weights=False)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        checkpoint.open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.open_checkpoint(tmp_path)


REAL_OPEN = open


# -- readings that fail ----------------------------------------------------------------


@contextmanager
def failing(below: Path, fault: str, times: int = 10**9) -> Iterator[None]:
    """Every look at files below `below` meets `fault`: the name of an errno, or `flip`
    for one bit in what is read of the tensor files.
    """
    left = [times]

    def wrap(original: Any) -> Any:
        def wrapped(file: Any, *args: Any, **kwargs: Any) -> Any:
            below_it = isinstance(file, str | Path) and Path(file).is_relative_to(below)
            if not below_it or left[0] <= 0:
                return original(file, *args, **kwargs)
            if fault != "flip":
                left[0] -= 1
                raise OSError(getattr(errno, fault), "as tested", str(file))
            if original is not REAL_OPEN or not str(file).endswith(".distcp"):
                return original(file, *args, **kwargs)
            left[0] -= 1
            with original(file, *args, **kwargs) as stream:
                data = bytearray(stream.read())
            data[len(data) // 2] ^= 1
            return io.BytesIO(data)

        return wrapped

    with (
        patch.object(builtins, "open", wrap(open)),
        patch.object(io, "open", wrap(io.open)),
        patch.object(os, "stat", wrap(os.stat)),
        patch.object(os, "listdir", wrap(os.listdir)),
        patch.object(os, "scandir", wrap(os.scandir)),
    ):
        yield


@pytest.mark.parametrize("fault", ["EIO", "ESTALE", "EACCES", "ETIMEDOUT"])
def test_what_cannot_be_read_is_not_damaged(fault: str, path: Path) -> None:
    with failing(path, fault), pytest.raises(UnreadableError, match="rank 0 on "):
        checkpoint.open_checkpoint(path)
    checkpoint.open_checkpoint(path)


def test_one_refusal_is_read_again(path: Path) -> None:
    with failing(path / "state/__0_0.distcp", "ESTALE", times=1):
        checkpoint.open_checkpoint(path)


def test_one_wrong_reading_is_no_damage(path: Path) -> None:
    with (
        failing(path, "flip", times=1),
        pytest.raises(UnreadableError, match="not seen at a second reading"),
    ):
        checkpoint.open_checkpoint(path)
    checkpoint.open_checkpoint(path)


class Group:
    """The ranks of the test's process group."""

    def __init__(self, rank: int) -> None:
        self.rank, self.world_size = rank, torch.distributed.get_world_size()

    def gather_objects(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered


def open_on(rank: int, path: str, where: str, fault: str, bad: list[int]) -> str:
    """What opening says on this rank, where `bad` ranks meet `fault` below `where`."""
    target = Path(path)
    with failing(Path(where), fault if rank in bad else "flip", 10**9 * (rank in bad)):
        try:
            checkpoint.open_checkpoint(target, Group(rank))
        except CheckpointError as error:
            return f"{type(error).__name__}: {error}"
    return "whole"


# Each rank reads its share of the files: sorted by name, the even ones are rank 0's.
FAULTS = {
    0: [
        ("ENOENT", "."),
        ("ENOENT", "assets/sub/notes.txt"),
        ("ENOENT", "manifest.json"),
        ("ESTALE", "."),
        ("ESTALE", "state/.metadata"),
        ("EIO", "manifest.json"),
    ],
    1: [
        ("ENOENT", "."),
        ("ENOENT", "state/__0_0.distcp"),
        ("ENOENT", "manifest.json"),
        ("ESTALE", "."),
        ("EIO", "assets/tokenizer.json"),
        ("EIO", "manifest.json"),
        ("flip", "."),
    ],
}


def every_fault(rank: int, path: str, bad: int) -> list[str]:
    return [
        open_on(rank, path, str(Path(path) / where), fault, [bad])
        for fault, where in FAULTS[bad]
    ]


@pytest.mark.parametrize("bad", [0, 1])
def test_one_rank_that_sees_otherwise_stops_all_and_says_where(
    bad: int, path: Path
) -> None:
    before = sorted(p.name for p in path.parent.iterdir())
    results = run_distributed(every_fault, 2, str(path), bad)
    assert results[0] == results[1]
    for (fault, where), said in zip(FAULTS[bad], results[0], strict=True):
        assert "UnreadableError: rank " in said, (fault, where, said)
        assert f"rank {bad} on {os.uname().nodename}: {path}" in said, said
    assert sorted(p.name for p in path.parent.iterdir()) == before
    checkpoint.open_checkpoint(path)


def damaged_for_all(rank: int, path: str) -> list[str]:
    return [
        open_on(rank, path, str(Path(path) / "state/__0_0.distcp"), fault, [0, 1])
        for fault in ("ENOENT", "flip")
    ]


def test_what_all_ranks_find_damaged_is(path: Path) -> None:
    for said in run_distributed(damaged_for_all, 2, str(path)):
        assert said[0].startswith("DamagedError: ") and "missing" in said[0]
        assert said[1].startswith("DamagedError: ") and "checksum" in said[1]


def list_on(rank: int, root: str) -> str:
    try:
        with failing(Path(root), "ENOENT", 10**9 * rank):
            return str(len(checkpoint.agreed_checkpoints(Path(root), Group(rank))))
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}"


def test_a_rank_that_sees_no_checkpoints_stops_all(path: Path) -> None:
    for said in run_distributed(list_on, 2, str(path.parent)):
        assert "UnreadableError: rank 1 on" in said and "other things" in said
    assert len(checkpoint.agreed_checkpoints(path.parent)) == 1
