"""Which settings of the layers go together: whose they are, and FP8 in their products."""

from __future__ import annotations

from collections.abc import Mapping

from alia_ctx.config.run import EngineConfig, StageConfig
from alia_ctx.errors import Problem, Problems
from alia_ctx.spec.execution import fp8_problem
from alia_ctx.spec.model import ModelSpec


def layer_problems(
    engine: EngineConfig, model: ModelSpec | None, stages: Mapping[str, StageConfig]
) -> list[Problem]:
    """What of `engine.layers`, `fp8`, `mlp_chunk_tokens` and `tp_overlap_chunks` cannot be
    on any machine. What this one has is found where a stage starts, as it may not be the
    one that trains.
    """
    problems = Problems()
    chunk = engine.mlp_chunk_tokens
    problems.need(
        chunk is None or engine.layers == "local",
        "engine.mlp_chunk_tokens",
        chunk,
        "the MLP of TransformerEngine's layers is not cut into chunks",
        "set engine.layers=local, or leave it out",
    )
    problems.need(
        engine.tp_overlap_chunks <= 1 or engine.layers == "local",
        "engine.tp_overlap_chunks",
        engine.tp_overlap_chunks,
        "TransformerEngine's linear layers are not cut into chunks",
        "set engine.layers=local, or leave it at 1",
    )
    key, value = "engine.layers", str(engine.layers)
    if engine.fp8 != "off":
        key, value = "engine.fp8", str(engine.fp8)
        problems.need(
            engine.layers != "local",
            key,
            value,
            "Megatron-Core's own layers have no FP8, TransformerEngine's have",
            f"set engine.layers=te, or {key}=off",
        )
    elif engine.layers != "te":
        return problems
    remedy = f"set engine.precision=bf16, or leave {key} out"
    rule = "TransformerEngine's layers are taken in bf16 alone"
    problems.need(engine.precision == "bf16", key, value, rule, remedy)
    rule = f"needs a GPU, and engine.device={engine.device}"
    remedy = f"set engine.device=auto, or leave {key} out"
    problems.need(engine.device != "cpu", key, value, rule, remedy)
    if engine.fp8 == "off" or model is None:
        return problems
    for name, stage in stages.items():
        if min(stage.layout.tp, stage.layout.pp) < 1:
            continue  # a problem of its own
        broken = fp8_problem(model, stage.layout, engine.fp8_bf16_layers)
        if broken is not None:
            rule, remedy = broken
            problems.add(key, value, f"stage {name}: {rule}", remedy)
    return problems
