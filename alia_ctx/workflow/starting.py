"""What each of the ranks reads that a command was started on, before they work together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.markup import escape

from alia_ctx.config.load import load_run, read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.identity import statement_checksum
from alia_ctx.progress import is_main, say
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.train.agreement import on_all_ranks
from alia_ctx.train.rendezvous import starting_ranks
from alia_ctx.workflow.evaluation import EvaluationTask


def load_on_all_ranks(
    config: Path, overrides: Sequence[str], stages: Sequence[str]
) -> RunConfig:
    """`load_run`, once it succeeds alike on all ranks, if several were started.

    It looks at more than its own file (checkpoints, texts), so a rank whose mount is
    gone fails here; the others must not wait for it. Raises as `load_run` and
    `on_all_ranks` do, RequeueError where the ranks cannot meet.
    """
    return on_all_ranks(
        starting_ranks(),
        f"the configuration {config}",
        lambda: _load_as_started(config, overrides, stages),
        lambda run: statement_checksum(run.to_dict()),
    )


def _load_as_started(
    config: Path, overrides: Sequence[str], stages: Sequence[str]
) -> RunConfig:
    """`load_run`; that other ranks were started than the cluster has is the first of its
    problems, and where there are no others a note on the first rank: the layout takes
    as much data parallelism as there are ranks.
    """
    try:
        run = load_run(config, overrides, stages=stages)
    except ConfigError as error:
        problems: list[Problem] = []
        with suppress(ConfigError, KeyError, TypeError, ValueError, AttributeError):
            raw = read_config(config, overrides)
            cluster = raw.get("cluster", {})
            size = int(cluster.get("ranks_per_node", ClusterSpec.ranks_per_node))
            for name in stages:
                nodes = raw["stages"][name].get("nodes") or cluster.get("nodes", 1)
                problem = _other_ranks(int(nodes), size)
                problems += [problem] if problem is not None else []
        if not problems:
            raise
        problems += error.problems
        raise ConfigError(f"{config} has {len(problems)} problems", problems) from error
    for name in stages:
        nodes = run.stage(name).nodes or run.cluster.nodes
        problem = _other_ranks(nodes, run.cluster.ranks_per_node)
        if problem is not None and is_main():
            say(f"note: {escape(str(problem))}")
    return run


def _other_ranks(nodes: int, ranks_per_node: int) -> Problem | None:
    """That launcher or srun started another number of ranks than the cluster has."""
    started, planned = os.environ.get("WORLD_SIZE", ""), nodes * ranks_per_node
    if not started.isdigit() or int(started) == planned:
        return None
    return Problem(
        "cluster.ranks_per_node",
        ranks_per_node,
        f"{started} ranks were started (WORLD_SIZE), and cluster.nodes x "
        f"cluster.ranks_per_node is {nodes} x {ranks_per_node} = {planned}",
        f"start {planned}, or correct cluster.nodes and cluster.ranks_per_node",
    )


def task_on_all_ranks(make: Callable[[], EvaluationTask]) -> EvaluationTask:
    """What `make` finds is to be evaluated, once it is the same on all ranks."""
    return on_all_ranks(
        starting_ranks(),
        "what is evaluated",
        make,
        lambda task: [
            (e.name, e.context, e.evaluators, statement_checksum(e.model.statement))
            for e in task.evaluations
        ],
    )
