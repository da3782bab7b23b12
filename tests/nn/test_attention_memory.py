"""A whole row of 163,840 tokens on a CPU, forward and backward, in under 6 GiB."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.nn.attention_kernels import VarlenSpec, resolve_kernel, varlen_attention
from alia_ctx.nn.attention_reference import BLOCK_KEYS
from tests import dense
from tests.distributed import run_distributed

LENGTH, HEADS, DIM = 163_840, 2, 64
LIMIT_GIB = 6.0


@pytest.mark.timeout(580)
def test_a_packed_row_stays_under_six_gibibytes() -> None:
    """Documents of 1 to 16,384 tokens:

    the tiles and blocks of one long document, at a small part of its time.
    """
    lengths = [1, 16_384, 5, 12_000, 3, 700]
    lengths += [2048] * ((LENGTH - sum(lengths)) // 2048)
    run_distributed(
        attend_within_limit,
        1,
        np.cumsum([0, *lengths, LENGTH - sum(lengths)]),
        timeout=560,
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_document_stays_under_six_gibibytes() -> None:
    run_distributed(attend_within_limit, 1, np.array([0, LENGTH]), timeout=3500)


def attend_within_limit(rank: int, offsets: np.ndarray) -> None:
    """The process is fresh, so that its peak is this row's;

    samples of its results are checked against fp64.
    """
    torch.manual_seed(0)
    q, k, v = (torch.randn(LENGTH, HEADS, DIM).requires_grad_() for _ in range(3))
    spec = VarlenSpec.build(offsets, offsets, "cpu")
    out = varlen_attention(q, k, v, spec, resolve_kernel("reference", "cpu"), DIM**-0.5)
    out.backward(torch.ones_like(out))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak_gib < LIMIT_GIB, f"peak {peak_gib:.2f} GiB"
    check_samples(q, k, v, out, offsets)


def check_samples(q: Any, k: Any, v: Any, out: Any, offsets: np.ndarray) -> None:
    """Rows of the output, and a whole document's gradient of q, that dense fp64 can afford."""
    last = LENGTH - 1
    for token in (0, int(offsets[1]) - 1, BLOCK_KEYS, LENGTH // 2, last):
        start = int(offsets[np.searchsorted(offsets, token, side="right") - 1])
        visible = slice(start, token + 1)
        query, keys, values = (
            x.detach().double() for x in (q[token : token + 1], k[visible], v[visible])
        )
        query.requires_grad_()
        expected = dense.causal(query, keys, values, DIM**-0.5)
        expected.sum().backward()
        assert dense.relative_error(out[token : token + 1], expected) < 1e-5
        assert (q.grad[token] - query.grad[0]).norm() < 1e-5 * max(
            1.0, float(query.grad.norm())
        )
