"""A small model, its rows and its engine: what the multi-process tests of the engine share."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

CONTEXT = 64
# 250 is no multiple of 4: the vocabulary is padded under tensor parallelism.
MODEL: dict[str, Any] = {
    "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 250,
}  # fmt: skip
ROPE = RopeSpec(
    "llama3",
    10000.0,
    factor=8,
    original_max_position_embeddings=8,
    low_freq_factor=1,
    high_freq_factor=4,
)
UNEVEN = (
    (30, 1, 20, 9),
    (64,),
    (2, 62),
    (5, 6, 7),
    (33, 31),
)  # document lengths of an update's five rows


def rows_of(update: int, vocabulary: int = 250) -> list[PackedRow]:
    """Five rows of learnable text: each token follows from the one before."""
    generator = np.random.default_rng(update)
    return [
        PackedRow.from_documents(
            [_document(generator, n, vocabulary) for n in lengths], CONTEXT, index=i
        )
        for i, lengths in enumerate(UNEVEN)
    ]


def _document(
    generator: np.random.Generator, length: int, vocabulary: int
) -> np.ndarray:
    start, stride = generator.integers(0, vocabulary), generator.integers(1, 4)
    return (start + stride * np.arange(length)) % vocabulary


def make_engine(
    layout: Layout,
    *,
    precision: str = "fp32",
    recompute: str = "none",
    rope: RopeSpec = ROPE,
    train: bool = True,
    offload: bool = False,
    constants: OptimizerConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> MegatronEngine:
    """An engine of the small model; `settings` are more of `engine`, `changes` of the model."""
    return MegatronEngine(
        ModelSpec(**{**MODEL, **changes}),
        rope,
        CONTEXT,
        layout,
        EngineConfig(
            **{
                "precision": precision,
                "loss_chunk_tokens": 16,
                "offload_activations": offload,
                **(settings or {}),
            }
        ),
        (constants or OptimizerConfig()) if train else None,
        recompute=recompute,
    )


def train(
    engine: MegatronEngine, updates: Sequence[int], rate: float = 3e-3
) -> list[tuple[float, float, int]]:
    """(loss, gradient norm, predicted tokens) of each update;

    rows dealt to data-parallel ranks in turn.
    """
    results = []
    for update in updates:
        rows = rows_of(update, engine.model.vocab_size)
        mine = rows[engine.data_parallel_rank :: engine.data_parallel_size]
        result = engine.train_update(mine, rate)
        results.append((result.loss, result.gradient_norm, result.predicted_tokens))
    return results


def tokens_passing(engine: MegatronEngine) -> list[int]:
    """A list that grows by the tokens of this rank whenever they pass the MLP of a layer."""
    passed: list[int] = []

    def count(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passed.append(len(inputs[0]))

    for layer in engine.module.decoder.layers:
        layer.mlp.register_forward_pre_hook(count)
    return passed


def gradients(engine: MegatronEngine) -> dict[str, torch.Tensor]:
    """Of an update's rows, what DistributedDataParallel holds."""
    mine = rows_of(0)[engine.data_parallel_rank :: engine.data_parallel_size]
    engine.accumulate_gradients(mine)
    return {n: p.main_grad.clone() for n, p in engine.module.named_parameters()}


def distributed() -> Distributed:
    return Distributed(EngineConfig())


def save(engine: MegatronEngine, state: Path, *, with_optimizer: bool = True) -> None:
    """Write the engine's state into the directory `state`, called as the checkpoint
    format wants it.
    """
    if engine.rank == 0:
        state.mkdir(parents=True)
    engine.barrier()
    engine.begin_save(state.parent, with_optimizer=with_optimizer).finish()


def save_checkpoint(
    engine: MegatronEngine, target: Path, manifest: Manifest, assets: Path | None = None
) -> None:
    """Commit the engine's state as the checkpoint `target`, as the trainer does.

    Collective.
    """
    temporary = checkpoint.temporary_path(target)
    if engine.rank == 0:
        checkpoint.begin(target)
        if assets is not None:
            shutil.copytree(assets, temporary / checkpoint.ASSETS)
    engine.barrier()
    files = engine.begin_save(temporary).finish()
    if engine.rank == 0:
        checkpoint.commit(temporary, target, manifest, known=files)
    engine.barrier()
