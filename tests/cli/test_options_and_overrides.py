"""What stands on one command line: no option drops an override, and what contradicts each
other is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.spec.machines import MACHINES
from tests.paths import ROOT
from tests.small_run import write_run

ALIA = str(ROOT / "configs" / "alia-40b.yaml")
ON = (ALIA, "--stage", "32k", "--on", "h100-80")


def call(command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def planned(*arguments: str | Path) -> dict[str, Any]:
    done = call("plan", *arguments, "--json")
    assert done.exit_code == 0, done.output + str(done.exception)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def refusal(command: str, *arguments: str | Path) -> str:
    done = call(command, *arguments)
    assert done.exit_code or done.exception
    return done.output + str(done.exception)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_gib", 30),
        ("efficiency", 0.2),
        ("nodes", 3),
        ("ranks_per_node", 4),
        ("node_gb_per_s", 7),
        ("memory_gb_per_s", 1000),
    ],
)
def test_an_override_of_the_cluster_is_laid_over_a_named_machine(
    key: str, value: float
) -> None:
    plain = planned(*ON, "--gpus", "24") if key == "nodes" else planned(*ON)
    said = planned(*ON, f"cluster.{key}={value}")
    assert said["cluster"][key] == value != plain["cluster"][key] or key == "nodes"
    others = {k: v for k, v in said["cluster"].items() if k != key}
    assert others.items() <= plain["cluster"].items()
    assert f"of the command line {key}={value} holds" in said["notes"][0]


def test_what_did_not_fit_does_not_fit_on_a_named_machine() -> None:
    roomy = planned(*ON)["stages"]["32k"]["plan"]
    for less in ("cluster.memory_gib=30", "cluster.overhead_gib=60"):
        plan = planned(*ON, less)["stages"]["32k"]["plan"]
        assert roomy["fits"] and not plan["fits"]


def test_what_a_named_machine_replaces_is_said(tmp_path: Path) -> None:
    document = yaml.safe_load(write_run(tmp_path).read_text())
    cluster = {"nodes": 2, "memory_gib": 20, "efficiency": 0.3}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(document | {"cluster": cluster}, sort_keys=False))
    asked = (path, "--stage", "long", "--on", "a100-80")
    said = planned(*asked)
    [note] = said["notes"]
    assert note == (
        "--on a100-80 is taken in place of the file's cluster, which has memory_gib=20, "
        "efficiency=0.3; nodes=2 stays"
    )
    shown = call("plan", *asked)
    assert note in " ".join(shown.output.split())
    machine = MACHINES["a100-80"]
    assert said["cluster"]["efficiency"] == machine.efficiency
    assert (said["cluster"]["nodes"], said["cluster"]["ranks_per_node"]) == (2, 8)
    [note] = planned(*asked, "--gpus", "8")["notes"]
    assert "stays" not in note, "one node is asked about"
    assert planned(*asked[:3])["notes"] == []
    path.write_text(yaml.safe_dump(document | {"cluster": {"memory_gib": 79.0}}))
    assert planned(*asked)["notes"] == [], "it is that machine's"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["cluster.nodes=2"], "cluster.nodes=2"),
        (["stages.32k.nodes=3"], "stages.32k.nodes=3"),
        (["stage_defaults.nodes=3"], "stages.32k.nodes=3"),
        (["cluster.nodes=16", "cluster.ranks_per_node=8"], "nodes have 8 GPUs"),
    ],
)
def test_gpus_against_nodes_of_the_same_command_line(
    given: list[str], said: str
) -> None:
    words = refusal("plan", ALIA, "--stage", "32k", "--gpus", "64", *given)
    assert "--gpus=64" in words and said in words and "give one of them" in words


def test_gpus_beside_overrides_that_agree() -> None:
    """The file's own 64 nodes are what the option stands in place of."""
    for given in ([], ["cluster.nodes=16"], ["cluster.ranks_per_node=2"]):
        said = planned(ALIA, "--stage", "32k", "--gpus", "64", *given)
        assert said["stages"]["32k"]["plan"]["gpus"] == 64


def test_a_search_keeps_to_what_the_command_line_gives() -> None:
    asked = (ALIA, "--stage", "32k", "--gpus", "64", "--search")

    def modes(*given: str) -> tuple[set[str], set[bool], list[str]]:
        said = planned(*asked, *given)
        choices = said["stages"]["32k"]["layouts"]
        kinds = {c["recompute"] for c in choices}, {c["offload"] for c in choices}
        return (*kinds, said["notes"])

    assert modes()[1:] == ({False, True}, [])
    assert len(modes()[0]) > 1
    assert modes("stages.32k.recompute=full")[0] == {"full"}
    assert modes("stage_defaults.recompute=full")[0] == {"full"}
    for offload in (True, False):
        given = f"engine.offload_activations={str(offload).lower()}"
        assert modes(given)[1] == {offload}
    *_, [note] = modes("stages.32k.layout.tp=2")
    assert "not only stages.32k.layout={'tp': 2}" in note


def test_an_open_layout_is_planned_with_the_recomputation_that_its_stage_states(
    tmp_path: Path,
) -> None:
    """As `layout: auto` takes it where the stage is trained."""
    path = write_run(tmp_path)
    for mode in ("full", "none"):
        asked = ["stages.long.layout=auto", f"stages.long.recompute={mode}"]
        document = yaml.safe_load(path.read_text())
        document["stages"]["long"] |= {"layout": "auto", "recompute": mode}
        own = tmp_path / f"{mode}.yaml"
        own.write_text(yaml.safe_dump(document))
        for said in (
            planned(path, "--stage", "long", *asked),
            planned(own, "--stage", "long"),
        ):
            stage = said["stages"]["long"]
            assert stage["plan"]["recompute"] == mode
            assert {c["recompute"] for c in stage["layouts"]} == {mode}
            assert {c["plan"]["recompute"] for c in stage["counts"]} == {mode}
        assert load_run(own).stage("long").recompute == mode


@pytest.mark.parametrize(
    ("option", "override"),
    [
        (["--documents", "3"], "evaluation.documents=4"),
        (["--precision", "bf16"], "engine.precision=fp32"),
        (["--samples", "3"], "evaluation.retrieval.samples=4"),
        (["--haystack", "noise"], "evaluation.retrieval.haystack=text"),
        (["--language", "en"], "evaluation.retrieval.languages=[es]"),
        (["--task", "vt"], "evaluation.retrieval.tasks=[cwe]"),
    ],
)
def test_options_of_evaluate_against_overrides(
    tmp_path: Path, option: list[str], override: str
) -> None:
    words = refusal("evaluate", write_run(tmp_path), *option, override)
    assert option[0] in words and override.split("=")[0] in words
    assert "give one of them" in words


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize(
    "command, option",
    [
        (["verify", "a", "b"], "--tolerance"),
        (["evaluate-calls", "a"], "--temperature"),
        (["make-tool-data", "a", "b"], "--held-out-share"),
        (["doctor"], "--wait"),
        (["watch", "a"], "--every"),
        (["convert-chat", "a", "b"], "--max-tokens"),
        (["convert-chat", "a", "b"], "-n"),
    ],
)
def test_a_number_that_means_nothing_is_refused(
    command: list[str], option: str, value: str
) -> None:
    done = call(command[0], *command[1:], option, value)
    assert done.exit_code == 2, done.output
    assert f"Invalid value for '{option}'" in done.output
