"""The recipe of SmolLM2, started on machines of one kind and another."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from alia_ctx.errors import DataError
from scripts.smollm2.sizes import CONFIG
from scripts.smollm2.starting import (
    choose_ranks,
    choose_recompute,
    require_same_sizes,
)
from tests.paths import ROOT
from tests.scripts.test_smollm2 import _model


@pytest.mark.parametrize(
    "devices, ranks", [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8)]
)
def test_as_many_gpus_are_taken_as_share_the_rows(devices: int, ranks: int) -> None:
    assert choose_ranks(None, devices) == ranks


def test_ranks_that_cannot_share_rows_are_refused_first() -> None:
    with pytest.raises(DataError, match=r"--ranks 3 .*1, 2, 4, 8, 16 do"):
        choose_ranks(3, 8)


@pytest.mark.parametrize(
    "memory_gib, ranks, chosen",
    [
        (141, 1, {}),
        (79, 2, {}),
        # A row of 163,840 tokens ran out of one H100's 79 GiB without recomputation.
        (79, 1, {"160k": "selective"}),
        (40, 1, {"160k": "full"}),
    ],
)
def test_what_has_no_room_on_a_gpu_is_computed_again(
    tmp_path: Path, memory_gib: float, ranks: int, chosen: dict[str, str]
) -> None:
    settings = _of_the_whole_model(tmp_path, ranks)
    assert choose_recompute(CONFIG, settings, memory_gib) == [
        f"stages.{stage}.recompute={recompute}" for stage, recompute in chosen.items()
    ]


def test_a_gpu_without_room_for_any_recomputation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stage 160k needs .* take more GPUs"):
        choose_recompute(CONFIG, _of_the_whole_model(tmp_path, 1), 12)


def _of_the_whole_model(root: Path, ranks: int) -> list[str]:
    """Settings of the run on `ranks` GPUs, with SmolLM2-135M's published sizes."""
    return [
        *(f"root={root}", *_model(), f"cluster.ranks_per_node={ranks}"),
        *("stages.32k.layout.cp=1", f"stages.160k.layout.cp={ranks}"),
    ]


def test_text_of_another_size_is_not_taken(tmp_path: Path) -> None:
    require_same_sizes(tmp_path, {"characters": 3})
    (tmp_path / "text").mkdir()
    require_same_sizes(tmp_path, {"characters": 3})
    with pytest.raises(DataError, match="name another --output"):
        require_same_sizes(tmp_path, {"characters": 110})
    # Of a release that stated less: the rest was that of the whole.
    old = {"characters": 3, "native": 8192, "manuals": None}
    require_same_sizes(tmp_path, old)
    with pytest.raises(DataError, match="name another --output"):
        require_same_sizes(tmp_path, {**old, "native": 128})
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(DataError, match="not stated"):
        require_same_sizes(tmp_path, {"characters": 3})
    (tmp_path / "sizes.json").write_text("{")
    with pytest.raises(DataError, match=r"sizes\.json: is damaged .*--output"):
        require_same_sizes(tmp_path, {"characters": 3})


@pytest.mark.parametrize("given, offline", [(None, "0"), ("1", "1"), ("0", "0")])
def test_make_asks_the_hub_unless_that_is_forbidden(
    given: str | None, offline: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho offline=$HF_HUB_OFFLINE $*\n")
    python.chmod(0o755)
    environment = {n: v for n, v in os.environ.items() if n != "HF_HUB_OFFLINE"}
    if given is not None:
        environment["HF_HUB_OFFLINE"] = given
    made = subprocess.run(
        ["make", "-s", "-o", "setup", "smollm2", f"BIN={tmp_path}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == f"offline={offline} -m scripts.smollm2\n"
