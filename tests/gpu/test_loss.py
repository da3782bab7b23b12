"""Chunked loss on the GPU at ALIA's vocabulary against fp64 in pieces."""

from __future__ import annotations

import pytest
import torch

from alia_ctx.data.packing import IGNORE
from alia_ctx.nn.linear_cross_entropy import vocab_parallel_loss

pytestmark = pytest.mark.gpu(1)

TOKENS, HIDDEN, WORDS = 3000, 1024, 256_000


class Alone:
    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_at_a_vocabulary_of_256000(dtype: torch.dtype) -> None:
    """fp32 sums throughout;

    in bf16 the logits' gradient is rounded once before its products, and each result
    once.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = (
        torch.randn(TOKENS, HIDDEN, device="cuda", generator=generator)
        .mul_(HIDDEN**-0.5)
        .to(dtype)
    )
    weight = torch.randn(WORDS, HIDDEN, device="cuda", generator=generator).to(dtype)
    targets = torch.randint(0, WORDS, (TOKENS,), device="cuda", generator=generator)
    targets[::7] = IGNORE
    hidden.requires_grad_()
    weight.requires_grad_()
    torch.backends.cuda.matmul.allow_tf32 = False
    total, tokens = vocab_parallel_loss(
        hidden,
        weight,
        targets,
        tp_group=Alone(),
        vocab_size=WORDS,
        sequence_parallel=False,
        chunk_tokens=1024,
    )
    total.backward()

    exact_losses, exact_hidden, exact_weight = fp64_in_pieces(
        hidden.detach(), weight.detach(), targets
    )
    assert ((tokens.values - exact_losses).norm() / exact_losses.norm()) < 1e-6
    bound = 2 * 2**-9 if dtype == torch.bfloat16 else 1e-5
    assert ((hidden.grad - exact_hidden).norm() / exact_hidden.norm()) < bound
    assert ((weight.grad - exact_weight).norm() / exact_weight.norm()) < bound


def fp64_in_pieces(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> list[torch.Tensor]:
    """Losses and gradients of their sum; 500 tokens of fp64 logits at a time are 1 GB."""
    weight64 = weight.double().requires_grad_()
    losses, gradients = [], []
    for part, wanted in zip(hidden.split(500), targets.split(500), strict=True):
        h = part.double().requires_grad_()
        each = torch.nn.functional.cross_entropy(
            h @ weight64.T, wanted, ignore_index=IGNORE, reduction="none"
        )
        each.sum().backward()
        losses.append(each.detach())
        gradients.append(h.grad)
    assert weight64.grad is not None
    return [torch.cat(losses), torch.cat(gradients), weight64.grad]


def test_the_loss_does_not_wait_for_the_device() -> None:
    hidden = torch.randn(
        256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    weight = torch.randn(
        1000, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    targets = torch.randint(0, 1000, (256,), device="cuda")

    def step() -> None:
        vocab_parallel_loss(
            hidden,
            weight,
            targets,
            tp_group=Alone(),
            vocab_size=1000,
            sequence_parallel=False,
            chunk_tokens=100,
        )[0].backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
