"""Every remedy that a stage without room is given, taken as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from alia_ctx.config.load import load_plan, load_run
from alia_ctx.errors import ConfigError
from alia_ctx.workflow.planned import planned_stage, room_on_a_gpu
from alia_ctx.workflow.planning import PlanQuestion, plan_stages
from tests.config.test_room import LONG
from tests.planner.test_planner import shown
from tests.small_run import write_run

# Heads and layers that are odd on seven ranks, and one row an update.
ODD = [
    *("model.num_attention_heads=3", "model.num_key_value_heads=3"),
    *("model.num_hidden_layers=3", "model.hidden_size=384"),
    *("model.head_dim=128", "model.intermediate_size=1024"),
    *("stages.long.context=1000", "stages.long.update_tokens=1000"),
    "cluster.ranks_per_node=7",
]
# One head of keys, one layer and rows of odd parts, which no GPUs can share.
WHOLE = [
    *("model.num_hidden_layers=1", "model.num_key_value_heads=1"),
    *("stages.long.context=131073", "stages.long.update_tokens=131073"),
    *("stages.long.tokens=131073000", "cluster.ranks_per_node=1"),
    "cluster.memory_gib=12",
]


def remedies(words: str) -> list[list[str]]:
    """The settings of each way out, as a shell takes them."""
    found = re.findall(r"\bset ((?:'[^']*'|[^()';]+)+?)(?: \(tp=|\))", words)
    return [shlex.split(settings) for settings in found]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ([*ODD, "stages.long.tokens=2000"], ["update_tokens=7000", "tokens=7000"]),
        ([*ODD, "stages.long.tokens=100000"], ["update_tokens=7000"]),
        # 14 updates are below a warm-up of 40, and 100 are not.
        (
            [*ODD, "stages.long.tokens=100000", "stages.long.schedule.warmup=40"],
            ["update_tokens=7000", "tokens=700000"],
        ),
        (
            [*ODD, "stages.long.tokens=2000", "stages.long.schedule.warmup=1"],
            ["update_tokens=7000", "tokens=14000"],
        ),
        ([], ["engine.offload_activations=true"]),
        (["stages.long.recompute=none"], ["recompute=full", "engine."]),
        (["cluster.memory_gib=70"], ["cluster.nodes=2"]),
        (["cluster.memory_gib=70", "stages.long.nodes=1"], ["stages.long.nodes=2"]),
        (
            ["cluster.memory_gib=70", "stages.long.recompute=none"],
            ["cluster.nodes=2", "recompute=full"],
        ),
        (WHOLE, ["context="]),
        ([*WHOLE, "stages.long.recompute=none"], ["context="]),
    ],
)
def test_what_an_open_layout_is_told_passes(
    more: list[str], named: list[str], tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_run(path, [*LONG, *more], stages=["long"])
    ways = remedies(str(caught.value))
    assert ways and all(any(name in item for item in ways[0]) for name in named)
    for settings in ways:
        run = load_run(path, [*LONG, *more, *settings], stages=["long"])
        plan = planned_stage(run, "long")
        assert (plan.fits or plan.may_fit) and not plan.idle_ranks


@pytest.mark.parametrize(
    "more",
    [
        ["stages.long.layout={tp: 1}"],
        ["stages.long.layout={tp: 2}", "cluster.host_memory_gib=110"],
        ["stages.long.layout={tp: 1}", "stages.long.recompute=full"],
        ["stages.long.layout={tp: 1}", "stages.long.nodes=1", "cluster.memory_gib=70"],
        [*WHOLE, "stages.long.layout={tp: 1}", "stages.long.recompute=none"],
    ],
)
def test_what_a_layout_of_ones_own_is_told_passes(
    more: list[str], tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    run = load_run(path, [*LONG, *more], stages=["long"])
    _, (words,) = room_on_a_gpu(run, "long", run.cluster.memory_gib)
    ways = remedies(words)
    assert ways
    for settings in ways:
        run = load_run(path, [*LONG, *more, *settings], stages=["long"])
        plan = planned_stage(run, "long")
        assert plan.fits or plan.may_fit


@pytest.mark.parametrize("gpus", [1, 3])
def test_what_a_plan_of_other_gpus_tells_passes(gpus: int, tmp_path: Path) -> None:
    """Parts of a node, which no number of nodes gives."""
    path = write_run(tmp_path)
    base = [*LONG, "cluster.ranks_per_node=8", "cluster.memory_gib=30"]
    run, opened = load_plan(path, base)
    asked = PlanQuestion(("long",), gpus, open_layouts=opened)
    said = " ".join(map(shown, plan_stages(run, asked)))
    line = " ".join(said.split()).partition("has no room: ")[2]
    ways = remedies(line.partition("; `alia-ctx plan`")[0])
    assert ways
    for settings in ways:
        taken = load_run(path, [*base, *settings], stages=["long"])
        plan = planned_stage(taken, "long")
        assert plan.fits or plan.may_fit
