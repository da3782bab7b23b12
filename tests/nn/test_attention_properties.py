"""Properties of packed training on random rows: documents are independent, however they
are packed and cut over ranks.

Context parallelism is emulated in one process: each rank's chunks attend to its own key
buffer, cut from the whole row, through the same geometry, kernel call and loss as on a
cluster (the exchange itself is tested on real groups in test_attention_parallel.py).
The model around it is two layers in fp64, small enough for hundreds of rows.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alia_ctx.mcore.attention import attend, row_geometry
from alia_ctx.nn.attention_kernels import resolve_kernel
from alia_ctx.nn.context_parallel import Balance
from alia_ctx.nn.linear_cross_entropy import IGNORE, vocab_parallel_loss
from alia_ctx.nn.rotary import rotate
from tests import dense

pytestmark = pytest.mark.long

VOCAB, HIDDEN, HEADS, GROUPS, DIM = 19, 12, 4, 2, 8
EXACT = 1e-12  # fp64: what is left is the order of sums
KERNEL = resolve_kernel("reference", "cpu")
ROPE = dense.ALIA_160K
BALANCE = Balance(pairs_per_token=0, tolerance=1.0)  # used where cp is odd


class Alone:
    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"embedding": (VOCAB, HIDDEN), "head": (VOCAB, HIDDEN)}
    for layer in range(2):
        shapes |= {
            f"qkv{layer}": ((HEADS + 2 * GROUPS) * DIM, HIDDEN),
            f"out{layer}": (HIDDEN, HEADS * DIM),
        }
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        .div_(shape[1] ** 0.5)
        .requires_grad_()
        for name, shape in shapes.items()
    }


def emulated_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: np.ndarray, cp: int
) -> Tensor:
    """Attention of a whole row [T, h, d] as `cp` ranks compute it, in row order."""
    length, pieces, order = len(q), [], []
    for rank in range(cp):
        row = row_geometry(
            offsets, length, cp, rank, ROPE, DIM, balance=BALANCE if cp % 2 else None
        )
        tokens = torch.cat([torch.arange(*r) for r in row.rank.ranges])
        # The other ranks rotate their keys by their own positions; a row-wide geometry
        # rotates them all the same.
        whole = row_geometry(offsets, length, 1, 0, ROPE, DIM)
        keys = rotate(k, whole.cos, whole.sin)
        buffer = torch.cat([torch.arange(*r) for r in row.rank.key_ranges])
        key_values = [
            (keys[buffer[slice(*c.keys)]], v[buffer[slice(*c.keys)]])
            for c in row.rank.chunks
        ]
        pieces.append(
            attend(
                rotate(q[tokens], row.cos, row.sin), key_values, row, KERNEL, DIM**-0.5
            )
        )
        order.append(tokens)
    return torch.cat(pieces)[torch.argsort(torch.cat(order))]


def token_losses(
    tokens: Tensor, offsets: np.ndarray, cp: int, weights: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Summed loss and detached loss per token of one row, targets shifted within each document."""
    x = weights["embedding"][tokens]
    for layer in range(2):
        grouped = (x @ weights[f"qkv{layer}"].T).view(len(x), -1, DIM)
        q, k, v = grouped.split([HEADS, GROUPS, GROUPS], dim=1)
        x = x + torch.tanh(
            emulated_attention(q, k, v, offsets, cp).flatten(1)
            @ weights[f"out{layer}"].T
        )
    parts = [
        torch.from_numpy(dense.rank_tokens(len(x), cp, rank)) for rank in range(cp)
    ]
    wanted = targets(tokens, offsets)
    results = [
        vocab_parallel_loss(
            x[part],
            weights["head"],
            wanted[part],
            tp_group=Alone(),
            vocab_size=VOCAB,
            sequence_parallel=False,
            chunk_tokens=7,
        )
        for part in parts
    ]
    losses = torch.cat([r[1].values for r in results])[torch.argsort(torch.cat(parts))]
    return torch.stack([r[0] for r in results]).sum(), losses


def targets(tokens: Tensor, offsets: np.ndarray) -> Tensor:
    shifted = torch.cat([tokens[1:], tokens[:1]]).clone()
    shifted[torch.from_numpy(offsets[1:] - 1)] = IGNORE
    shifted[int(offsets[-1]) :] = IGNORE
    return shifted


@st.composite
def packed_rows(draw: st.DrawFn) -> tuple[Tensor, np.ndarray]:
    """(tokens [T], offsets) with T a multiple of 24, so that cp 1, 2, 3 and 4 divide it;

    fill in some.
    """
    length = 24 * draw(st.integers(1, 5))
    bounds = draw(st.sets(st.integers(1, length), min_size=1, max_size=8))
    seed = draw(st.integers(0, 2**16))
    tokens = torch.randint(
        0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)
    )
    return tokens, np.array([0, *sorted(bounds)], dtype=np.int64)


few = settings(deadline=None, max_examples=60)


@few
@given(packed_rows(), st.sampled_from([1, 2, 3, 4]))
def test_each_document_has_the_loss_that_it_has_alone(
    row: tuple[Tensor, np.ndarray], cp: int
) -> None:
    tokens, offsets = row
    weights = parameters()
    _, losses = token_losses(tokens, offsets, cp, weights)
    for start, stop in pairwise(offsets):
        _, alone = token_losses(
            tokens[start:stop], np.array([0, stop - start]), 1, weights
        )
        torch.testing.assert_close(losses[start:stop], alone, rtol=EXACT, atol=EXACT)
    assert torch.equal(
        losses[int(offsets[-1]) :],
        torch.zeros(len(tokens) - int(offsets[-1]), dtype=torch.float64),
    )


@few
@given(packed_rows(), st.sampled_from([2, 3, 4]))
def test_context_parallel_gradients_equal_those_of_one_rank(
    row: tuple[Tensor, np.ndarray], cp: int
) -> None:
    gradients = []
    for size in (1, cp):
        weights = parameters()
        total, _ = token_losses(*row, size, weights)
        total.backward()
        gradients.append([total.detach(), *(w.grad for w in weights.values())])
    for one, many in zip(*gradients, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-9, atol=1e-11)


@few
@given(packed_rows(), st.sampled_from([1, 2, 4]), st.data())
def test_a_document_never_changes_anothers_loss(
    row: tuple[Tensor, np.ndarray], cp: int, data: st.DataObject
) -> None:
    """Not by a bit: masked weights are exact zeros."""
    tokens, offsets = row
    token = data.draw(st.integers(0, len(tokens) - 1))
    document = np.searchsorted(offsets, token, side="right")
    changed = tokens.clone()
    changed[token] = (changed[token] + data.draw(st.integers(1, VOCAB - 1))) % VOCAB
    weights = parameters()
    before, after = (
        token_losses(each, offsets, cp, weights)[1] for each in (tokens, changed)
    )
    others = torch.from_numpy(
        np.searchsorted(offsets, np.arange(len(tokens)), side="right") != document
    )
    assert torch.equal(before[others], after[others])


@few
@given(packed_rows(), st.sampled_from([1, 2, 4]), st.randoms(use_true_random=False))
def test_permuting_documents_permutes_their_losses(
    row: tuple[Tensor, np.ndarray], cp: int, random: object
) -> None:
    tokens, offsets = row
    documents = list(range(len(offsets) - 1))
    random.shuffle(documents)  # type: ignore[attr-defined]
    pieces = [np.arange(offsets[d], offsets[d + 1]) for d in documents]
    order = np.concatenate([*pieces, np.arange(offsets[-1], len(tokens))])
    moved = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    weights = parameters()
    total, losses = token_losses(tokens, offsets, cp, weights)
    moved_total, moved_losses = token_losses(tokens[order], moved, cp, weights)
    torch.testing.assert_close(moved_losses, losses[order], rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(moved_total, total, rtol=EXACT, atol=EXACT)


@few
@given(packed_rows(), st.data())
def test_no_token_sees_a_later_one(
    row: tuple[Tensor, np.ndarray], data: st.DataObject
) -> None:
    tokens, offsets = row
    token = data.draw(st.integers(0, len(tokens) - 1))
    changed = tokens.clone()
    changed[token] = (changed[token] + 1) % VOCAB
    weights = parameters()
    before, after = (
        token_losses(each, offsets, 2, weights)[1] for each in (tokens, changed)
    )
    assert torch.equal(
        before[: max(token - 1, 0)], after[: max(token - 1, 0)]
    )  # token - 1 has it as its target


@pytest.mark.parametrize("cp", [1, 4])
def test_far_positions_of_a_long_row(cp: int) -> None:
    """Rows long enough for several tiles and key blocks, documents that begin and end
    inside them.
    """
    generator = np.random.default_rng(0)
    length = 4096
    offsets = dense.random_offsets(generator, length, 7, fill=True)
    torch.manual_seed(0)
    exact = [
        torch.randn(length, h, DIM, dtype=torch.float64, requires_grad=True)
        for h in (2, 1, 1)
    ]
    ours = [x.detach().clone().requires_grad_() for x in exact]
    expected = dense.packed(*exact, offsets.tolist(), ROPE)
    out = emulated_attention(*ours, offsets, cp)
    gradient = torch.randn_like(out)
    expected.backward(gradient)
    out.backward(gradient)
    # The reference takes cos and sin in fp64 of the same fp32 angles; ours are fp32,
    # half a unit of 24 bits off.
    assert dense.relative_error(out, expected) < 2**-23
    for mine, theirs in zip(ours, exact, strict=True):
        assert dense.relative_error(mine.grad, theirs.grad) < 2**-23
