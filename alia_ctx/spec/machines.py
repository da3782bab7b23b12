"""Machines that a run may be placed on, by name: what `configs/clusters/` says of them.

Memory is what torch reports of the GPU, a little less than its name says. Of NVIDIA's data
sheets are the peaks, dense bf16 and fp32 without tensor cores (H100 and H200 SXM: 989 and 67
10^12 FLOP/s; A100: 312 and 19.5), and the speed of memory (3,350, 4,800 and 2,039 GB/s; of
MareNostrum 5's card we have no sheet: it is taken for an H100). Links are two thirds of NVLink
and four fifths of the network card that a GPU has to itself.
"""

from __future__ import annotations

from alia_ctx.spec.cluster import ClusterSpec

# (efficiency, attention_efficiency), fitted to every second row that this engine took on
# H100 of 80 GB and H200 with FlashAttention 3 or 4 (docs/benchmarks/planner-rows.json).
MEASURED_ON_HOPPER = (0.59, 0.62)


def speeds_from(cluster: ClusterSpec) -> str:
    """Where a cluster's two shares of the peak are from, in words."""
    default = ClusterSpec()
    pair = cluster.efficiency, cluster.attention_efficiency
    if pair == MEASURED_ON_HOPPER:
        return (
            "fitted to this engine's runs on H100 of 80 GB and H200 with FlashAttention 3 "
            "or 4, in bf16 (docs/benchmarks/gpu-several.md); without such a kernel attention "
            "takes twice as long"
        )
    if pair == (default.efficiency, default.attention_efficiency):
        return (
            "the defaults, fitted to published runs of others (docs/planner.md), and not to "
            "this card: on H100 and H200 with FlashAttention 3 or 4 this engine takes "
            "{:g} and {:g} (configs/clusters/h100-80.yaml)".format(*MEASURED_ON_HOPPER)
        )
    return "as the configuration says"


MACHINES: dict[str, ClusterSpec] = {
    # BSC, accelerated partition: NVLink 4, one NDR200 card a GPU, 512 GiB a node.
    "marenostrum5": ClusterSpec(
        ranks_per_node=4,
        memory_gib=64,
        peak_tflops=989,
        peak_fp32_tflops=67,
        compute_capability=9.0,
        memory_gb_per_s=3350,
        node_gb_per_s=300,
        network_gb_per_s=20,
        host_memory_gib=512,
        host_gb_per_s=40,
    ),
    # DGX H100: NVLink 4, one NDR400 card a GPU, 2 TiB a node. Efficiencies as of the H200
    # below, whose chip it has: fitted to rows of both.
    "h100-80": ClusterSpec(
        ranks_per_node=8,
        memory_gib=79,
        peak_tflops=989,
        peak_fp32_tflops=67,
        compute_capability=9.0,
        memory_gb_per_s=3350,
        efficiency=MEASURED_ON_HOPPER[0],
        attention_efficiency=MEASURED_ON_HOPPER[1],
        node_gb_per_s=300,
        network_gb_per_s=40,
        host_memory_gib=2048,
        host_gb_per_s=40,
    ),
    # DGX H200. Memory was measured on one, efficiencies on both cards.
    "h200": ClusterSpec(
        ranks_per_node=8,
        memory_gib=139.8,
        peak_tflops=989,
        peak_fp32_tflops=67,
        compute_capability=9.0,
        memory_gb_per_s=4800,
        efficiency=MEASURED_ON_HOPPER[0],
        attention_efficiency=MEASURED_ON_HOPPER[1],
        node_gb_per_s=300,
        network_gb_per_s=40,
        host_memory_gib=2048,
        host_gb_per_s=40,
    ),
    # DGX A100: NVLink 3, one HDR200 card a GPU, PCIe 4.
    "a100-80": ClusterSpec(
        ranks_per_node=8,
        memory_gib=79,
        peak_tflops=312,
        peak_fp32_tflops=19.5,
        compute_capability=8.0,
        memory_gb_per_s=2039,
        node_gb_per_s=200,
        network_gb_per_s=20,
        host_memory_gib=1024,
        host_gb_per_s=20,
    ),
    # Two ranks on the cores of a laptop, over gloo in fp32.
    "laptop": ClusterSpec(
        ranks_per_node=2,
        memory_gib=8,
        peak_tflops=0.1,
        peak_fp32_tflops=0.1,
        memory_gb_per_s=20,
    ),
}
