"""Training with inputs of layers on the host, and with the MLP in chunks as well, beside the
same without, on one GPU; a process of its own.

    python -m tests.gpu.input_offload

Prints one JSON line, and what it is at on standard error; `test_input_offload.py` reads it.
The reference attention, which has no atomics: the same update twice is the same to the
bit, which is seen too. Its tiles are for the cache of a CPU; here they are larger, as each is
some launches, and so small that the MLP, not attention, is what a layer holds at most.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
from typing import Any

import numpy as np
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.nn import attention_kernels, attention_reference
from alia_ctx.nn.input_offload import InputOffload
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from benchmarks.gpu_observed import Told
from benchmarks.gpu_step import draw_on_device
from tests.dense import ALIA_160K

CONTEXT, LAYERS, ROWS, UPDATES = 8192, 8, 2, 3
MODEL = ModelSpec(
    num_hidden_layers=LAYERS,
    hidden_size=2048,
    intermediate_size=16_384,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=128,
    vocab_size=1024,
)
INPUT = CONTEXT * MODEL.hidden_size * 2  # bytes in bf16


def rows() -> list[PackedRow]:
    generator = np.random.default_rng(0)
    return [
        PackedRow.from_documents(
            [generator.integers(0, MODEL.vocab_size, n) for n in (5000, 3000)],
            CONTEXT,
            index=index,
        )
        for index in range(ROWS)
    ]


def train(*, offload: bool, chunk: int | None = None) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    told = Told()
    settings = EngineConfig(
        attention="reference",
        offload_activations=offload,
        mlp_chunk_tokens=chunk,
        deterministic=True,
    )
    engine = MegatronEngine(
        MODEL,
        ALIA_160K,
        CONTEXT,
        Layout(),
        settings,
        OptimizerConfig(),
        recompute="full",
        initializer=draw_on_device,  # the engine's own takes seconds of a host
    )
    told.say("the engine stands")
    found: dict[str, Any] = {"losses": [], "norms": [], "buffers": [], "peaks": []}
    for _ in range(UPDATES):
        result = engine.train_update(rows(), 1e-5)
        told.say(f"an update, offload={offload}, chunk={chunk}")
        found["losses"].append(result.loss)
        found["norms"].append(result.gradient_norm)
        if offload:
            pool = of(engine).buffers
            found["buffers"].append((pool.count, pool.most, pool.out))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        engine.accumulate_gradients(rows())
        found["peaks"].append(torch.cuda.max_memory_allocated() - before)
        assert torch.cuda.memory_allocated() == before, "something of a row is left"
    weights = [parameter.detach().flatten() for parameter in engine.parameters()]
    found["weights"] = [int(w.view(torch.int16).long().sum()) for w in weights]
    if offload:
        buffer = of(engine).buffers.take()
        found["pinned"] = buffer.is_pinned()
        found["buffer bytes"] = buffer.nbytes
    return found


def of(engine: MegatronEngine) -> InputOffload:
    return engine.passes.forward_context.__self__  # type: ignore[attr-defined,no-any-return]


def main() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    attention_kernels.tiles = (  # type: ignore[attr-defined]
        functools.partial(attention_reference.tiles, size=512)
    )
    attention_reference.BLOCK_KEYS = 1024
    with Distributed(EngineConfig()):
        found = {
            "plain": train(offload=False),
            "again": train(offload=False),
            "away": train(offload=True),
            "chunks": train(offload=True, chunk=1500),
        }
    json.dump({**found, "input bytes": INPUT, "layers": LAYERS}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
