"""Dense fp64 attention of packed documents, one document at a time:

what all else is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from alia_ctx.nn.rotary import inverse_frequencies
from alia_ctx.spec.layout import zigzag_chunks
from alia_ctx.spec.rope import RopeSpec

ALIA_160K = RopeSpec(
    "llama3", 1e4, 40.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0
)


def causal(q_qhd: Tensor, k_kgd: Tensor, v_kgd: Tensor, scale: float) -> Tensor:
    """Bottom-right causal attention of one document, by the definition."""
    repeat = q_qhd.shape[1] // k_kgd.shape[1]
    k, v = (x.repeat_interleave(repeat, dim=1) for x in (k_kgd, v_kgd))
    scores = torch.einsum("qhd,khd->hqk", q_qhd, k) * scale
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(
        scores.shape[2] - scores.shape[1] + 1
    )
    return torch.einsum(
        "hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v
    )


def rotate(x_Thd: Tensor, rope: RopeSpec, context: int) -> Tensor:
    """Rotate one document from position 0.

    The angles are fp32 like the product's, the rest is fp64.
    """
    frequencies, scaling = inverse_frequencies(rope, x_Thd.shape[-1], context)
    angles = (torch.arange(len(x_Thd), dtype=torch.float32)[:, None] * frequencies)[
        :, None
    ]
    pairs = torch.complex(*x_Thd.chunk(2, dim=-1)) * torch.polar(
        torch.tensor(scaling).double(), angles.double()
    )
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Sequence[int],
    rope: RopeSpec | None = None,
) -> Tensor:
    """Each document [offsets[i], offsets[i+1]) alone;

    the fill after the last one too. Rotated if `rope` is given.
    """
    ends = [*offsets, len(q)] if offsets[-1] < len(q) else list(offsets)
    outputs = []
    for start, stop in pairwise(ends):
        own_q, own_k, own_v = (x[start:stop] for x in (q, k, v))
        if rope is not None:
            own_q, own_k = (rotate(x, rope, len(q)) for x in (own_q, own_k))
        outputs.append(causal(own_q, own_k, own_v, q.shape[-1] ** -0.5))
    return torch.cat(outputs)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float(
        (ours.detach().double() - expected.detach()).norm() / expected.detach().norm()
    )


def rank_tokens(length: int, cp: int, rank: int) -> np.ndarray:
    """Row tokens that a rank of the zigzag holds, in the order in which it holds them."""
    return np.concatenate(
        [np.arange(start, stop) for start, stop in zigzag_chunks(length, cp, rank)]
    )


def random_offsets(
    generator: np.random.Generator, length: int, documents: int, fill: bool
) -> np.ndarray:
    """Bounds of `documents` documents of random lengths, the last ending before
    `length` if `fill`.
    """
    end = int(generator.integers(documents, length)) if fill else length
    inner = generator.choice(np.arange(1, end), size=documents - 1, replace=False)
    return np.concatenate([[0], np.sort(inner), [end]]).astype(np.int64)
