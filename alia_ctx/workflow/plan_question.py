"""What is asked of a plan, and what of the configuration it leaves aside."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from alia_ctx.config.given import Given
from alia_ctx.config.layer_rules import gpu_remarks
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError, Problem


@dataclass(frozen=True)
class PlanQuestion:
    """What is asked of a plan.

    gpus: in place of those of the file.
    open_layouts: stages that leave their layout open.
    search: whether the whole list of layouts is wanted, and nothing else.
    dry_run: whether one rank of each stage's layout is built without its memory, and
        what it holds is counted beside the plan's figures.
    given: what the command line gives of the configuration: no option drops it.
    """

    stages: Sequence[str] = ()
    gpus: int | None = None
    open_layouts: Collection[str] = ()
    search: bool = False
    dry_run: bool = False
    given: Given = Given()  # noqa: RUF009


def on_gpus(run: RunConfig, asked: PlanQuestion) -> RunConfig:
    """`run` on the number of GPUs that is asked about. ConfigError where an override has
    another number of nodes.
    """
    if (gpus := asked.gpus) is None:
        return run
    if gpus < 1:
        rule, remedy = "must be at least 1", "give a number of GPUs"
        raise ConfigError("", [Problem("--gpus", gpus, rule, remedy)])
    each = run.cluster.ranks_per_node
    nodes, names = -(-gpus // each), asked.stages or run.stages
    over = {"cluster.nodes": asked.given.value("cluster", "nodes")}
    over |= {f"stages.{n}.nodes": asked.given.of_stage(n, "nodes") for n in names}
    problems = [
        Problem(
            "--gpus",
            gpus,
            f"and {key}={given} stand on one command line, and nodes have {each} GPUs each",
            "give one of them",
        )
        for key, given in over.items()
        if given is not None and given != nodes
    ]
    if problems:
        raise ConfigError("", problems)
    # So that what is assumed is what is planned.
    cluster = dataclasses.replace(run.cluster, nodes=nodes)
    return dataclasses.replace(run, cluster=cluster)


def plan_remarks(run: RunConfig, asked: PlanQuestion) -> Iterator[str]:
    """What of the configuration is not in the plan, or not as it stands there."""
    given, chunks = asked.given, run.engine.tp_overlap_chunks
    if given.replaced:
        stays = asked.gpus is None and given.value("cluster", "nodes") is None
        nodes = f"; nodes={run.cluster.nodes} stays" if stays else ""
        yield f"{given.replaced}{nodes}"
    for name in asked.stages or run.stages:
        layout = given.of_stage(name, "layout")
        if asked.search and layout is not None:
            yield (
                f"--search is through all layouts, not only stages.{name}.layout={layout} of "
                "the command line"
            )
    yield from gpu_remarks(run.engine, run.cluster)
    if chunks > 1:
        yield (
            f"engine.tp_overlap_chunks={chunks} is no time in the plan: on two and four H200 "
            "chunks took from 1% less to 2% more (docs/benchmarks/gpu-several.md)"
        )
