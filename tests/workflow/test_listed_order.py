"""Stages are trained, measured, exported and queued in the order of their chain, wherever
a file lists them; what was made by a file in order stays whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.hf.convert import import_hf
from tests.distributed import run_distributed
from tests.hf_models import make_model
from tests.small_run import VOCABULARY, write_run
from tests.workflow.scenarios import SMALL, Run

MEASURED = ("evaluation.measure=[positions]",)


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    root, seen = Path(folder), {}
    run = Run(root / "reversed" / "run.yaml", root / "copy")
    seen["run"] = run.run(*MEASURED)
    seen["started"] = run.started
    config = run.config(*MEASURED)
    seen["lines"] = [line.name for line in workflow.standard_lines(config)]
    page = [*SMALL, f"output={run.output}", *MEASURED]
    said = workflow.page_verdicts(root / "reversed" / "run.yaml", page)
    seen["claims"] = [verdict.claim for verdict in said]
    seen["page"] = [str(verdict) for verdict in said]
    report = (run.output / "report/report.md").read_text().splitlines()
    seen["report"] = [
        line[2:]
        for line in report
        if line.startswith(("- yes: ", "- NO: ", "- undecided: "))
    ]
    seen["for comparison"] = [line for line in report if "For comparison" in line]
    seen["exported"] = [
        file.parent.name for file in run.output.glob("hf/*/config.json")
    ]
    before = run.files()
    run.path = root / "run.yaml"
    seen["run in order"] = run.run(*MEASURED)
    seen["started in order"] = run.started
    seen["changed"] = [
        name for name, what in run.files().items() if before[name] != what
    ]
    # The directory alone, whose manifests have the stages by name.
    there = workflow.page_verdicts(run.output, [])
    seen["claims of the directory"] = [verdict.claim for verdict in there]
    newest = checkpoint.latest(run.output / "stages/long/checkpoints")
    assert newest is not None
    seen["parent"] = checkpoint.read_manifest(newest).extra["started_from"]["stage"]
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two files: `run.yaml`, and one in `reversed` with the last stage first."""
    folder = tmp_path_factory.mktemp("listed")
    path = write_run(folder)
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
    }
    make_model("llama", **sizes).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "base")
    document = yaml.safe_load(path.read_text())
    document["stages"]["short"]["init_from"] = str(folder / "base")
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    document["stages"] = {name: document["stages"][name] for name in ("long", "short")}
    reversed_path = folder / "reversed" / "run.yaml"
    reversed_path.parent.mkdir()
    reversed_path.write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return dict(run_distributed(scenarios, 1, str(folder), timeout=600)[0])


def test_a_chain_is_trained_and_measured_from_its_base_on(seen: dict[str, Any]) -> None:
    assert seen["run"] == ""
    assert seen["started"] == ["train --stage short", "train --stage long", "evaluate"]
    assert seen["parent"] == "short"
    assert seen["lines"] == ["base", "base, given 256 tokens", "short", "long"]
    assert seen["exported"] == ["long"]
    trained = [claim for claim in seen["claims"] if "trained to its end" in claim]
    assert trained == [f"{name} is trained to its end" for name in ("short", "long")]
    assert any("long is clearly better than base" in c for c in seen["claims"])


def test_the_report_as_text_has_the_verdicts_of_the_page(seen: dict[str, Any]) -> None:
    """Those of every stage, none against the base that was given more than its own."""
    assert seen["report"] == seen["page"] and seen["page"]
    for stage in ("short", "long"):
        loses = f"{stage} loses at most 2% to base at positions"
        assert any(loses in claim for claim in seen["claims"])
    assert not any("given" in claim for claim in seen["claims"])
    assert all(
        "long against base, given 256" in line for line in seen["for comparison"]
    )
    assert len(seen["for comparison"]) == 2


def test_a_file_in_order_goes_on_with_what_one_out_of_order_made(
    seen: dict[str, Any],
) -> None:
    assert (seen["run in order"], seen["started in order"]) == ("", [])
    assert seen["changed"] == []
    assert seen["claims of the directory"] == seen["claims"]


@pytest.mark.parametrize(
    "asked", [(), ("long", "short"), ("long", "short", "long")], ids=" ".join
)
def test_jobs_are_in_the_order_of_the_chain(
    folder: Path, tmp_path: Path, asked: tuple[str, ...]
) -> None:
    """Each waits for the one before, however stages are listed or asked for."""
    settings = [f"output={tmp_path}", "launch.scheduler=slurm"]
    made = workflow.launch(folder / "reversed" / "run.yaml", settings, stages=asked)
    names = [job.name for job, _ in made.files if job.step == "train"]
    assert names == ["01-short", "02-long"]


def test_the_order_of_a_file_decides_nothing_of_what_a_run_is(folder: Path) -> None:
    one, other = (load_run(folder / name) for name in ("run.yaml", "reversed/run.yaml"))
    assert one == other
    assert list(one.stages) == list(other.stages) == ["short", "long"]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ({"c": "b", "b": "a", "a": "random"}, "a b c"),
        ({"b": "a", "c": "b", "a": "random"}, "a b c"),
        # Branches, and chains beside each other, keep their places otherwise.
        ({"a": "random", "c": "a", "b": "a"}, "a c b"),
        ({"c": "a", "x": "random", "b": "a", "a": "random"}, "a c x b"),
        ({"x": "random", "a": "random", "y": "x"}, "x a y"),
    ],
)
def test_each_stage_comes_after_what_it_starts_from(
    folder: Path, listed: dict[str, str], expected: str
) -> None:
    document = yaml.safe_load((folder / "run.yaml").read_text())
    stage = document["stages"]["short"]
    document["stages"] = {
        name: {**stage, "init_from": origin} for name, origin in listed.items()
    }
    path = folder / f"{expected}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert " ".join(load_run(path).stages) == expected
