"""Host memory of a node: what all its ranks hold there together."""

from __future__ import annotations

import numpy as np

from alia_ctx.planner.memory import GIB, offloaded_bytes, rank_parameters, saved_bytes
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec


def host_items(work: Workload, cluster: ClusterSpec) -> dict[str, float]:
    """GiB by item, of the node that needs most: a copy of what its ranks own while it is
    written, their offloaded activations, and their processes.

    Ranks are Megatron's, tp, then cp, dp, pp: a node has ranks that follow each other, of
    one pipeline rank or of several, which hold different rows and layers.
    """
    pp, world = work.layout.pp, work.world_size
    stage = np.arange(world) * pp // world  # of each rank
    stages = range(pp)
    copies = [saved_bytes(work, rank_parameters(work, rank)) for rank in stages]
    away = [offloaded_bytes(work, rank) for rank in stages]
    items = {
        "copy for a save": np.array(copies, float)[stage] / GIB,
        "offloaded activations": np.array(away, float)[stage] / GIB,
        "processes (guess)": np.full(world, cluster.host_overhead_gib),
    }
    first = np.arange(0, world, cluster.ranks_per_node)
    nodes = {name: np.add.reduceat(gib, first) for name, gib in items.items()}
    fullest = int(np.argmax(sum(nodes.values())))
    return {name: float(gib[fullest]) for name, gib in nodes.items() if gib[fullest]}
