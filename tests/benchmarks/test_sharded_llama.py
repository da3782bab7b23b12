"""Gradients of the sharded peer that is named after them are added up in fp32."""

from __future__ import annotations

import torch

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.model import ModelSpec
from benchmarks.gpu_step import Case, make_row
from benchmarks.peers import Task, build_llama, shard
from tests.distributed import run_distributed

CONTEXT, WORDS = 64, 128
MODEL = ModelSpec(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=WORDS,
)


def added_up(rank: int, weights: torch.dtype) -> tuple[set[str], float]:
    """Number formats of the gradients of two rows, and how far their sum is from that of
    one row's and the other's, of its norm.
    """
    torch.manual_seed(0)
    with Distributed(EngineConfig()):
        task = Task(MODEL, make_row(Case(2, CONTEXT, "none"), WORDS), CONTEXT, 1)
        model = build_llama(task, "sdpa", liger=False, fp32_weights=True).to(weights)
        shard(model)
        generator = torch.Generator().manual_seed(rank)
        rows = torch.randint(WORDS, (2, 1, CONTEXT), generator=generator)

        def gradients(*chosen: int) -> list[torch.Tensor]:
            model.zero_grad(set_to_none=True)
            for number in chosen:
                model(rows[number], labels=rows[number]).loss.backward()
            return [p.grad.full_tensor() for p in model.parameters()]  # type: ignore[union-attr]

        first, second, both = gradients(0), gradients(1), gradients(0, 1)
        off = sum(
            float((c.double() - a.double() - b.double()).square().sum())
            for a, b, c in zip(first, second, both, strict=True)
        )
        whole = sum(float(c.double().square().sum()) for c in both)
    return {str(c.dtype) for c in both}, (off / whole) ** 0.5


def test_of_fp32_weights_they_are() -> None:
    """One rounding to 24 bits, where of bf16 weights it is one to 8."""
    formats, off = run_distributed(added_up, 2, torch.float32)[0]
    assert formats == {"torch.float32"}
    assert off < 2**-23
    formats, off = run_distributed(added_up, 2, torch.bfloat16)[0]
    assert formats == {"torch.bfloat16"}
    assert off > 2**-12
