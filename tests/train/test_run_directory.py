"""Places of a run on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.errors import CheckpointError
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.run_directory import RunDirectory

MODEL = ModelSpec(2, 32, 64, 4, 2, 8, 200)


def write_checkpoint(root: Path, update: int) -> Path:
    final = root / checkpoint.checkpoint_name(update)
    temporary = checkpoint.begin(final)
    manifest = Manifest("a", update, MODEL, RopeSpec("default", 10000.0), 64)
    checkpoint.commit(temporary, final, manifest)
    return final


def test_the_last_checkpoint_of_a_finished_stage(tmp_path: Path) -> None:
    places = RunDirectory(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        places.finished_checkpoint("a", 4)
    write_checkpoint(places.checkpoints("a"), 2)
    with pytest.raises(CheckpointError, match="2 of 4 updates; go on with"):
        places.finished_checkpoint("a", 4)
    last = write_checkpoint(places.checkpoints("a"), 4)
    assert places.finished_checkpoint("a", 4) == last


def test_every_place_is_below_the_root_and_no_two_are_one(tmp_path: Path) -> None:
    places = RunDirectory(tmp_path)
    made = [
        places.store("a"),
        places.plan("a"),
        places.stage("a"),
        places.metrics("a"),
        places.checkpoints("a"),
        places.evaluations,
        places.report,
        places.hf("a"),
        places.hf_note("a"),
    ]
    assert all(place.is_relative_to(tmp_path) for place in made)
    assert len(set(made)) == len(made)
