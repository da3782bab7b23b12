"""What the planner knows of attention kernels that are asked for by name.

A cluster's `attention_efficiency` is that of a fast kernel. Slower ones were measured beside
the fastest on one H100, a row of one document of 32,768 tokens (docs/benchmarks/gpu.md, all
attention kernels). On documents as short as those of the web they lose less, 0.62 and 0.59.
"""

from __future__ import annotations

from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MEASURED_ON_HOPPER

# The cards that this was measured on have one chip, whose peak on the data sheet this is. On
# an A100 the same kernels are the fastest that there are.
_HOPPER_TFLOPS = 989.0
SPEED_ON_HOPPER = {"flash2": 0.55, "torch_varlen": 0.52}
_SLOWEST = "reference"


def attention_share(cluster: ClusterSpec, kernel: str) -> float:
    """Share of the peak that attention reaches by a kernel that is asked for by name: the
    cluster's, or what a slower kernel was measured at where that is less; a cluster that
    has the slower kernel's own share keeps it.
    """
    share = cluster.attention_efficiency
    if cluster.peak_tflops != _HOPPER_TFLOPS or kernel not in SPEED_ON_HOPPER:
        return share
    return min(share, SPEED_ON_HOPPER[kernel] * MEASURED_ON_HOPPER[1])


def why_untimed(kernel: str) -> str:
    """Why the planner has no time by a kernel of a GPU; empty where it has."""
    if kernel != _SLOWEST:
        return ""
    return (
        "attention by `reference` takes many times as long on a GPU as by the kernels that "
        "the planner has figures of, and was not timed there"
    )


def speed_words(cluster: ClusterSpec, kernel: str) -> str:
    """What the estimates take a kernel for that is slower than the cluster's attention;
    empty where it is not, or not known to be.
    """
    if (why := why_untimed(kernel)) or kernel not in SPEED_ON_HOPPER:
        return why
    share = attention_share(cluster, kernel)
    if share == cluster.attention_efficiency:
        return ""
    return f"attention by `{kernel}` at {share:.2f} of the peak"
