"""`layout: auto`: what it becomes, what it keeps to, and what is said where nothing fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.checkpoint.manifest import MANIFEST, Manifest
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError
from alia_ctx.files import write_json
from alia_ctx.planner import suggest_layouts
from alia_ctx.spec.layout import Layout
from tests.small_run import write_run

AUTO = "stages.long.layout=auto"
# Four ranks, and no room for more than what the small model takes on two or more.
FOUR = ("cluster.ranks_per_node=4", "cluster.overhead_gib=0")


def load(path: Path, *overrides: str, **options: Any) -> RunConfig:
    return load_run(path, [*FOUR, *overrides], **options)


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, *overrides)
    return str(caught.value)


def suggested(run: RunConfig, recompute: Any = None) -> Any:
    stage = run.stage("long")
    return suggest_layouts(
        *(run.model, stage.rope, stage.context, run.world_size(stage)),
        *(stage.tokens, stage.update_tokens),
        "fp32",
        run.cluster,
        run.engine.loss_chunk_tokens or 0,
        recompute=recompute,
    )[0]


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_it_becomes_the_planners_first(tmp_path: Path, gpus: int) -> None:
    path = write_run(tmp_path)
    run = load(path, AUTO, f"cluster.ranks_per_node={gpus}")
    first = suggested(run)
    assert first.usable
    assert run.stage("long").layout == first.layout
    assert run.stage("long").recompute == first.recompute
    assert isinstance(run.to_dict()["stages"]["long"]["layout"], dict)


def test_a_recomputation_that_is_stated_is_kept(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = load(path, AUTO, "stages.long.recompute=full")
    assert run.stage("long").recompute == "full"
    assert run.stage("long").layout == suggested(run, "full").layout


def test_it_may_be_a_default_of_all_stages(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = load(path, "stage_defaults.layout=auto")
    shown = {name: stage.layout for name, stage in run.stages.items()}
    own = load(path, "stage_defaults.layout=auto", "stages.long.layout={cp: 4}")
    assert all(isinstance(layout, Layout) for layout in shown.values())
    assert own.stage("long").layout == Layout(cp=4)
    assert own.stage("short").layout == shown["short"]


@pytest.mark.parametrize("word", ["automatic", "Auto", "none"])
def test_another_word_is_none(tmp_path: Path, word: str) -> None:
    said = refused(write_run(tmp_path), f"stages.long.layout={word}")
    assert f"stages.long.layout={word}: is neither sizes nor `auto`" in said


def test_where_nothing_fits_it_says_how_many_gpus_would_do(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    one = load(path, AUTO, "cluster.ranks_per_node=1")
    modes = ("none", "selective", "full")
    needed = min(suggested(one, mode).plan.fullest.without_guesses for mode in modes)
    small = f"cluster.memory_gib={0.9 * needed}"
    said = refused(path, AUTO, "cluster.ranks_per_node=1", small)
    assert "stages.long.layout=auto: no layout of 1 GPUs can be used" in said
    assert "does not fit" in said and "take 2 GPUs" in said
    assert "stages.long.layout" in refused(path, AUTO, "cluster.memory_gib=1e-6")


def test_another_stages_layout_is_no_obstacle(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = load(path, AUTO, "cluster.memory_gib=1e-6", stages=["short"])
    assert run.stage("long").layout == Layout()


def checkpoint_of(run: RunConfig, **stage: Any) -> None:
    """A checkpoint's manifest of stage `long`, trained as `stage` says."""
    config = run.to_dict()
    config["stages"]["long"] |= stage
    spec = run.stage("long")
    manifest = Manifest("long", 3, run.model, spec.rope, spec.context, config=config)
    folder = Path(run.output, "stages", "long", "checkpoints", "update-00000003")
    folder.mkdir(parents=True)
    write_json(folder / MANIFEST, manifest.to_json())


def test_a_begun_stage_keeps_to_its_layout(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = load(path, AUTO)
    other = next(
        layout
        for layout in (Layout(cp=4), Layout(cp=2, pp=2))
        if layout != run.stage("long").layout
    )
    checkpoint_of(run, layout=dataclasses.asdict(other), recompute="selective")
    again = load(path, AUTO).stage("long")
    assert (again.layout, again.recompute) == (other, "selective")
    # On GPUs that it does not suit any more, the planner is asked anew.
    fewer = load(path, AUTO, "cluster.ranks_per_node=2")
    assert fewer.stage("long").layout == suggested(fewer).layout


def test_a_damaged_checkpoint_is_no_reason_to_stop(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    run = load(path, AUTO)
    checkpoint_of(run)
    (place,) = Path(run.output).rglob(MANIFEST)
    place.write_text("{")
    assert load(path, AUTO).stage("long").layout == run.stage("long").layout


def test_a_plan_needs_no_text_and_no_layout(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    gone = (
        "tokenizer=/nowhere",
        "data.sources.text.store=/nowhere",
        "stages.short.init_from=/nowhere",
        "stages.long.layout.cp=3",
    )
    assert "/nowhere" in refused(path, *gone)
    run, unstated = load_plan(path, [*FOUR, *gone])
    assert run.stage("long").layout == Layout(cp=3)
    assert unstated == {"short"}
    assert load_plan(path, [*FOUR, AUTO])[1] == {"short", "long"}
    with pytest.raises(ConfigError, match="head_dim"):
        load_plan(path, ["model.head_dim=7"])
