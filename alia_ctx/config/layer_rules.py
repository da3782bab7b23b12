"""Which settings of the engine go together, and with the GPU: device, precision, attention
kernel, whose the layers are, and FP8 in their products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from alia_ctx.config.run import EngineConfig, StageConfig
from alia_ctx.errors import Problem, Problems
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.compute_capability import (
    HALF_FROM,
    capability_problems,
    fastest_kernels,
    is_special,
)
from alia_ctx.spec.execution import (
    KERNELS_OF_HOSTS,
    PRECISIONS_OF_GPU_KERNELS,
    fp8_problem,
)
from alia_ctx.spec.launch import LaunchSpec
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.token_chunks import TILE, most_chunks


def kernel_problems(engine: EngineConfig) -> list[Problem]:
    """What no attention kernel of that name can do on any machine."""
    problems = Problems()
    key, value = "engine.attention", str(engine.attention)
    if value in KERNELS_OF_HOSTS:
        return problems
    problems.need(
        engine.precision in PRECISIONS_OF_GPU_KERNELS,
        key,
        value,
        f"computes in 16 bits, and engine.precision={engine.precision}",
        f"set engine.precision=bf16, or {key}=reference",
    )
    problems.need(
        engine.device != "cpu",
        key,
        value,
        f"needs a GPU, and engine.device={engine.device}",
        f"set engine.device=auto, or leave {key} out",
    )
    return problems


def layer_problems(
    engine: EngineConfig, model: ModelSpec | None, stages: Mapping[str, StageConfig]
) -> list[Problem]:
    """What of `engine.layers`, `fp8`, `fp8_bf16_layers`, `mlp_chunk_tokens` and
    `tp_overlap_chunks` cannot be on any machine. What this one has is found where a stage
    starts, as it may not be the one that trains.
    """
    problems = Problems()
    problems.need(
        engine.fp8_bf16_layers >= 0,
        "engine.fp8_bf16_layers",
        engine.fp8_bf16_layers,
        "is no number of layers",
        f"the default is {EngineConfig.fp8_bf16_layers}; 0 spares none",
    )
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
    problems += _chunk_problems(engine.tp_overlap_chunks, stages)
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
    if engine.fp8 == "off" or engine.fp8_bf16_layers < 0 or model is None:
        return problems
    for name, stage in stages.items():
        if min(stage.layout.tp, stage.layout.pp) < 1:
            continue  # a problem of its own
        broken = fp8_problem(model, stage.layout, engine.fp8_bf16_layers)
        if broken is not None:
            rule, remedy = broken
            problems.add(key, value, f"stage {name}: {rule}", remedy)
    return problems


def gpu_problems(
    engine: EngineConfig, cluster: ClusterSpec, planning: bool
) -> list[Problem]:
    """What the GPU of the cluster cannot compute. A cluster of hosts' processors may stand in
    a run that a GPU trains; a plan is of the cluster itself.
    """
    problems = Problems()
    if engine.device == "cpu":
        return problems  # what that cannot be is a problem of its own
    asked = {"fp8": str(engine.fp8), "layers": str(engine.layers)}
    asked["attention"] = str(engine.attention)
    if not cluster.is_of_gpus:
        remedies = {"fp8": "off", "layers": "local", "attention": "auto"}
        none = {"fp8": ("off",), "layers": ("auto", "local")}
        none["attention"] = KERNELS_OF_HOSTS
        for name, value in asked.items():
            problems.need(
                not planning or value in none[name],
                f"engine.{name}",
                value,
                "needs a GPU, and cluster has the peaks of a processor",
                f"set engine.{name}={remedies[name]}, or plan on a machine with GPUs",
            )
        return problems
    problems += capability_problems(
        cluster, engine.fp8, engine.attention, engine.layers
    )
    there = cluster.capability
    none_fast = there is not None and there < HALF_FROM and engine.device == "cuda"
    if none_fast and engine.attention == "auto" and engine.precision != "fp32":
        problems.add(
            "engine.attention",
            engine.attention,
            f"no kernel in 16 bits is for compute capability {there:.1f}",
            "set engine.attention=reference",
        )
    return problems


def gpu_remarks(engine: EngineConfig, cluster: ClusterSpec) -> Iterator[str]:
    """What the cluster's GPU may not compute, or not as fast as the plan takes it for."""
    if engine.device == "cpu":
        return
    kernel, there = str(engine.attention), cluster.capability
    settings = [f"engine.fp8={engine.fp8}"] if engine.fp8 != "off" else []
    settings += [f"engine.attention={kernel}"] * is_special(kernel)
    if settings and there is None:
        yield (
            f"whether the GPU of cluster computes {' and '.join(settings)} is not known; set "
            "cluster.compute_capability (docs/planner.md)"
        )
    elif there is not None and is_special(kernel):
        best = fastest_kernels(there)
        if kernel not in best:
            yield (
                f"engine.attention={kernel} is not the fastest for compute capability "
                f"{there:.1f}, and was not measured there; set engine.attention=auto, which "
                f"takes {' or '.join(best)}"
            )


def queue_problem(
    engine: EngineConfig, cluster: ClusterSpec, launch: LaunchSpec
) -> Problem | None:
    """That a job would have another number of GPUs on a node than ranks: with fewer it
    cannot run, with more the others wait idle.
    """
    asked, ranks = launch.gpus, cluster.ranks_per_node
    if asked is None or engine.device == "cpu" or asked == ranks:
        return None
    rule = f"is {asked} GPUs of a node, and cluster.ranks_per_node={ranks}"
    rule += ": the others wait idle" if asked > ranks else ""
    remedy = f"set launch.gres=gpu:{ranks}, or the ranks"
    return Problem("launch.gres", launch.gres, rule, remedy)


def _chunk_problems(count: int, stages: Mapping[str, StageConfig]) -> list[Problem]:
    """Stages whose rows, which are whole tiles, cannot be cut into `count` chunks of at least
    one. Shorter rows of the same stage go in fewer chunks; stages of few tokens, as tests have
    them, in chunks below a tile.
    """
    problems = Problems()
    for name, stage in stages.items():
        layout = stage.layout
        if min(layout.tp, layout.cp) < 1 or layout.tp == 1:
            continue
        own = stage.context // layout.cp // layout.tp
        if own >= 2 * TILE and count > most_chunks(own):
            problems.add(
                "engine.tp_overlap_chunks",
                count,
                f"stage {name}: a rank has {own:,} tokens of a row, {most_chunks(own)} tiles "
                f"of the {TILE} that a kernel multiplies at once",
                f"set 2 to 8, {most_chunks(own)} at most, or leave it at 1",
            )
    return problems
