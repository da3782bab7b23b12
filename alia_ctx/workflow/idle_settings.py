"""Settings that do nothing in a run or a stage, or cost most of its time: no mistakes, as
another stage or machine may have use for them, and yet not what whoever set them will expect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alia_ctx.config.run import RANDOM, EngineConfig, RunConfig
from alia_ctx.planner.timing import spans_nodes
from alia_ctx.spec.token_chunks import TILE, chunk_tokens


def idle_settings(run: RunConfig, names: Sequence[str]) -> list[str]:
    """What of `engine` does nothing in the run, and in these of its stages, with what would
    give it an effect.
    """
    notes = [*_idle_everywhere(run.engine)]
    for name in names:
        notes += (f"stage {name}: {note}" for note in _idle_in(run, name))
    return notes


def _idle_everywhere(engine: EngineConfig) -> Iterator[str]:
    if engine.fp8 == "off" and engine.fp8_bf16_layers != EngineConfig.fp8_bf16_layers:
        yield (
            f"engine.fp8_bf16_layers={engine.fp8_bf16_layers} does nothing with "
            "engine.fp8=off; set engine.fp8, or leave it out"
        )
    if engine.layers == "auto" and engine.fp8 == "off":
        why = ""
        if engine.device == "cpu":
            why, remedy = "engine.device=cpu", "engine.device=auto"
        elif engine.precision != "bf16":
            why = f"engine.precision={engine.precision}"
            remedy = "engine.precision=bf16"
        if why:
            yield (
                f"engine.layers=auto does nothing with {why}, which TransformerEngine's "
                f"layers do not have; set {remedy}, or leave it out"
            )
    if engine.offload_activations and engine.device == "cpu":
        yield (
            "engine.offload_activations=true brings nothing with engine.device=cpu, where "
            "all is in host memory; leave it out"
        )


def _idle_in(run: RunConfig, name: str) -> Iterator[str]:
    engine, stage = run.engine, run.stage(name)
    if stage.optimizer_state == "keep" and stage.init_from == RANDOM:
        yield (
            f"optimizer_state=keep does nothing with init_from={RANDOM}, where "
            "there are no moments; leave it out"
        )
    for field, why, remedy in stage.rope.idle_fields():
        value = getattr(stage.rope, field)
        yield f"rope.{field}={value:g} does nothing {why}; {remedy}"
    tp, cp, pp = stage.layout.tp, stage.layout.cp, stage.layout.pp
    tokens = stage.context // cp  # of a row on a rank; all of tp take part in each
    chunk = engine.mlp_chunk_tokens
    if chunk is not None and stage.recompute != "full":
        yield (
            f"engine.mlp_chunk_tokens={chunk} does nothing with "
            f"recompute={stage.recompute}; "
            f"set stages.{name}.recompute=full, or leave it out"
        )
    elif chunk is not None and chunk >= tokens:
        yield (
            f"engine.mlp_chunk_tokens={chunk} does nothing, as a rank has {tokens:,} tokens "
            "of a row; set fewer, or leave it out"
        )
    if engine.tp_overlap_chunks > 1:
        own = chunk_tokens(tokens // tp, engine.tp_overlap_chunks)
        if tp == 1:
            yield (
                f"engine.tp_overlap_chunks={engine.tp_overlap_chunks} does nothing with "
                f"tp=1; leave it out, or raise stages.{name}.layout.tp"
            )
        elif own < TILE:
            yield (
                f"engine.tp_overlap_chunks={engine.tp_overlap_chunks} makes chunks of "
                f"{own} of a rank's {tokens // tp:,} tokens, of which a kernel takes "
                f"{TILE} at once; 2 to 8 chunks are meant"
            )
    node = run.cluster.ranks_per_node
    if engine.device == "cuda" and spans_nodes(stage.layout, run.cluster):
        yield (
            f"layout.tp={tp} leaves the node of {node} GPUs, and every layer waits for the "
            f"network; tp={node} at most stays in it, and cp or pp divide further"
        )
    if engine.context_split != EngineConfig.context_split and cp == 1:
        yield (
            f"engine.context_split={engine.context_split} does nothing with cp=1; leave it "
            f"out, or raise stages.{name}.layout.cp"
        )
    if not engine.overlap_communication:
        alone = run.world_size(stage) == tp * pp  # dp and cp are 1
        if alone or engine.device == "cpu":
            why = (
                "gradients and weights go to no other rank"
                if alone
                else "on hosts nothing is overlapped"
            )
            yield f"engine.overlap_communication=false does nothing, as {why}; leave it out"
