"""`layout: auto`, and the layout that it becomes: the planner's first for the stage's GPUs,
or the one that a begun stage has been trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from alia_ctx.checkpoint import read_manifest
from alia_ctx.config.draft import Draft
from alia_ctx.config.room import remedy
from alia_ctx.config.run import RunConfig, StageConfig
from alia_ctx.data.packing import shortest_row
from alia_ctx.errors import CheckpointError, ConfigError, Problems
from alia_ctx.spec.execution import PRECISIONS_OF_GPU_KERNELS, loss_chunk_tokens
from alia_ctx.spec.layout import Layout

# The planner is imported where it is asked: most configurations give their layouts.
if TYPE_CHECKING:
    from alia_ctx.planner import LayoutChoice

AUTO = "auto"


def without_auto(
    raw: Mapping[str, Any], problems: Problems
) -> tuple[dict[str, Any], dict[str, bool]]:
    """(`raw` with the default in place of each `layout: auto`, the stages that had it ->
    whether their recomputation is open too, as they do not say any).

    Adds a problem for a layout that is another word.
    """
    stages = raw.get("stages")
    if not isinstance(stages, Mapping):
        return dict(raw), {}
    kept, automatic = dict(stages), {}
    for name, stage in stages.items():
        word = stage.get("layout") if isinstance(stage, Mapping) else None
        if not isinstance(word, str):
            continue
        rule = "is neither sizes nor `auto`"
        at, remedy = f"stages.{name}.layout", "write {tp: 4, cp: 8, pp: 2}, or auto"
        problems.need(word == AUTO, at, word, rule, remedy)
        automatic[str(name)] = "recompute" not in stage
        kept[name] = {key: value for key, value in stage.items() if key != "layout"}
    return {**raw, "stages": kept}, automatic


def unstated(raw: Mapping[str, Any]) -> set[str]:
    """The stages that leave their layout open: they say `auto`, or nothing."""
    stages = raw.get("stages")
    items = stages.items() if isinstance(stages, Mapping) else ()
    return {
        str(name)
        for name, stage in items
        if isinstance(stage, Mapping) and stage.get("layout", AUTO) == AUTO
    }


def with_layouts(
    run: RunConfig, automatic: Mapping[str, bool], draft: Draft
) -> RunConfig:
    """`run` with a layout for each stage in `automatic` (-> whether its recomputation is
    chosen too).

    ConfigError where a stage that `draft` was asked about fits in no layout.
    """
    problems, stages = Problems(), dict(run.stages)
    for name, free in automatic.items():
        stage = stages[name]
        if (trained := _trained_on(run, name, draft)) is not None:
            stages[name] = trained
            continue
        best = first_choice(run, stage, free=free)
        if best.usable:
            recompute = best.recompute if free else stage.recompute
            stages[name] = replace(stage, layout=best.layout, recompute=recompute)
        elif name in draft.asked():
            gpus = run.world_size(stage)
            problems.add(
                f"stages.{name}.layout",
                AUTO,
                f"no layout of {gpus} GPUs can be used: the nearest, tp={best.layout.tp} "
                f"cp={best.layout.cp} pp={best.layout.pp} with recompute="
                f"{best.recompute}, {best.reason}",
                remedy(run, name, gpus, choose, ("layout", *["recompute"] * free)),
            )
    if problems:
        raise ConfigError("", problems)
    return replace(run, stages=stages)


def search_settings(run: RunConfig, stage: StageConfig) -> dict[str, Any]:
    """What the planner's search has to know of a run beside model, rows and GPUs."""
    device = "cpu" if run.engine.device == "cpu" else "cuda"
    of_conversations = stage.update_instances is not None
    return {
        "precision": run.engine.precision,
        "cluster": run.cluster,
        "loss_chunk_tokens": loss_chunk_tokens(run.engine.loss_chunk_tokens, device),
        "overlap": run.engine.overlap_communication and device == "cuda",
        "shortest_row": shortest_row(stage.context) if of_conversations else None,
        "fp8": run.engine.fp8,
        "fp8_bf16_layers": run.engine.fp8_bf16_layers,
        "mlp_chunk_tokens": run.engine.mlp_chunk_tokens,
        "layers": run.engine.layers,
        "attention": _gpu_kernel(run),
    }


def _gpu_kernel(run: RunConfig) -> str:
    """The attention kernel of a run's GPUs, as far as its configuration says: in fp32 there
    is one alone. `auto` on hosts, whose speed the cluster has; a device of `auto` may be one.
    """
    engine = run.engine
    if engine.device == "cpu" or not run.cluster.is_of_gpus:
        return "auto"
    fast = engine.precision in PRECISIONS_OF_GPU_KERNELS
    if engine.attention == "auto" and engine.device == "cuda" and not fast:
        return "reference"
    return engine.attention


def first_choice(run: RunConfig, stage: StageConfig, *, free: bool) -> LayoutChoice:
    """The first of the planner's layouts for a stage, usable or not; `free`: with the
    recomputation that is best, and not the stage's.
    """
    return choose(run, stage, run.world_size(stage), free)


def choose(run: RunConfig, stage: StageConfig, gpus: int, free: bool) -> LayoutChoice:
    """`first_choice` on another number of GPUs."""
    from alia_ctx.planner import suggest_layouts

    return suggest_layouts(
        *(run.model, stage.rope, stage.context, gpus),
        *_budget(stage),
        **search_settings(run, stage),
        recompute=None if free else stage.recompute,
        offload=run.engine.offload_activations,
    )[0]


def _budget(stage: StageConfig) -> tuple[int, int]:
    """(tokens, tokens of an update). Of conversations there are as many rows as their plan
    has: the fewest are taken, for which any layout has to do.
    """
    if stage.tokens is not None and stage.update_tokens is not None:
        return stage.tokens, stage.update_tokens
    rows = stage.context * max(1, stage.pack.min_rows)
    return rows, rows


def _trained_on(run: RunConfig, name: str, draft: Draft) -> StageConfig | None:
    """The stage as its newest checkpoint was trained, as far as that suits its GPUs still;
    None where it has none.
    """
    stage = run.stages[name]
    for path in reversed(draft.checkpoints(name)):
        with suppress(CheckpointError, KeyError, TypeError):
            recorded = read_manifest(path).config["stages"][name]
            sizes = {f.name: int(recorded["layout"][f.name]) for f in fields(Layout)}
            layout, world = Layout(**sizes), run.world_size(stage)
            if not layout.problems("layout", run.model, stage.context, world):
                return replace(stage, layout=layout, recompute=recorded["recompute"])
            return None
    return None
