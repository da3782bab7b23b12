"""What a GPU of a compute capability, NVIDIA's MAJOR.MINOR for a generation, can compute: FP8,
TransformerEngine's layers, attention kernels. 8.0 is the A100, 8.9 Ada, 9.0 Hopper, 10.0 and
12.0 Blackwell (data centre, and not).
"""

from __future__ import annotations

from alia_ctx.errors import Problem, Problems
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.execution import AskedLayers, Fp8

# transformer_engine.pytorch.quantization (2.12): check_fp8_support and
# check_fp8_block_scaling_support.
FP8_FROM: dict[Fp8, float] = {"current": 8.9, "blockwise": 9.0}
# Of 16-bit attention kernels and bf16 in TransformerEngine (is_bf16_available).
HALF_FROM = 8.0

# By the major number, kernels that are twice as fast as those for any: FA3 is Hopper's, FA4
# is for data-centre Blackwell and Hopper.
FASTEST_KERNELS: dict[int, tuple[str, ...]] = {
    9: ("flash3", "flash4"),
    10: ("flash4",),
    11: ("flash4",),
}
GENERAL_KERNELS = ("flash2", "torch_varlen")  # the same kernel, FlashAttention 2

# The last major number that a kernel is made for; the first is that of HALF_FROM. FA3 has
# kernels of sm_80 and sm_90a (its hopper folder), FA4 4.0.0b36 refuses what is
# above 12.x (flash_attn.cute.interface).
_LAST = {"flash3": 9, "flash4": 12}
_SPECIAL = tuple(_LAST)


def capability_problems(
    cluster: ClusterSpec, fp8: Fp8, attention: str, layers: AskedLayers
) -> list[Problem]:
    """What of `engine.fp8`, `attention` and `layers` the cluster's GPU cannot compute; nothing
    where its compute capability is not known.
    """
    problems, there = Problems(), cluster.capability
    if there is None:
        return problems
    has = f"and cluster.compute_capability is {there:.1f}"
    if fp8 != "off" and there < (least := FP8_FROM[fp8]):
        other = next((n for n, since in FP8_FROM.items() if since <= there), "off")
        rule = f"is for GPUs of compute capability {least:.1f} and above, {has}"
        remedy = f"set engine.fp8={other}, or name the GPU that it is for"
        problems.add("engine.fp8", fp8, rule, remedy)
    if layers == "te" and there < HALF_FROM:
        rule = f"in bf16 is for compute capability {HALF_FROM:.1f} and above, {has}"
        problems.add("engine.layers", layers, rule, "set engine.layers=local")
    if attention in (*_SPECIAL, *GENERAL_KERNELS):
        last = _LAST.get(attention)
        until = "and above" if last is None else f"to {last}.x"
        rule = f"is for GPUs of compute capability {HALF_FROM:.1f} {until}, {has}"
        remedy = f"set engine.attention={'auto' if there >= HALF_FROM else 'reference'}"
        made = there >= HALF_FROM and (last is None or int(there) <= last)
        problems.need(made, "engine.attention", attention, rule, remedy)
    return problems


def fastest_kernels(capability: float) -> tuple[str, ...]:
    """What `engine.attention: auto` looks for first on a GPU, the first best."""
    return FASTEST_KERNELS.get(int(capability)) or GENERAL_KERNELS


def is_special(kernel: str) -> bool:
    """Whether an attention kernel is of some generations of GPUs alone."""
    return kernel in _SPECIAL


def kernel_speed(kernel: str) -> str:
    """How fast an attention kernel of a GPU is beside the best, in words."""
    if is_special(kernel):  # taken where another of them is there and wrong
        return "as fast as the best"
    if kernel == "reference":
        return "many times slower than the best"  # written for hosts; tiles one by one
    return "about half as fast as the best"  # FlashAttention 2: docs/benchmarks/gpu.md
