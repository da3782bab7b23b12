"""What an export says of its data is what its chain of stages was trained on: of each stage
the sources, what of them, and their licences; whatever else a configuration lists.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alia_ctx import checkpoint, workflow
from alia_ctx.checkpoint.manifest import read_manifest
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.hf.convert import export_hf
from tests.distributed import run_distributed
from tests.small_run import VOCABULARY, write_run
from tests.workflow.scenarios import message

# Each source has token ids of its own, by which what a row holds of it is counted.
IDS = {"text": (4, 60), "mine": (60, 110), "unused": (110, 150), "other": (150, 190)}
COUNT = {"text": 30, "mine": 20, "unused": 25, "other": 15}  # documents


def write_runs(folder: Path) -> None:
    """`run.yaml`: stage `base` of text, then `fc2` of conversations; and
    another run: stage `base` of another source, from the last checkpoint of the first.
    """
    path = write_run(folder)
    config = yaml.safe_load(path.read_text())
    draw = np.random.default_rng(2)
    for name, (low, high) in IDS.items():
        lengths = draw.integers(10, 60, COUNT[name])
        documents = [draw.integers(low, high, n) for n in lengths]
        half = [np.arange(n) * 2 // n for n in lengths]
        write_store(
            folder / name, documents, VOCABULARY, half if name == "mine" else None
        )
    terms = {
        "text": {"licence": "cc0-1.0"},
        "mine": {"licence": "cc-by-4.0", "dataset": "somebody/mine"},
        "unused": {"licence": "proprietary", "dataset": "somebody/unused"},
        "other": {},
    }
    sources = {n: {"store": str(folder / n), **t} for n, t in terms.items()}
    config["evaluation"] = {"every_updates": 0}
    config["checkpoint"] = {"every_updates": 1, "keep_last": 20}
    base = {**config["stages"]["short"], "tokens": 64 * 8 * 5}
    base["pack"] = {"policy": "best_fit", "long_docs": "split", "sources": ["text"]}
    fc = {
        **{"init_from": "base", "context": 64, "rope": base["rope"]},
        **{"epochs": 2, "update_instances": 8, "learning_rate": 0.001},
        "pack": {"policy": "best_fit", "long_docs": "drop", "sources": ["mine"]},
    }
    config["stages"] = {"base": base, "fc2": fc}
    config["data"]["sources"] = {n: sources[n] for n in ("unused", "text", "mine")}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    config["output"], config["name"] = str(folder / "out2"), "more"
    base["pack"]["sources"] = ["other"]
    config["data"]["sources"] = {n: sources[n] for n in ("other", "unused")}
    base["init_from"] = str(folder / "origin")
    config["stages"] = {"base": base}
    (folder / "more.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def last(folder: Path, output: str, stage: str) -> Path:
    return checkpoint.list_checkpoints(
        folder / output / "stages" / stage / "checkpoints"
    )[-1]


def as_before(path: Path) -> None:
    """The checkpoint as an earlier release wrote it, which did not state its sources."""
    manifest = read_manifest(path)
    extra = {name: said for name, said in manifest.extra.items() if name != "sources"}
    assert len(extra) < len(manifest.extra)
    before = dataclasses.replace(manifest, extra=extra)
    (path / "manifest.json").write_text(json.dumps(before.to_json()))


def counts(path: Path, name: str, file: Path) -> list[int]:
    """Tokens of the source in the rows of the checkpoint's last stage, by their ids."""
    run = load_run(path)
    manifest = read_manifest(file)
    plan = workflow.open_plan(run, manifest.stage)
    low, high = IDS[name]
    rows = [plan.row(n) for n in range(manifest.ledger[-1].rows)]
    tokens = [row.tokens(0, row.real_tokens) for row in rows]
    return [
        sum(int(((t >= low) & (t < high)).sum()) for t in tokens),
        sum(int((row.piece_starts == 0).sum()) for row in rows),
    ]


def card(folder: Path, file: Path, name: str) -> str:
    export_hf(file, folder / name)
    return (folder / name / "README.md").read_text()


def scenarios(rank: int, folder_name: str) -> dict[str, Any]:
    folder = Path(folder_name)
    path, more, seen = folder / "run.yaml", folder / "more.yaml", {}

    def train(file: Path, stage: str, **options: Any) -> str:
        run = load_run(file)
        if not (Path(run.output) / "plans" / stage).is_dir():
            workflow.pack(run, stage)
        return message(lambda: workflow.train(run, stage, **options))

    seen["stopped"] = train(path, "base", exit_before=0.0)
    early = last(folder, "out", "base")
    seen["early"] = card(folder, early, "early"), counts(path, "text", early)
    as_before(early)  # a stage that an earlier release began
    seen["trained"] = [train(path, "base"), train(path, "fc2")]
    base, fc = last(folder, "out", "base"), last(folder, "out", "fc2")
    seen["base"] = card(folder, base, "base"), counts(path, "text", base)
    seen["fc"] = card(folder, fc, "fc"), counts(path, "mine", fc)
    (folder / "origin").symlink_to(fc)
    seen["trained"].append(train(more, "base"))
    other = last(folder, "out2", "base")
    seen["more"] = card(folder, other, "more"), counts(more, "other", other)
    seen["tokens"] = [entry.tokens for entry in read_manifest(other).ledger]

    as_before(fc)
    seen["fc of before"] = card(folder, fc, "before")
    (folder / "out2").rename(folder / "aside")
    seen["trained"].append(train(more, "base"))
    seen["after it"] = card(folder, last(folder, "out2", "base"), "after")
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sources")
    write_runs(folder)
    return run_distributed(scenarios, 1, str(folder), timeout=400)[0]


def data_rows(text: str) -> list[str]:
    section = text.split("## Training data\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def facts(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


MINE = "mine ([somebody/mine](https://huggingface.co/datasets/somebody/mine))"


def row(stage: str, source: str, licence: str, counted: list[int], unit: str) -> str:
    tokens, documents = counted
    return f"| {stage} | {source} | {licence} | {tokens:,} | {documents:,} {unit} |"


def test_of_a_stage_its_own_sources_alone(seen: dict[str, Any]) -> None:
    """While it trains, and resumed from a checkpoint that did not state them."""
    assert seen["stopped"].startswith("RequeueError")
    assert seen["trained"] == [""] * 4
    for name in ("early", "base"):
        text, counted = seen[name]
        assert data_rows(text) == [row("base", "text", "cc0-1.0", counted, "documents")]
        assert "| training data | text |" in text
        assert "unused" not in text and "mine" not in text
        assert "datasets" not in facts(text)
    assert seen["early"][1][0] < seen["base"][1][0] == seen["tokens"][0]


def test_of_the_stages_before_too(seen: dict[str, Any]) -> None:
    text, counted = seen["fc"]
    before = row("base", "text", "cc0-1.0", seen["base"][1], "documents")
    conversations = row("fc2", MINE, "cc-by-4.0", counted, "conversations")
    assert data_rows(text) == [before, conversations]
    assert counted == [seen["tokens"][1], 2 * COUNT["mine"]]  # two epochs
    assert "| training data | text, mine |" in text and "unused" not in text
    assert facts(text)["datasets"] == ["somebody/mine"]
    assert "license" not in facts(text)  # which is the model's


def test_of_the_run_that_it_started_from_too(seen: dict[str, Any]) -> None:
    """Whose configuration the export does not know."""
    text, counted = seen["more"]
    there = data_rows(seen["fc"][0])
    assert data_rows(text) == [
        *there,
        row("base", "other", "not stated", counted, "documents"),
    ]
    assert counted[0] == seen["tokens"][2]
    assert "| training data | text, mine, other |" in text
    assert facts(text)["datasets"] == ["somebody/mine"]


def test_an_earlier_release_states_less(seen: dict[str, Any]) -> None:
    """Of its last stage the plan names the sources; of the others nothing does."""
    expected = [
        f"| base | not stated | not stated | {seen['tokens'][0]:,} | |",
        f"| fc2 | {MINE} | cc-by-4.0 | not stated | not stated |",
    ]
    assert data_rows(seen["fc of before"]) == expected
    assert "unused" not in seen["fc of before"]
    assert (
        "| training data | mine; of other stages not stated |" in seen["fc of before"]
    )
    # and a stage that starts from it takes that along
    assert data_rows(seen["after it"])[:2] == expected
    assert len(data_rows(seen["after it"])) == 3
