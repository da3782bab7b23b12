"""A checkpoint from somebody else, with a payload in it, at every door of the program."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from alia_ctx import checkpoint, workflow
from alia_ctx.checkpoint.dcp_files import COMMON_STATE
from alia_ctx.config.load import load_run
from alia_ctx.errors import AliaError
from alia_ctx.workflow import finished_checkpoint
from tests.checkpoint.test_closed_pickles import Call
from tests.distributed import run_distributed
from tests.small_run import write_run

OVERRIDES = ["stages.short.tokens=1536", "checkpoint.every_updates=3"]


def poison_metadata(state: Path, payload: Any) -> None:
    metadata = pickle.loads((state / ".metadata").read_bytes())
    metadata.planner_data = payload
    (state / ".metadata").write_bytes(pickle.dumps(metadata))


def poison_common_state(state: Path, payload: Any) -> None:
    """Append a record to a tensor file, and let the metadata lead to it."""
    metadata = pickle.loads((state / ".metadata").read_bytes())
    record = metadata.storage_data[MetadataIndex(COMMON_STATE)]
    stream = io.BytesIO()
    torch.save([payload], stream)
    file = state / record.relative_path
    record.offset, record.length = file.stat().st_size, stream.tell()
    with file.open("ab") as tensors:
        tensors.write(stream.getvalue())
    (state / ".metadata").write_bytes(pickle.dumps(metadata))


def forge(path: Path) -> None:
    """Give the manifest the checksums of what is there now: anybody can."""
    manifest = checkpoint.read_manifest(path)
    files = {name: checkpoint.file_entry(path / name) for name in manifest.files}
    forged = dataclasses.replace(manifest, files=files)
    (path / "manifest.json").write_text(json.dumps(forged.to_json()))


def train(rank: int, path: str, stage: str) -> None:
    workflow.train(load_run(path, OVERRIDES), stage)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its first stage done, and that stage's export."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_run(folder)
    run = load_run(path, OVERRIDES)
    for stage in ("short", "long"):
        workflow.pack(run, stage)
    run_distributed(train, 1, str(path), "short", timeout=200)
    export(path, folder / "hf")
    return folder


def export(path: Path, target: Path) -> None:
    from alia_ctx.hf import convert

    newest = finished_checkpoint(load_run(path, OVERRIDES), "short")
    convert.export_hf(newest, target, *_store(convert.export_hf))


def verify(path: Path, hf_dir: Path) -> None:
    from alia_ctx.hf import verify as module

    newest = finished_checkpoint(load_run(path, OVERRIDES), "short")
    module.verify(hf_dir, newest, *_store(module.verify), logits=False)


def _store(function: Callable[..., Any]) -> list[Any]:
    import inspect

    from alia_ctx.checkpoint import dcp_store

    return [dcp_store] if "store" in inspect.signature(function).parameters else []


def try_every_door(rank: int, config: str, folder: str) -> dict[str, str]:
    path, here = Path(config), Path(folder)
    run = load_run(path, OVERRIDES)
    doors: dict[str, Callable[[], Any]] = {
        "train, at a resume": lambda: workflow.train(run, "short"),
        "train, from a stage": lambda: workflow.train(run, "long"),
        "evaluate": lambda: workflow.measure_models(
            workflow.evaluation_task(run, ["short"], [64], ["positions"])
        ),
        "evaluate --update": lambda: workflow.recompute(run, "long", 1),
        "export-hf": lambda: export(path, here / "new"),
        "verify": lambda: verify(path, here / "hf"),
    }
    said = {}
    for door, go in doors.items():
        try:
            go()
            said[door] = ""
        except AliaError as error:
            said[door] = str(error)
    return said


# Doors that read no common state.
WEIGHTS_ALONE = {"export-hf", "verify", "evaluate", "evaluate --update"}


@pytest.mark.parametrize("forged", [True, False])
@pytest.mark.parametrize("poison", [poison_metadata, poison_common_state])
def test_a_payload_runs_at_no_door(
    poison: Callable[[Path, Any], None], forged: bool, finished: Path, tmp_path: Path
) -> None:
    config = finished / "run.yaml"
    stage = finished / "out/stages/short/checkpoints"
    shutil.copytree(stage, tmp_path / "kept")
    newest, mark = checkpoint.list_checkpoints(stage)[-1], tmp_path / "mark"
    try:
        shutil.copytree(finished / "hf", tmp_path / "hf")
        poison(newest / "state", Call(os.system, f"touch {mark}"))
        if forged:
            forge(newest)
        said = run_distributed(
            try_every_door, 1, str(config), str(tmp_path), timeout=300
        )[0]
    finally:
        shutil.rmtree(stage)
        shutil.copytree(tmp_path / "kept", stage)
    assert not mark.exists()
    assert not (tmp_path / "new").exists() or poison is poison_common_state
    for door, text in said.items():
        if not forged:
            assert "bytes instead of" in text or "damaged" in text, (door, text)
        elif poison is poison_metadata:
            assert "which no checkpoint needs" in text, (door, text)
        elif door not in WEIGHTS_ALONE:
            assert "no plain object" in text, (door, text)
