"""The page of a run lists the exports of the checkpoints that are there, and names others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.hf.convert import export_hf
from alia_ctx.workflow.run_facts import run_facts
from tests.workflow.scenarios import Run

RATE = "stages.long.learning_rate=0.0005"


def listed(run: Run, *overrides: str) -> tuple[list[str], list[str], list[str]]:
    """Exports that the page lists, what it says of others, and what `report` ends with."""
    config = run.config(*overrides)
    facts = run_facts(config, run.output, "CONFIG")
    said = [line for line in facts.problems if line.startswith("the export ")]
    stale = workflow.stale_results([run.path], run._all(overrides))
    names = [str(Path(name).relative_to(run.output)) for name in facts.exports]
    return names, said, [line for line in stale if line.startswith("the export ")]


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")
    first = Run(path, Path(folder, "first"))
    seen: dict[str, Any] = {"ran": first.run(), "first": listed(first)}

    anew = Run(path, Path(folder, "anew"), like=first)
    shutil.rmtree(anew.output / "stages/long")
    seen["gone"] = listed(anew, RATE)
    seen["trained"] = anew.train("long", RATE)
    seen["anew"] = listed(anew, RATE)
    by_hand = Run(path, Path(folder, "anew by hand"), like=anew)
    newest = sorted((by_hand.output / "stages/long/checkpoints").glob("update-*"))[-1]
    export_hf(
        newest,
        by_hand.output / "hf/long",
        overwrite=True,
        tokenizer_dir=Path(folder, "tokenizer"),
    )
    seen["anew by hand"] = listed(by_hand, RATE)
    seen["run again"] = anew.run(RATE)
    seen["right again"] = listed(anew, RATE)

    hands = Run(path, Path(folder, "hands"), like=first)
    tokenizer = Path(folder, "tokenizer")
    short = hands.output / "stages/short/checkpoints/update-00000004"
    export_hf(short, hands.output / "hf/by-hand", tokenizer_dir=tokenizer)
    (hands.output / "hf/other").mkdir()
    (hands.output / "hf/other/config.json").write_text("{}")
    seen["by hand"] = listed(hands)
    manifest = short / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document))  # the same in other bytes: another save
    seen["saved again"] = listed(hands)
    weights = hands.output / "hf/long/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (hands.output / "hf/long.made_from.json").write_text("[]")
    seen["broken"] = listed(hands)
    return seen


def test_what_a_run_exported_is_listed(seen: dict[str, Any]) -> None:
    assert seen["ran"] == ""
    assert seen["first"] == (["hf/long/config.json"], [], [])


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("gone", "there is no checkpoint of long here"),
        ("anew", "ledger.long.learning_rate: 0.003 there, 0.0005 now"),
        ("broken", "hf/long is not shown"),
    ],
)
def test_the_export_of_another_checkpoint_is_not(
    state: str, why: str, seen: dict[str, Any]
) -> None:
    names, said, stale = seen[state]
    assert "hf/long/config.json" not in names
    assert len(stale) == 1 and stale[0] in said and why in stale[0]
    assert "`alia-ctx run CONFIG` makes it anew" in stale[0]


def test_it_is_listed_again_when_it_was_made_anew(seen: dict[str, Any]) -> None:
    assert seen["trained"] == seen["run again"] == ""
    for state in ("right again", "anew by hand"):
        assert seen[state] == (["hf/long/config.json"], [], [])


def test_one_that_was_put_there_is_known_by_its_own_statement(
    seen: dict[str, Any],
) -> None:
    names, said, stale = seen["by hand"]
    assert names == ["hf/by-hand/config.json", "hf/long/config.json"]
    assert len(said) == 1 and "hf/other is not shown" in said[0] and not stale
    names, said, stale = seen["saved again"]
    assert names == ["hf/long/config.json"] and len(said) == 2 and not stale
