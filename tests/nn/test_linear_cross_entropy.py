"""Chunked vocabulary-parallel loss against torch's cross entropy in fp64, alone and on
process groups.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alia_ctx.errors import DataError, LayoutError
from alia_ctx.nn.linear_cross_entropy import IGNORE, vocab_parallel_loss
from tests import dense
from tests.distributed import run_distributed

TOKENS, HIDDEN, WORDS = 48, 16, 37  # 37 words: every tp > 1 pads the head
TOLERANCE = 1e-6  # relative, fp32 against fp64


class Alone:
    """A group of one."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def random_case(ignored: str = "some", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [T, H], head [V, H] (fp64) and targets [T] of which some, none or
    all are ignored.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator)
    weight = torch.randn(WORDS, HIDDEN, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, WORDS, (TOKENS,), generator=generator)
    if ignored == "some":
        targets[torch.rand(TOKENS, generator=generator) < 0.3] = IGNORE
    if ignored == "all":
        targets[:] = IGNORE
    return hidden, weight, targets


def loss_and_values(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    total, tokens = vocab_parallel_loss(*arguments, **options)
    return total, tokens.values


def dense_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float
) -> list[Tensor]:
    """Token losses, gradients of hidden and weight of `scale` times their sum, all from
    whole fp64 logits.
    """
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        h @ w.T, targets, ignore_index=IGNORE, reduction="none"
    )
    (losses.sum() * scale).backward()
    return [losses.detach(), h.grad, w.grad]


def padded(weight: Tensor, rows: int) -> Tensor:
    """Padding that would be seen: a word of huge logits if it took part."""
    return torch.cat(
        [
            weight,
            torch.full((rows - len(weight), weight.shape[1]), 50.0, dtype=weight.dtype),
        ]
    )


@pytest.mark.parametrize("ignored", ["some", "none", "all"])
@pytest.mark.parametrize("chunk", [1, 7, 48, 1000])
def test_equals_cross_entropy_with_any_chunk(chunk: int, ignored: str) -> None:
    hidden, weight, targets = random_case(ignored)
    expected = dense_loss(hidden, weight, targets, scale=0.25)
    h, w = (
        hidden.float()[:, None].requires_grad_(),
        padded(weight, 40).float().requires_grad_(),
    )
    total, losses = loss_and_values(
        h,
        w,
        targets,
        tp_group=Alone(),
        vocab_size=WORDS,
        sequence_parallel=False,
        chunk_tokens=chunk,
    )
    (total * 0.25).backward()
    assert losses.dtype == total.dtype == torch.float32 and not losses.requires_grad
    for ours, theirs in (
        (losses, expected[0]),
        (h.grad[:, 0], expected[1]),
        (w.grad[:WORDS], expected[2]),
    ):
        assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()
    assert torch.equal(w.grad[WORDS:], torch.zeros(3, HIDDEN))
    assert torch.equal(
        losses[targets == IGNORE], torch.zeros(int((targets == IGNORE).sum()))
    )
    torch.testing.assert_close(total, losses.sum())


def test_fp64_is_fp64_throughout() -> None:
    hidden, weight, targets = random_case()
    expected = dense_loss(hidden, weight, targets, scale=1.0)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    total, losses = loss_and_values(
        h,
        w,
        targets,
        tp_group=Alone(),
        vocab_size=WORDS,
        sequence_parallel=False,
        chunk_tokens=10,
    )
    total.backward()
    for ours, theirs in (
        (losses, expected[0]),
        (h.grad, expected[1]),
        (w.grad, expected[2]),
    ):
        assert dense.relative_error(ours, theirs) < 1e-14


def test_bf16_rounds_only_inputs_and_results() -> None:
    """Logits and sums are fp32, so from the same bf16 inputs the losses are fp32-exact and
    gradients one rounding off.

    The logits' gradients are widened, not rounded, on CPU; 2**-9 is half a unit in the
    last of bf16's 8 bits.
    """
    hidden, weight, targets = (
        x.bfloat16() if x.is_floating_point() else x for x in random_case()
    )
    expected = dense_loss(hidden.double(), weight.double(), targets, scale=1.0)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    total, losses = loss_and_values(
        h,
        w,
        targets,
        tp_group=Alone(),
        vocab_size=WORDS,
        sequence_parallel=False,
        chunk_tokens=10,
    )
    total.backward()
    assert h.grad.dtype == w.grad.dtype == torch.bfloat16
    assert dense.relative_error(losses, expected[0]) < TOLERANCE
    assert dense.relative_error(h.grad, expected[1]) < 2**-9
    assert dense.relative_error(w.grad, expected[2]) < 2**-9


def test_logits_far_beyond_the_range_of_exp() -> None:
    hidden, weight, targets = random_case()
    expected = dense_loss(hidden * 100, weight, targets, scale=1.0)
    h, w = (hidden * 100).float().requires_grad_(), weight.float().requires_grad_()
    total, losses = loss_and_values(
        h,
        w,
        targets,
        tp_group=Alone(),
        vocab_size=WORDS,
        sequence_parallel=False,
        chunk_tokens=16,
    )
    total.backward()
    assert torch.isfinite(h.grad).all() and torch.isfinite(w.grad).all()
    assert (
        dense.relative_error(losses, expected[0]) < 1e-5
    )  # logits of 1,500 carry fp32 errors of 1e-4


def test_without_gradients_the_loss_is_the_same() -> None:
    hidden, weight, targets = random_case()
    options: dict[str, Any] = dict(
        tp_group=Alone(), vocab_size=WORDS, sequence_parallel=False, chunk_tokens=16
    )
    with torch.no_grad():
        total, losses = loss_and_values(
            hidden.float(), weight.float(), targets, **options
        )
    trained, _ = vocab_parallel_loss(
        hidden.float().requires_grad_(), weight.float(), targets, **options
    )
    assert not total.requires_grad and trained.requires_grad
    assert torch.equal(total, trained)
    assert torch.equal(losses.sum(), total)


@settings(deadline=None)
@given(st.integers(0, TOKENS - 1), st.integers(0, 10))
def test_ignored_tokens_have_no_influence(token: int, seed: int) -> None:
    hidden, weight, targets = (x.clone() for x in random_case("none", seed))
    targets[token] = IGNORE
    results = []
    for value in (hidden[token], torch.full((HIDDEN,), 1e4, dtype=torch.float64)):
        changed = hidden.clone()
        changed[token] = value
        h, w = changed.float().requires_grad_(), weight.float().requires_grad_()
        total, _ = vocab_parallel_loss(
            h,
            w,
            targets,
            tp_group=Alone(),
            vocab_size=WORDS,
            sequence_parallel=False,
            chunk_tokens=5,
        )
        total.backward()
        assert torch.equal(h.grad[token], torch.zeros(HIDDEN))
        results.append((total.detach(), w.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_second_backward_is_refused() -> None:
    """The gradients are scaled in place, so a second use would be silently wrong."""
    hidden, weight, targets = random_case()
    h = hidden.requires_grad_()
    total, _ = vocab_parallel_loss(
        h, weight, targets, tp_group=Alone(), vocab_size=WORDS, sequence_parallel=False
    )
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_target_outside_the_vocabulary_is_named() -> None:
    hidden, weight, targets = random_case("none")
    targets[5] = WORDS
    with pytest.raises(
        DataError,
        match=f"target {WORDS} at token 5 is outside the vocabulary of {WORDS}",
    ):
        vocab_parallel_loss(hidden, padded(weight, 40), targets, tp_group=Alone(), vocab_size=WORDS,
                            sequence_parallel=False)  # fmt: skip


def test_shapes_that_do_not_fit_are_named() -> None:
    hidden, weight, targets = random_case()
    with pytest.raises(
        LayoutError, match="48 hidden states over tp=1 but targets of shape \\(47,\\)"
    ):
        vocab_parallel_loss(
            hidden,
            weight,
            targets[1:],
            tp_group=Alone(),
            vocab_size=WORDS,
            sequence_parallel=False,
        )
    with pytest.raises(
        LayoutError, match="1 shards of 37 rows cannot hold vocab_size=38"
    ):
        vocab_parallel_loss(
            hidden,
            weight,
            targets,
            tp_group=Alone(),
            vocab_size=38,
            sequence_parallel=False,
        )


# ---- on process groups ----


@pytest.mark.timeout(580)
def test_tensor_and_context_parallel_losses_equal_dense_fp64() -> None:
    run_distributed(check_parallel, 4, timeout=560)


def check_parallel(rank: int) -> None:
    for tp, cp in ((2, 1), (4, 1), (2, 2), (1, 4)):
        tp_group, cp_group = grid(rank, tp, cp)
        for sequence_parallel in {False, tp > 1}:
            for ignored in ("some", "none", "all", "one cp rank"):
                for chunk in (5, 1000):
                    check_layout(tp_group, cp_group, sequence_parallel, ignored, chunk)
    check_shard_without_words(rank)


def grid(rank: int, tp: int, cp: int) -> tuple[Any, Any]:
    """The TP and CP groups of this rank, TP fastest, repeated over the data-parallel remainder."""
    found: dict[str, Any] = {}
    for first in range(0, dist.get_world_size(), tp * cp):
        ranks = torch.arange(first, first + tp * cp).view(cp, tp)
        for name, lines in (("tp", ranks.tolist()), ("cp", ranks.T.tolist())):
            for line in lines:
                group = dist.new_group(line)
                if rank in line:
                    found[name] = group
    return found["tp"], found["cp"]


def check_layout(
    tp_group: Any, cp_group: Any, sequence_parallel: bool, ignored: str, chunk: int
) -> None:
    hidden, weight, targets = random_case(
        "some" if ignored == "one cp rank" else ignored
    )
    tp, cp = tp_group.size(), cp_group.size()
    if (
        ignored == "one cp rank"
    ):  # all of its tokens are masked: neither NaN nor a lost gradient elsewhere
        targets[torch.from_numpy(dense.rank_tokens(TOKENS, cp, cp - 1))] = IGNORE
    tokens = torch.from_numpy(dense.rank_tokens(TOKENS, cp, cp_group.rank()))
    expected = dense_loss(hidden, weight, targets, scale=0.5)
    shard = (
        padded(weight, -(-WORDS // tp) * tp)
        .float()
        .chunk(tp)[tp_group.rank()]
        .clone()
        .requires_grad_()
    )
    own = tokens.chunk(tp)[tp_group.rank()] if sequence_parallel else tokens
    h = hidden[own].float()[:, None].requires_grad_()

    total, losses = loss_and_values(
        h, shard, targets[tokens], tp_group=tp_group, vocab_size=WORDS,
        sequence_parallel=sequence_parallel, chunk_tokens=chunk,
    )  # fmt: skip
    (total * 0.5).backward()
    dist.all_reduce(shard.grad, group=cp_group)
    sums = total.detach().clone()
    dist.all_reduce(sums, group=cp_group)

    whole = padded(expected[2], len(shard) * tp).clone()
    whole[WORDS:] = 0
    pairs = [
        (losses, expected[0][tokens]),
        (h.grad[:, 0], expected[1][own]),
        (shard.grad, whole.chunk(tp)[tp_group.rank()]),
        (sums, expected[0].sum()),
    ]
    for ours, theirs in pairs:
        assert torch.isfinite(ours).all()
        assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()


def check_shard_without_words(rank: int) -> None:
    """5 words over 4 shards of 2: the last shard is padding alone."""
    hidden, weight, _ = random_case()
    weight, targets = weight[:5], torch.arange(TOKENS) % 5
    expected = dense_loss(hidden, weight, targets, scale=1.0)
    shard = padded(weight, 8).float().chunk(4)[rank].clone().requires_grad_()
    h = hidden.float().requires_grad_()
    total, losses = loss_and_values(
        h,
        shard,
        targets,
        tp_group=dist.group.WORLD,
        vocab_size=5,
        sequence_parallel=False,
        chunk_tokens=20,
    )
    total.backward()
    assert dense.relative_error(losses, expected[0]) < TOLERANCE
    assert dense.relative_error(h.grad, expected[1]) < TOLERANCE
    if rank == 3:
        assert torch.equal(shard.grad, torch.zeros_like(shard))
