"""Conversations that a stage holds out: kept as they are, and from all stages of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import DataError
from tests.small_run import VOCABULARY, write_run

COUNTS = {"one": 120, "two": 61}


def write_talks(folder: Path, **stages: Any) -> Path:
    """A run with the stage `pre` of tokens, and `calls` of conversations behind it, both
    of the same two sources; and more stages as `calls` is, with changes.
    """
    path = write_run(folder)
    generator = np.random.default_rng(3)
    for name, count in COUNTS.items():
        lengths = generator.integers(8, 60, count).tolist()
        documents = [generator.integers(4, VOCABULARY, n) for n in lengths]
        weights = [np.arange(n) >= n // 2 for n in lengths]
        write_store(folder / name, documents, VOCABULARY, weights)
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"] = {n: {"store": str(folder / n)} for n in COUNTS}
    pre = config["stages"]["short"]
    calls = {
        **{key: pre[key] for key in ("rope", "learning_rate")},
        "init_from": "pre",
        "context": 128,
        "epochs": 1,
        "update_instances": 32,
        "pack": {"policy": "best_fit", "long_docs": "drop", "held_out_instances": 10},
    }
    config["stages"] = {"pre": pre, "calls": calls}
    for name, changes in stages.items():
        config["stages"][name] = {**calls, "init_from": "calls", **changes}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def files(prefix: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in prefix.parent.iterdir()}


def test_a_refused_plan_leaves_what_is_held_out(tmp_path: Path) -> None:
    path = write_talks(tmp_path)
    workflow.pack(load_run(path), "calls")
    held_out = tmp_path / "out" / "held_out" / "calls"
    before = files(held_out)
    assert {"calls.bin", "calls.idx", "calls.weights"} <= set(before)
    more = load_run(path, ["stages.calls.pack.held_out_instances=12"])
    with pytest.raises(DataError, match="overwriting"):
        workflow.pack(more, "calls")
    assert files(held_out) == before
    workflow.open_plan(load_run(path), "calls")
    workflow.pack(more, "calls", overwrite=True)
    assert set(files(held_out)) == set(before) and files(held_out) != before
    workflow.open_plan(more, "calls")


def test_a_first_plan_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    path = write_talks(tmp_path)
    cut = ["stages.calls.context=16", "stages.calls.pack.long_docs=split"]
    with pytest.raises(DataError, match="would be cut"):
        workflow.pack(load_run(path, cut), "calls")
    held_out = tmp_path / "out" / "held_out"
    assert not held_out.is_dir() or not [*held_out.iterdir()]
