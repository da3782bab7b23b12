"""A stage as the planner has it, for those that want one figure of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import get_args

from alia_ctx.config.layouts import search_settings
from alia_ctx.config.run import RunConfig
from alia_ctx.planner import StagePlan, plan_stage
from alia_ctx.spec.execution import Recompute
from alia_ctx.workflow.mixture import sizes_of


def planned_stage(run: RunConfig, name: str) -> StagePlan:
    """A stage on its own layout and ranks, by the sizes of its rows and not by its pack
    plan. AliaError where it cannot be planned.
    """
    stage = run.stage(name)
    tokens, update_tokens, _ = sizes_of(run, name)
    shared = search_settings(run, stage)
    del shared["shortest_row"]
    return plan_stage(
        *(run.model, stage.rope, stage.context, stage.layout),
        *(run.world_size(stage), tokens, update_tokens, stage.recompute),
        offload=run.engine.offload_activations,
        **shared,
    )


def idle_chunks(run: RunConfig, name: str) -> str | None:
    """That `engine.mlp_chunk_tokens` does nothing in a stage, where it is set and that is so:
    not refused, as another stage of the run may have it.
    """
    chunk, mode = run.engine.mlp_chunk_tokens, run.stage(name).recompute
    if chunk is None or mode == "full":
        return None
    return (
        f"stage {name}: engine.mlp_chunk_tokens={chunk} does nothing with recompute={mode}; "
        f"set stages.{name}.recompute=full, or leave it out"
    )


def room_on_a_gpu(run: RunConfig, name: str, there: float) -> tuple[str, list[str]]:
    """Planned memory of a stage beside the `there` GiB of a GPU, in words, and, where it
    may have no room, what gives it some. AliaError where it cannot be planned.
    """
    needed = planned_stage(run, name).fullest.total
    words = f"{needed:.1f} GiB a GPU by the planner, of {there:.1f}"
    if needed <= there:
        return words, []
    words += ": it may run out"
    for settings, other in _smaller(run, name):
        less = planned_stage(other, name).fullest.total
        if less <= there:
            return words, [f"{' '.join(settings)} takes {less:.1f}"]
    return words, ["recomputation is not enough; raise tp, cp or pp (alia-ctx plan)"]


def recomputed(run: RunConfig, name: str) -> Iterator[RunConfig]:
    """The run with each recomputation of a stage from its own on, the least first."""
    stage, modes = run.stage(name), get_args(Recompute)
    for mode in modes[modes.index(stage.recompute) :]:
        stages = {**run.stages, name: replace(stage, recompute=mode)}
        yield replace(run, stages=stages)


# Gate and up of so many tokens are small beside a long row's hidden states.
_CHUNK = 16_384


def _smaller(run: RunConfig, name: str) -> Iterator[tuple[list[str], RunConfig]]:
    """What makes the stage smaller, the cheapest first: more recomputation; with all of it
    its inputs on the host, and, of Megatron-Core's own layers, the MLP in chunks.
    """
    settings: list[str] = []
    for other in islice(recomputed(run, name), 1, None):
        settings = [f"stages.{name}.recompute={other.stage(name).recompute}"]
        yield settings, (run := other)
    if not run.engine.offload_activations:
        settings = [*settings, "engine.offload_activations=true"]
        run = replace(run, engine=replace(run.engine, offload_activations=True))
        yield settings, run
    chunk = run.engine.mlp_chunk_tokens
    if run.engine.layers == "local" and (chunk is None or chunk > _CHUNK):
        settings = [*settings, f"engine.mlp_chunk_tokens={_CHUNK}"]
        run = replace(run, engine=replace(run.engine, mlp_chunk_tokens=_CHUNK))
        yield settings, run
