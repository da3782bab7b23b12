"""What gives a stage room that no layout has room for: the remedies, followed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.config.load import load_plan, load_run
from alia_ctx.errors import ConfigError
from alia_ctx.planner import StagePlan, suggest_layouts
from alia_ctx.spec.layout import Layout
from alia_ctx.workflow import jobs
from alia_ctx.workflow.planned import planned_stage, room_on_a_gpu
from alia_ctx.workflow.planning import (
    PlanQuestion,
    plan_document,
    plan_stages,
    simulated_update,
)
from tests.planner.test_planner import shown
from tests.small_run import write_run

# A model of 7 billion parameters at 163,840 tokens on two H100: 96.8 GiB without offloading.
SETTINGS = """
model.num_hidden_layers=32 model.hidden_size=4096 model.intermediate_size=11008
model.num_attention_heads=32 model.num_key_value_heads=32 model.head_dim=128
model.vocab_size=32000 stages.long.context=163840 stages.long.rope.factor=2560
stages.long.update_tokens=1474560 stages.long.tokens=737280000 stages.long.layout=auto
engine.device=cuda engine.precision=bf16 engine.loss_chunk_tokens=2048
cluster.memory_gib=79 cluster.ranks_per_node=2 cluster.host_memory_gib=2048
"""
LONG = SETTINGS.split()


def load(path: Path, *more: str) -> Any:
    return load_run(path, [*LONG, *more], stages=["long"])


def refused(path: Path, *more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, *more)
    return str(caught.value)


def settings_in(words: str) -> list[str]:
    found = re.search(r"; set ([^()]+) \(tp=", words)
    return found[1].split() if found else []


def planned(run: Any) -> StagePlan:
    return planned_stage(run, "long")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ([], ["engine.offload_activations=true"]),
        (
            ["cluster.memory_gib=77"],
            ["engine.offload_activations=true", "engine.mlp_chunk_tokens=16384"],
        ),
        # The MLP alone is enough, and the host has no room.
        (
            ["cluster.memory_gib=91.7", "cluster.host_memory_gib=110"],
            ["engine.mlp_chunk_tokens=16384"],
        ),
        (
            ["stages.long.recompute=selective"],
            ["stages.long.recompute=full", "engine.offload_activations=true"],
        ),
        # TransformerEngine's layers have no MLP in chunks.
        (["engine.layers=te"], ["engine.offload_activations=true"]),
    ],
)
def test_settings_come_before_more_gpus_and_give_room(
    more: list[str], named: list[str], tmp_path: Path
) -> None:
    path = write_run(tmp_path)
    said = refused(path, *more)
    assert settings_in(said) == named
    assert said.index("engine.") < said.index("or take ")
    run = load(path, *more, *named)
    plan = planned(run)
    assert plan.fits and plan.work.world_size == 2
    assert f"then takes {plan.fullest.total:.1f} of" in said


@pytest.mark.parametrize(
    "more",
    [
        ["cluster.host_memory_gib=110"],
        ["engine.layers=te", "cluster.memory_gib=70"],
        ["cluster.memory_gib=70"],
    ],
)
def test_what_does_not_give_room_is_not_named(more: list[str], tmp_path: Path) -> None:
    path = write_run(tmp_path)
    said = refused(path, *more)
    assert "; take 4 GPUs (set cluster.nodes=2);" in said and "engine." not in said
    assert planned(load(path, *more, "cluster.nodes=2")).fits


def test_nodes_are_named_where_they_are_said(tmp_path: Path) -> None:
    said = refused(write_run(tmp_path), "cluster.memory_gib=70", "stages.long.nodes=1")
    assert "take 4 GPUs (set stages.long.nodes=2)" in said


def test_ranks_without_rows_want_a_larger_update(tmp_path: Path) -> None:
    """Eight ranks of a model whose heads and layers are odd, one row an update."""
    odd = [
        *("model.num_attention_heads=3", "model.num_key_value_heads=3"),
        *("model.num_hidden_layers=3", "model.hidden_size=384"),
        *("model.head_dim=128", "model.intermediate_size=1024"),
        *("stages.long.context=1000", "stages.long.update_tokens=1000"),
        *("stages.long.tokens=100000", "cluster.ranks_per_node=7"),
    ]
    path = write_run(tmp_path)
    said = refused(path, *odd)
    assert "data-parallel ranks have no row" in said
    assert settings_in(said) == ["stages.long.update_tokens=7000"]
    assert planned(load(path, *odd, *settings_in(said))).idle_ranks == 0


def test_where_64_times_the_gpus_are_too_few_a_shorter_context_may_do(
    tmp_path: Path,
) -> None:
    """One head of keys, one layer and rows of odd parts: a row cannot be cut over GPUs."""
    path = write_run(tmp_path)
    whole = [
        *("model.num_hidden_layers=1", "model.num_key_value_heads=1"),
        *("stages.long.context=131073", "stages.long.update_tokens=131073"),
        *("stages.long.tokens=131073000", "cluster.ranks_per_node=1"),
    ]
    said = refused(path, *whole, "cluster.memory_gib=12")
    found = re.search(r"a context of ([\d,]+) has room on as many", said)
    assert found is not None and "take" not in said.partition("a context")[2]
    shorter = f"stages.long.context={found[1].replace(',', '')}"
    assert load(path, *whole, shorter, "cluster.memory_gib=12").stage("long")
    tight = refused(path, "cluster.memory_gib=5.01")  # less than one layer's state
    assert "neither 128 GPUs nor shorter rows are enough" in tight


def test_a_layout_of_ones_own_is_told_another_that_has_room(tmp_path: Path) -> None:
    """Data parallelism alone has none on two GPUs, with all that makes less of it."""
    path = write_run(tmp_path)
    run = load(path, "stages.long.layout={tp: 1}", "stages.long.recompute=full")
    words, (remedy,) = room_on_a_gpu(run, "long", 79.0)
    assert words.startswith("does not fit") and "not enough on this layout" in remedy
    found = re.search(r"set '(stages.long.layout=\{.*\})' (\S+) \(tp=2", remedy)
    assert found and found[2] == "engine.offload_activations=true"
    assert planned(load(path, "stages.long.recompute=full", *found.groups())).fits
    first = suggest_layouts(
        run.model, run.stage("long").rope, 163_840, 2, 10**9, 1_474_560,
        cluster=run.cluster, loss_chunk_tokens=2048, offload=True,
    )[0]  # fmt: skip
    assert first.fits and first.layout == Layout(2)


def test_a_host_without_the_memory_is_not_offered_it(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    own = ["stages.long.layout={tp: 2}", "stages.long.recompute=none"]
    _, (remedy,) = room_on_a_gpu(load(path, *own), "long", 79.0)
    assert "stages.long.recompute=full engine.offload_activations=true takes" in remedy
    poor = load(path, *own, "cluster.host_memory_gib=110")
    _, (remedy,) = room_on_a_gpu(poor, "long", 79.0)
    assert "engine." not in remedy
    found = re.search(r"take 4 GPUs \(set (.*)\)", remedy)
    assert found is not None
    auto = found[1].split()
    assert planned(load(path, *auto, "cluster.host_memory_gib=110")).fits


def test_the_plan_says_what_gives_room(tmp_path: Path) -> None:
    """Beside the stage, and as a row of the GPUs that lack it."""
    run, opened = load_plan(write_run(tmp_path), LONG)
    text = "\n".join(
        map(shown, plan_stages(run, PlanQuestion(("long",), 2, open_layouts=opened)))
    )
    words = " ".join(text.split())
    assert "long has no room: set engine.offload_activations=true (tp=2 cp=1" in words
    assert "fits with engine.offload_activations=true" in text
    assert "full + offload" in text
    own, _ = load_plan(tmp_path / "run.yaml", [*LONG, "stages.long.layout={tp: 2}"])
    words = " ".join(shown(t) for t in plan_stages(own, PlanQuestion(("long",), 2)))
    settings = "stages.long.recompute=full engine.offload_activations=true takes"
    assert f"long has no room: {settings}" in " ".join(words.split())
    roomy, opened = load_plan(tmp_path / "run.yaml", [*LONG, "cluster.memory_gib=139"])
    asked = PlanQuestion(("long",), 2, open_layouts=opened)
    assert not any("no room" in shown(table) for table in plan_stages(roomy, asked)[:3])


def test_what_may_fit_is_told_what_makes_it_sure(tmp_path: Path) -> None:
    run, opened = load_plan(write_run(tmp_path), [*LONG, "cluster.memory_gib=93"])
    asked = PlanQuestion(("long",), 2, open_layouts=opened)
    words = " ".join(
        " ".join(shown(table) for table in plan_stages(run, asked)).split()
    )
    assert "long may lack room: set engine.offload_activations=true" in words


# --- time by the kernel, in what asks the planner for it --------------------------------

EIGHT = ["cluster.ranks_per_node=8", "cluster.efficiency=0.55"]
EIGHT += ["cluster.attention_efficiency=0.64"]


def test_a_job_gets_the_time_of_its_kernel(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    fast, slow, none = (
        load(path, *EIGHT, f"engine.attention={kernel}")
        for kernel in ("auto", "torch_varlen", "reference")
    )
    assert jobs._seconds(slow, "long") > 1.4 * jobs._seconds(fast, "long")
    assert jobs._seconds(none, "long") == none.launch.limit_seconds
    fp32 = load(path, *EIGHT, "engine.precision=fp32", "cluster.memory_gib=139")
    assert planned(fp32).untimed, "in fp32 a GPU has no other kernel"
    assert not planned(load(path, *EIGHT, "engine.attention=flash3")).untimed


def test_what_has_no_figure_says_so(tmp_path: Path) -> None:
    run = load(write_run(tmp_path), *EIGHT, "engine.attention=reference")
    (said,) = plan_document(run, PlanQuestion(("long",)))["stages"].values()
    plan = said["plan"]
    assert "many times as long" in plan["untimed"]
    assert [
        plan[key] for key in ("seconds", "update_seconds", "node_hours", "mfu")
    ] == [None] * 4
    assert plan["memory_gib"]["total"] > 10
    with pytest.raises(
        ConfigError, match=r"engine\.attention=reference: no update can"
    ):
        simulated_update(run, "long")


def test_a_host_is_planned_by_its_own_speed(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for more in (
        ["engine.device=cpu"],
        ["cluster.peak_tflops=0.1", "cluster.peak_fp32_tflops=0.1"],
    ):
        run = load_run(path, [*more, "engine.attention=reference"])
        assert not planned(run).untimed
