"""What others have published of their training's speed, and what the planner says of it.

The two constants of the planner, the shares of the peak that products with weights and
attention reach, were fitted to rows of Megatron-Core, which is this engine: what we
measured ourselves on one GPU (`ours`), and NVIDIA's. The rows called `quoted` were in no
fit; tests/planner/test_published.py has bounds on their errors. torchtitan's other rows
serve to fit a second pair, of that software on its GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from alia_ctx.planner.timing import once_seconds, update_time
from alia_ctx.planner.workload import Workload
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.machines import MACHINES
from alia_ctx.spec.model import ModelSpec

Group = Literal["quoted", "ours", "torchtitan", "NVIDIA"]
# With the planner's defaults, which were fitted to these rows, in place of the machine's own,
# which were fitted to this engine's (docs/benchmarks/planner-rows.json).
H100 = replace(
    MACHINES["h100-80"],
    efficiency=ClusterSpec().efficiency,
    attention_efficiency=ClusterSpec().attention_efficiency,
)
LLAMA_8B = ModelSpec(32, 4096, 14336, 32, 8, 128, 128_256)
LLAMA2_7B = ModelSpec(32, 4096, 11008, 32, 32, 128, 32_000)
LLAMA2_13B = ModelSpec(40, 5120, 13824, 40, 40, 128, 32_000)
LLAMA2_70B = ModelSpec(80, 8192, 28672, 64, 8, 128, 32_000)
LLAMA_70B = ModelSpec(80, 8192, 28672, 64, 8, 128, 128_256)
LLAMA_405B = ModelSpec(126, 16384, 53248, 128, 8, 128, 128_256)
QWEN3_8B = ModelSpec(36, 4096, 12288, 32, 8, 128, 151_936, "qwen3", qk_norm=True)


@dataclass(frozen=True)
class Published:
    """A row of a table. `speed` is tokens a second and GPU.

    Args:
        rows: sequences of an update; interleaved: parts of the layers on each pipeline
            rank; matrix_speed: 2 where products with weights are in float8.
        group: what the row serves for, see above.
    """

    source: str
    name: str
    model: ModelSpec
    context: int
    gpus: int
    layout: Layout
    rows: int
    speed: float
    recompute: str = "full"
    interleaved: int = 1
    matrix_speed: float = 2.0
    group: Group = "quoted"

    def workload(self) -> Workload:
        tokens = self.rows * self.context
        return Workload(
            self.model,
            self.context,
            self.layout,
            self.gpus,
            tokens,
            tokens,
            self.recompute,  # type: ignore[arg-type]
        )

    def predicted(self, cluster: ClusterSpec = H100) -> float:
        """The planner's tokens a second and GPU; of ours, where the optimizer's step was not
        timed, without it. Others' sums of gradients and optimizers are fused: what of ours
        goes through the GPU's memory is no part of their time.
        """
        if self.group != "ours":
            cluster = replace(cluster, memory_gb_per_s=math.inf)
        timing = update_time(
            self.workload(),
            cluster,
            interleaved=self.interleaved,
            matrix_speed=self.matrix_speed,
        )
        seconds = timing.total
        if self.group == "ours":
            seconds -= once_seconds(self.workload(), cluster, 0)[1]
        return self.rows * self.context / seconds / self.gpus

    def error(self, cluster: ClusterSpec = H100) -> float:
        """Of the speed that the planner says, in parts of the published one."""
        return self.predicted(cluster) / self.speed - 1


def palm_tokens_per_second(model: ModelSpec, context: int, tflops: float) -> float:
    """Tokens a second of a GPU whose model FLOPs are counted as in PaLM (arXiv 2204.02311,
    appendix B): 6N + 12LHQT a token, the masked half of attention among them.
    """
    attention = 12.0 * model.num_hidden_layers * model.query_size * context
    return tflops * 1e12 / (6.0 * model.parameters() + attention)


# Table 4 of The Llama 3 Herd of Models (arXiv 2407.21783): bf16, 16M tokens an update,
# FLOPs as in PaLM. It trains without recomputation, and takes a layer off the first and
# last stages, whose chunks are then the embedding and the head alone (both section
# 3.3.2): a chunk is a layer, and a pipeline rank of 16 has eight of 128.
_HERD = "arXiv 2407.21783, table 4"


def _herd(gpus: int, context: int, cp: int, tflops: float) -> Published:
    return Published(
        _HERD,
        f"Llama 3 405B, {context:,}, {gpus:,} GPUs",
        LLAMA_405B,
        context,
        gpus,
        Layout(8, cp, 16),
        2**24 // context,
        palm_tokens_per_second(LLAMA_405B, context, tflops),
        "none",
        8,
        1.0,
    )


# https://github.com/pytorch/torchtitan/blob/main/docs/performance.md, December 2024: H100
# of 96 GB and 500 W, their data sheet's peak not known; compiled, float8 but for two rows.
_TITAN = "torchtitan, performance of December 2024, table"


def _titan_8b(
    context: int, cp: int, speed: float, group: Group = "quoted"
) -> Published:
    return Published(
        f"{_TITAN} 2",
        f"Llama 3.1 8B, {context:,}, 8 GPUs",
        LLAMA_8B,
        context,
        8,
        Layout(1, cp, 1),
        8 // cp,
        speed,
        group=group,
    )


def _titan_8k(table: int, gpus: int, speed: float, matrix_speed: float) -> Published:
    word = "bf16" if matrix_speed == 1 else "float8"
    return Published(
        f"{_TITAN} {table}",
        f"Llama 3.1 8B, 8,192, {gpus} GPUs, {word}",
        LLAMA_8B,
        8192,
        gpus,
        Layout(),
        2 * gpus,
        speed,
        "selective",
        1,
        matrix_speed,
        "torchtitan",
    )


def _titan_405b(
    table: int, context: int, cp: int, rows: int, speed: float, interleaved: int = 1
) -> Published:
    word = ", interleaved" if interleaved > 1 else ""
    return Published(
        f"{_TITAN} {table}",
        f"Llama 3.1 405B, {context:,}, 512 GPUs{word}",
        LLAMA_405B,
        context,
        512,
        Layout(8, cp, 8),
        rows,
        speed,
        interleaved=interleaved,
        group="torchtitan",
    )


# The pages on performance in the documentation of https://github.com/NVIDIA/NeMo (24.07)
# and https://github.com/NVIDIA-NeMo/Megatron-Bridge (25.11): DGX H100, FP8, no
# recomputation named.
def _nvidia(
    release: str,
    name: str,
    model: ModelSpec,
    context: int,
    gpus: int,
    layout: Layout,
    rows: int,
    speed: float,
    interleaved: int = 1,
) -> Published:
    name = f"{name}, {context:,}, {gpus:,} GPUs"
    return Published(
        *(f"NVIDIA {release}", name, model, context, gpus, layout, rows, speed),
        recompute="none",
        interleaved=interleaved,
        group="NVIDIA",
    )


# The page on long sequences beside the first: NeMo 24.03, whose TFLOPs count the masked
# half of attention (the function llama2 among its FLOPs formulas). Rows an update are not given; 4M
# tokens are taken, as in the later table on that page.
def _long(kilo: int, gpus: int, tp: int, cp: int, tflops: float) -> Published:
    context = kilo * 1024
    flops = LLAMA2_7B.linear_flops_per_token()
    flops += 12.0 * LLAMA2_7B.num_hidden_layers * LLAMA2_7B.query_size * context
    row = _nvidia(
        *("24.03, long sequences", "Llama 2 7B", LLAMA2_7B, context, gpus),
        *(Layout(tp, cp, 1), max(2**22 // context, 1), tflops * 1e12 / flops),
    )
    return row


# docs/benchmarks/gpu.md: layers of ALIA-40b with a small vocabulary on one H200, without
# the optimizer's step; five times with FlashAttention 4, last with torch's kernel.
def _ours(layers: int, context: int, recompute: str, speed: float) -> Published:
    model = ModelSpec(layers, 8192, 24576, 64, 8, 128, 8192)
    return Published(
        "docs/benchmarks/gpu.md",
        f"{layers} layers of ALIA-40b, {context:,}, one H200",
        *(model, context, 1, Layout(), 1, speed, recompute),
        matrix_speed=1.0,
        group="ours",
    )


PUBLISHED = (
    _herd(8192, 8192, 1, 430),
    _herd(16384, 8192, 1, 400),
    _herd(16384, 131_072, 16, 380),
    _titan_8b(32_768, 1, 3890),
    _titan_8b(65_536, 2, 2540),
    _titan_8b(131_072, 4, 1071),
    # huggingface.co/docs/trl/long_context_training: 380.10 s a step, bf16.
    Published(
        "TRL, Training Beyond 1M Tokens",
        "Qwen3-8B, 1,048,576, 8 GPUs",
        QWEN3_8B,
        1_048_576,
        8,
        Layout(1, 8, 1),
        1,
        1_048_576 / 380.10 / 8,
        matrix_speed=1.0,
    ),
    _titan_8k(1, 8, 6667, 1.0),
    _titan_8k(1, 8, 8532, 2.0),
    _titan_8k(3, 128, 6514, 1.0),
    _titan_8k(3, 128, 8380, 2.0),
    _titan_8b(262_144, 8, 548, "torchtitan"),
    Published(
        f"{_TITAN} 4",
        "Llama 3.1 70B, 8,192, 256 GPUs",
        LLAMA_70B,
        8192,
        256,
        Layout(8, 1, 1),
        512,
        829,
        group="torchtitan",
    ),
    _titan_405b(5, 8192, 1, 256, 100),
    _titan_405b(5, 8192, 1, 256, 128, 2),
    _titan_405b(6, 32_768, 1, 64, 76),
    _titan_405b(6, 65_536, 2, 32, 47),
    _titan_405b(6, 131_072, 4, 16, 31),
    _titan_405b(6, 262_144, 8, 8, 16),
    _nvidia("24.07", "Llama 2 7B", LLAMA2_7B, 4096, 8, Layout(), 128, 16847),
    _nvidia(
        "24.07", "Llama 2 13B", LLAMA2_13B, 4096, 16, Layout(1, 1, 4), 128, 8646, 10
    ),
    _nvidia(
        "24.07", "Llama 2 70B", LLAMA2_70B, 4096, 64, Layout(4, 1, 4), 128, 1707, 20
    ),
    _nvidia("24.07", "Llama 3 8B", LLAMA_8B, 8192, 8, Layout(1, 2, 1), 128, 12036),
    _nvidia("24.07", "Llama 3 70B", LLAMA_70B, 8192, 64, Layout(4, 2, 4), 128, 1533, 5),
    _nvidia("25.11", "Llama 3 8B", LLAMA_8B, 8192, 8, Layout(), 128, 14451),
    _nvidia("25.11", "Llama 3 70B", LLAMA_70B, 8192, 64, Layout(4, 1, 8), 128, 1602, 5),
    _nvidia(
        *("25.11", "Llama 3.1 405B", LLAMA_405B, 8192, 1024, Layout(8, 2, 8)),
        *(512, 292, 8),
    ),
    _long(32, 32, 2, 2, 610),
    _long(64, 64, 4, 2, 574),
    _long(128, 128, 4, 4, 555),
    _long(256, 256, 4, 8, 549),
    _long(512, 512, 8, 16, 549),
    _long(1024, 1024, 8, 32, 536),
    _ours(6, 32_768, "none", 15_764),
    _ours(8, 32_768, "full", 9_159),
    _ours(2, 163_840, "none", 21_768),
    _ours(4, 163_840, "full", 8_513),
    _ours(5, 32_768, "none", 14_891),
)


def rows_of(group: Group) -> list[Published]:
    return [row for row in PUBLISHED if row.group == group]


def fit(rows: Sequence[Published], cluster: ClusterSpec = H100) -> ClusterSpec:
    """`cluster` with the two efficiencies, to a hundredth, with the least mean squared
    logarithm of predicted over published speed of `rows`.
    """
    shares = [percent / 100 for percent in range(15, 80)]
    return min(
        (with_shares(cluster, m, a) for m in shares[15:] for a in shares),
        key=lambda tried: mean_square(rows, tried),
    )


def with_shares(cluster: ClusterSpec, matrices: float, attention: float) -> ClusterSpec:
    return replace(cluster, efficiency=matrices, attention_efficiency=attention)


def mean_square(rows: Sequence[Published], cluster: ClusterSpec) -> float:
    """Mean squared logarithm of predicted over published speed."""
    return float(np.mean([np.log1p(row.error(cluster)) ** 2 for row in rows]))


# What `fit` gives for torchtitan's rows that are not quoted.
TORCHTITAN = with_shares(H100, 0.43, 0.19)
