"""Which targets greedy decoding would give, known beside the losses: on one rank and over a
vocabulary that tensor parallelism splits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from alia_ctx.nn.linear_cross_entropy import IGNORE, vocab_parallel_loss
from tests.distributed import run_distributed
from tests.nn.test_linear_cross_entropy import TOKENS, WORDS, Alone, grid, padded


def case_with_ties(vocab_size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Small whole numbers, so that products are exact and equal logits equal to the bit;
    targets of which most are the argmax, some equal it, and some are ignored.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-1, 2, (TOKENS, 4), generator=generator).float()
    weight = torch.randint(-1, 2, (vocab_size, 4), generator=generator).float()
    logits = hidden @ weight.T
    last = vocab_size - 1 - logits.flip(1).argmax(1)
    draw = torch.rand(TOKENS, generator=generator)
    any_of = torch.randint(0, vocab_size, (TOKENS,), generator=generator)
    targets = torch.where(draw < 0.5, logits.argmax(1), last)
    targets = torch.where(draw > 0.8, any_of, targets)
    targets[draw > 0.95] = IGNORE
    return hidden, weight, targets


def expected_hits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """By NumPy, whose argmax is documented to give the first of equal values."""
    best = (hidden.double() @ weight.double().T).numpy().argmax(1)
    return torch.from_numpy(best == targets.numpy())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [5, 1000])
def test_hits_are_the_argmax_of_dense_logits(seed: int, chunk: int) -> None:
    """And torch's argmax, by which transformers decodes greedily, agrees with NumPy's."""
    hidden, weight, targets = case_with_ties(WORDS, seed)
    logits = hidden @ weight.T
    tied = (logits == logits.amax(1, keepdim=True)).sum(1) > 1
    hits = expected_hits(hidden, weight, targets)
    assert tied.any() and hits.any() and (~hits & (targets != IGNORE) & tied).any()
    assert torch.equal(hits, logits.argmax(1) == targets)
    for dtype in (torch.float32, torch.bfloat16):  # exact in both
        for differentiable in (False, True):
            _, tokens = vocab_parallel_loss(
                hidden.to(dtype, copy=True).requires_grad_(differentiable),
                padded(weight, 40).to(dtype),
                targets,
                tp_group=Alone(),
                vocab_size=WORDS,
                sequence_parallel=False,
                chunk_tokens=chunk,
            )
            assert tokens.hits.dtype == torch.bool and not tokens.hits.requires_grad
            assert torch.equal(tokens.hits, hits)


def check_on_groups(rank: int) -> None:
    for tp in (2, 4):
        tp_group, _ = grid(rank, tp, 1)
        for vocab_size in (5, WORDS):  # 5 over 4 shards of 2: one is padding alone
            check_hits(tp_group, vocab_size)


def test_hits_over_a_split_vocabulary() -> None:
    run_distributed(check_on_groups, 4)


def check_hits(tp_group: Any, vocab_size: int) -> None:
    """Ties within a shard and across shards: the lowest index of all wins."""
    tp = tp_group.size()
    for seed in range(5):
        hidden, weight, targets = case_with_ties(vocab_size, seed)
        shard = padded(weight, -(-vocab_size // tp) * tp).chunk(tp)[tp_group.rank()]
        for sequence_parallel in (False, True):
            own = hidden.chunk(tp)[tp_group.rank()] if sequence_parallel else hidden
            _, tokens = vocab_parallel_loss(
                own,
                shard,
                targets,
                tp_group=tp_group,
                vocab_size=vocab_size,
                sequence_parallel=sequence_parallel,
                chunk_tokens=10,
            )
            assert torch.equal(tokens.hits, expected_hits(hidden, weight, targets))
