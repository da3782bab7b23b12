"""Blocked causal attention of packed documents in plain torch: the reference kernel, and
the one that CPUs train with.

No score matrix larger than one tile of queries by one block of keys exists at any time
(the online softmax of FlashAttention, arXiv 2205.14135); the backward recomputes the
scores from the saved logsumexp. Blocks that no query sees are never formed. Key/value
heads are not expanded: the query heads that share one are stacked as rows.

Shapes: Tq queries, Tk keys, g key/value heads, r query heads each, d head_dim; a tile
of n queries has n*r rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of 64 to 256 by 512 to 1,024 the fastest on most shapes, on a core with 1 MiB of L2:
# scores stay in cache, masked corners small.
TILE_QUERIES = 64
BLOCK_KEYS = 512


@dataclass(frozen=True)
class Tile:
    """Queries [query_start, query_stop) that together see the keys [key_start, key_stop).

    Its last key is its last query, so the final n columns of its scores are a square
    with a causal diagonal, and every column before them is visible to all n queries.
    `starts` is None for queries of one document; otherwise the tile is made of whole
    documents, has no columns but the square, and `starts` (int64 [n]) gives for each
    query the column at which its document starts.
    """

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    starts: np.ndarray | None = None

    @property
    def queries(self) -> int:
        return self.query_stop - self.query_start


def tiles(
    query_offsets: np.ndarray, key_offsets: np.ndarray, size: int = TILE_QUERIES
) -> tuple[Tile, ...]:
    """Cut packed documents in tiles of at most `size` queries;

    short whole documents share a tile.
    """
    cut: list[Tile] = []
    pending: list[int] = []  # documents that wait to share a tile
    for document, (queries, keys) in enumerate(
        zip(np.diff(query_offsets), np.diff(key_offsets), strict=True)
    ):
        shares = queries == keys and queries <= size
        if pending and (
            not shares or query_offsets[document + 1] - query_offsets[pending[0]] > size
        ):
            cut.append(_shared_tile(pending, query_offsets, key_offsets))
            pending = []
        if shares:
            pending.append(document)
        else:
            cut.extend(_document_tiles(document, query_offsets, key_offsets, size))
    if pending:
        cut.append(_shared_tile(pending, query_offsets, key_offsets))
    return tuple(cut)


def _shared_tile(
    documents: list[int], query_offsets: np.ndarray, key_offsets: np.ndarray
) -> Tile:
    first, end = documents[0], documents[-1] + 1
    bounds = query_offsets[first : end + 1] - query_offsets[first]
    starts = np.repeat(bounds[:-1], np.diff(bounds)) if len(documents) > 1 else None
    queries, keys = query_offsets[[first, end]], key_offsets[[first, end]]
    return Tile(int(queries[0]), int(queries[1]), int(keys[0]), int(keys[1]), starts)


def _document_tiles(
    document: int, query_offsets: np.ndarray, key_offsets: np.ndarray, size: int
) -> Iterator[Tile]:
    start, stop = (int(o) for o in query_offsets[document : document + 2])
    key_start, key_stop = (int(o) for o in key_offsets[document : document + 2])
    for low in range(start, stop, size):
        high = min(low + size, stop)
        yield Tile(low, high, key_start, key_stop - (stop - high))


def blocked_attention(
    q_qhd: Tensor, k_kgd: Tensor, v_kgd: Tensor, tiles: tuple[Tile, ...], scale: float
) -> Tensor:
    """Attention output [Tq, h, d] in the dtype of `q_qhd`;

    computed in fp32 (fp64 for fp64 inputs).
    """
    output: Tensor = _BlockedAttention.apply(  # type: ignore[no-untyped-call]
        q_qhd, k_kgd, v_kgd, tiles, scale
    )
    return output


@lru_cache(maxsize=8)
def _causal_bias(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((n, n), -torch.inf, dtype=dtype, device=device).triu_(1)


def _square_bias(tile: Tile, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask [n, n] of a tile's last n columns: 0 where visible, -inf elsewhere."""
    bias = _causal_bias(tile.queries, dtype, device)
    if tile.starts is None:
        return bias
    starts = torch.from_numpy(tile.starts).to(device)
    columns = torch.arange(tile.queries, device=device)
    return bias.masked_fill(columns[None, :] < starts[:, None], -torch.inf)


def _key_blocks(tile: Tile) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, has_square) of the tile's key blocks;

    the first has the square, and so a key of each query.
    """
    square = tile.key_stop - tile.queries
    if tile.key_stop - tile.key_start <= BLOCK_KEYS:
        yield tile.key_start, tile.key_stop, True
        return
    yield square, tile.key_stop, True
    for low in range(tile.key_start, square, BLOCK_KEYS):
        yield low, min(low + BLOCK_KEYS, square), False


def _grouped(x_qhd: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """[Tq, h, d] -> contiguous [g, Tq*r, d]:

    row i*r+j is query i of the j-th head that shares a key head.
    """
    tokens, heads, dim = x_qhd.shape
    x = x_qhd.detach().to(dtype).view(tokens, groups, heads // groups, dim)
    return x.permute(1, 0, 2, 3).reshape(groups, -1, dim)


def _ungrouped(x_gqd: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    tokens, _, dim = shape
    x = x_gqd.view(x_gqd.shape[0], tokens, -1, dim).permute(1, 0, 2, 3)
    return x.to(dtype).reshape(shape)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_qhd: Tensor,
        k_kgd: Tensor,
        v_kgd: Tensor,
        tiles: tuple[Tile, ...],
        scale: float,
    ) -> Tensor:
        compute, groups = (
            torch.promote_types(q_qhd.dtype, torch.float32),
            k_kgd.shape[1],
        )
        q, k, v = (_grouped(x, groups, compute) for x in (q_qhd, k_kgd, v_kgd))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2])
        repeat = q_qhd.shape[1] // groups
        for tile in tiles:
            rows = slice(tile.query_start * repeat, tile.query_stop * repeat)
            _tile_forward(q[:, rows] * scale, k, v, tile, out[:, rows], lse[:, rows])
        out_qhd = _ungrouped(out, q_qhd.shape, q_qhd.dtype)
        ctx.save_for_backward(q_qhd, k_kgd, v_kgd, out_qhd, lse)
        ctx.tiles, ctx.scale = tiles, scale
        return out_qhd

    @staticmethod
    def backward(ctx: Any, grad_qhd: Tensor) -> tuple[Tensor | None, ...]:
        q_qhd, k_kgd, v_kgd, out_qhd, lse = ctx.saved_tensors
        groups = k_kgd.shape[1]
        q, k, v, out, grad = (
            _grouped(x, groups, lse.dtype)
            for x in (q_qhd, k_kgd, v_kgd, out_qhd, grad_qhd)
        )
        delta = (out * grad).sum(-1)
        del out
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        repeat = q_qhd.shape[1] // groups
        for tile in ctx.tiles:
            rows = slice(tile.query_start * repeat, tile.query_stop * repeat)
            q_rows = q[:, rows] * ctx.scale
            _tile_backward(
                q_rows,
                k,
                v,
                grad[:, rows],
                tile,
                lse[:, rows],
                delta[:, rows],
                dq[:, rows],
                dk,
                dv,
            )
        dq *= ctx.scale
        return (
            _ungrouped(dq, q_qhd.shape, q_qhd.dtype),
            _ungrouped(dk, k_kgd.shape, k_kgd.dtype),
            _ungrouped(dv, v_kgd.shape, v_kgd.dtype),
            None,
            None,
        )


def _mask_square(scores: Tensor, tile: Tile) -> None:
    """Add the mask to the last n columns of `scores` [g, n*r, columns], in place."""
    n = tile.queries
    square = scores[..., scores.shape[-1] - n :]
    square.unflatten(1, (n, -1)).add_(
        _square_bias(tile, scores.dtype, scores.device)[:, None, :]
    )


def _tile_forward(
    q: Tensor, k: Tensor, v: Tensor, tile: Tile, out: Tensor, lse: Tensor
) -> None:
    """Fill `out` [g, n*r, d] and `lse` [g, n*r] of one tile; `q` is scaled."""
    out.zero_()
    peak, total = (
        q.new_full((*q.shape[:2], 1), -torch.inf),
        q.new_zeros((*q.shape[:2], 1)),
    )
    for start, stop, has_square in _key_blocks(tile):
        scores = torch.bmm(q, k[:, start:stop].transpose(1, 2))
        if has_square:
            _mask_square(scores, tile)
        new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
        shrink = peak.sub_(new_peak).exp_()
        scores.sub_(new_peak).exp_()
        total.mul_(shrink).add_(scores.sum(-1, keepdim=True))
        out.mul_(shrink).baddbmm_(scores, v[:, start:stop])
        peak = new_peak
    out.div_(total)
    lse.copy_(total.log_().add_(peak).squeeze(-1))


def _tile_backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, tile: Tile, lse: Tensor, delta: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Fill `dq` of one tile (not yet scaled) and add its share to `dk` and `dv`; `q` is scaled."""
    dq.zero_()
    for start, stop, has_square in _key_blocks(tile):
        k_block, v_block = k[:, start:stop], v[:, start:stop]
        weights = torch.bmm(q, k_block.transpose(1, 2))
        if has_square:
            _mask_square(weights, tile)
        weights.sub_(lse[..., None]).exp_()
        dv[:, start:stop].baddbmm_(weights.transpose(1, 2), grad)
        dscores = (
            torch.bmm(grad, v_block.transpose(1, 2))
            .sub_(delta[..., None])
            .mul_(weights)
        )
        dq.baddbmm_(dscores, k_block)
        dk[:, start:stop].baddbmm_(dscores.transpose(1, 2), q)
