"""`check` shows the RoPE of each stage, and says where one is of another kind than before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from tests.small_run import LLAMA3, write_run

YARN = {
    "type": "yarn",
    "theta": 10000,
    "factor": 8,
    "original_max_position_embeddings": 64,
}


def checked(folder: Path, short: Any, long: Any, *arguments: str) -> str:
    """What `check` says; `short` is the RoPE of stage_defaults, `long` that of a stage."""
    path = write_run(folder)
    document = yaml.safe_load(path.read_text())
    document["stages"]["short"].pop("rope")
    document["stages"]["long"].pop("rope")
    if long is not None:
        document["stages"]["long"]["rope"] = long
    document["stage_defaults"] = {"rope": short}
    path.write_text(yaml.safe_dump(document))
    found = CliRunner().invoke(app, ["check", str(path), *arguments])
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


def test_each_stage_shows_its_rope_and_its_reach(tmp_path: Path) -> None:
    said = checked(tmp_path, YARN, None)
    for stage in ("short", "long"):
        words = f"{stage}: RoPE yarn, theta 10,000, factor 8 of 64: reaches 512 tokens"
        assert words in said
    assert "another kind" not in said


def test_as_json_it_has_the_numbers(tmp_path: Path) -> None:
    said = checked(tmp_path, YARN, LLAMA3, "--json")
    stages = json.loads(said[said.index("{") :])["stages"]
    assert {k: v for k, v in stages["short"]["rope"].items() if k != "words"} == YARN
    assert {k: v for k, v in stages["long"]["rope"].items() if k != "words"} == LLAMA3


@pytest.mark.parametrize(
    ("short", "long", "changed"),
    [
        (YARN, LLAMA3, "type yarn in short, llama3 here"),
        (YARN, {**YARN, "theta": 50000}, "theta 10000.0 in short, 50000.0 here"),
        (
            YARN,
            {"original_max_position_embeddings": 128},
            "original_max_position_embeddings 64 in short, 128 here",
        ),
        (YARN, {**YARN, "factor": 16}, None),
        ({"type": "default", "theta": 10000}, LLAMA3, None),
    ],
)
def test_another_kind_than_before_is_a_note(
    tmp_path: Path, short: Any, long: Any, changed: str | None
) -> None:
    said = checked(tmp_path, short, long)
    if changed is None:
        assert "another kind" not in said
    else:
        assert f"note: stages.long.rope: is of another kind {changed}" in said.replace(
            "than that of the stage before it (", ""
        )
