"""The planner's memory beside what GPUs had allocated at the peak of an update, GiB."""

from __future__ import annotations

import pytest

from alia_ctx.spec.cluster import ClusterSpec
from benchmarks.gpu_layouts import Case

# docs/benchmarks/gpu-several.md (four H100) and gpu.md (one H200; the larger of its peaks)
MEASURED = {
    "tp4:32768:12:none": (4, 63.1),
    "tp2cp2:32768:8:none": (4, 52.3),
    "cp4:32768:6:none": (4, 52.8),
    "dp4:32768:4:none": (4, 60.5),
    "tp2pp2:32768:8:none:4": (4, 59.3),
    "tp4:32768:12:full": (4, 47.7),
    "tp4:163840:3:none": (4, 46.4),
    "tp2cp2:163840:3:none": (4, 50.1),
    "cp4:163840:3:none": (4, 56.5),
    "tp4:163840:4:full": (4, 33.0),
    "tp2cp2:163840:4:full": (4, 36.2),
    "cp4:163840:4:full": (4, 44.0),
    "dp1:32768:6:none": (1, 127.6),
    "dp1:32768:8:full": (1, 126.6),
    "dp1:163840:2:none": (1, 121.5),
    "dp1:163840:4:full": (1, 118.7),
}


@pytest.mark.parametrize("case", MEASURED)
def test_memory_is_within_five_percent_of_what_gpus_measured(case: str) -> None:
    ranks, peak = MEASURED[case]
    asked = Case.parse(case)
    plan = asked.planned(
        ClusterSpec(ranks_per_node=ranks, memory_gib=200, overhead_gib=0)
    )
    # Too little would be worse than too much: a plan that fits must fit.
    assert -0.015 <= plan.fullest.total / peak - 1 <= 0.05
