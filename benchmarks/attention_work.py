"""Attention work, balance and traffic of context parallelism on packed rows: by row and
by document.

    python benchmarks/attention_work.py > docs/benchmarks/attention-work.md

Counts, nothing is timed. All ways split the same rows of 163,840 tokens:

- zigzag: the row is cut in 2*cp chunks whatever the documents; keys go only to ranks
  whose queries see them.
- balanced: the same with up to 8 times as many chunks, dealt by the work in them
  (`nn.context_parallel.Balance`).
- document: each document is padded to a multiple of 2*cp and cut in 2*cp chunks, and
  all keys visit all ranks (what
  Megatron-Core and TransformerEngine do for packed rows; ring or gather, the bytes are the same).

Work is counted twice: (query, key) pairs in the kernel calls, and pairs in the 128 x
128 tiles that FlashAttention computes whole, where short pieces of documents waste
more. Both are given over the pairs that the masks let through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from alia_ctx.nn.context_parallel import Balance, RankGeometry, rank_geometry

LENGTH = 163_840
TILE = 128
ROWS = 8
CONTEXT_PARALLEL = (2, 4, 8, 16, 32)
# ALIA-40b without tensor parallelism: keys and values of 8 heads of 128 in bf16.
BYTES_PER_TOKEN = 2 * 8 * 128 * 2
# Linear work of one ALIA layer in units of one (query, key) pair, both forward:
# 2*754,974,720 against 4*8192 FLOPs.
PAIRS_PER_TOKEN = 2 * 754_974_720 / (4 * 8192)


def web_lengths(generator: np.random.Generator) -> int:
    """Median 800 tokens, mean 1,600: a lognormal like filtered web text."""
    return 1 + int(generator.lognormal(np.log(800), 1.18))


def mixed_lengths(generator: np.random.Generator) -> int:
    """Half of the tokens in web text, half in long documents of 16,384 to 163,840
    tokens, log-uniform.
    """
    if generator.random() < 0.024:  # 0.024 * 64,000 is about 0.976 * 1,600
        return int(np.exp(generator.uniform(np.log(16_384), np.log(LENGTH))))
    return web_lengths(generator)


def pack(lengths: Callable[[np.random.Generator], int], seed: int) -> list[np.ndarray]:
    """Offsets of `ROWS` rows filled in order, documents cut at row ends."""
    generator, rows, left = np.random.default_rng(seed), [], 0
    while len(rows) < ROWS:
        offsets = [0]
        while offsets[-1] < LENGTH:
            left = left or lengths(generator)
            taken = min(left, LENGTH - offsets[-1])
            offsets.append(offsets[-1] + taken)
            left -= taken
        rows.append(np.array(offsets))
    return rows


def tile_pairs(queries: np.ndarray, keys: np.ndarray) -> int:
    """Pairs in the tiles that a kernel computes for pieces of `queries` queries that
    end at their `keys`-th key.
    """
    total = 0
    for n, m in zip(queries.tolist(), keys.tolist(), strict=True):
        last_keys = (
            m - n + np.minimum(np.arange(TILE, n + TILE, TILE), n)
        )  # of each tile of queries
        total += int(np.ceil(last_keys / TILE).sum()) * TILE * TILE
    return total


def row_split(
    offsets: np.ndarray, cp: int, balance: Balance | None
) -> dict[str, np.ndarray]:
    """Per rank: pairs, tile pairs, tokens received, tokens computed, kernel calls."""
    ranks = [rank_geometry(offsets, LENGTH, cp, rank, balance) for rank in range(cp)]

    def tiles(rank: RankGeometry) -> int:
        return sum(
            tile_pairs(np.diff(c.query_offsets), np.diff(c.key_offsets))
            for c in rank.chunks
        )

    return {
        "pairs": np.array(
            [sum(c.attended_pairs() for c in rank.chunks) for rank in ranks]
        ),
        "tiles": np.array([tiles(rank) for rank in ranks]),
        "received": np.array([sum(t.length for t in rank.receives) for rank in ranks]),
        "tokens": np.array([rank.tokens for rank in ranks]),
        "calls": np.array([len(rank.chunks) for rank in ranks]),
    }


def document_zigzag(offsets: np.ndarray, cp: int) -> dict[str, np.ndarray]:
    lengths = np.diff(offsets)
    chunks = -(-lengths // (2 * cp))  # of each document, padded
    padded = chunks * 2 * cp
    results: dict[str, list[int]] = {"pairs": [], "tiles": []}
    for rank in range(cp):
        ends = [(rank + 1) * chunks, (2 * cp - rank) * chunks]
        results["pairs"].append(
            int(sum((chunks * end - chunks * (chunks - 1) // 2).sum() for end in ends))
        )
        results["tiles"].append(sum(tile_pairs(chunks, end) for end in ends))
    total = int(padded.sum())
    return {
        **{name: np.array(values) for name, values in results.items()},
        "received": np.full(cp, total * (cp - 1) // cp),
        "tokens": np.full(cp, total // cp),
        "calls": np.full(cp, 2),
    }


def measure(
    rows: list[np.ndarray],
    cp: int,
    split: Callable[[np.ndarray, int], dict[str, np.ndarray]],
) -> list[str]:
    """The table's cells for one way of splitting."""
    parts = [split(offsets, cp) for offsets in rows]
    least = sum(int((n * (n + 1) // 2).sum()) for n in map(np.diff, rows))
    pairs, tiles = (
        sum(int(p[name].sum()) for p in parts) / least for name in ("pairs", "tiles")
    )
    attention = np.mean([p["tiles"].max() / p["tiles"].mean() for p in parts])
    layers = [p["tiles"] + p["tokens"] * PAIRS_PER_TOKEN for p in parts]
    layer = np.mean([work.max() / work.mean() for work in layers])
    padding = sum(int(p["tokens"].sum()) for p in parts) / (LENGTH * len(rows)) - 1
    mib = np.mean([p["received"].max() for p in parts]) * BYTES_PER_TOKEN / 2**20
    # Slowest rank against an even split of what the masks and the real tokens need:
    # what a step waits for.
    ideal = (
        np.array([int((n * (n + 1) // 2).sum()) for n in map(np.diff, rows)])
        + LENGTH * PAIRS_PER_TOKEN
    )
    wait = np.mean(
        [work.max() * cp / need for work, need in zip(layers, ideal, strict=True)]
    )
    return [
        f"{pairs:.3f}",
        f"{tiles:.3f}",
        f"{attention:.3f}",
        f"{layer:.3f}",
        f"{100 * padding:.2f}%",
        f"{mib:.0f}",
        f"{np.mean([p['calls'].max() for p in parts]):.1f}",
        f"{wait:.3f}",
    ]


def main() -> None:
    print(f"# Attention work of context parallelism at {LENGTH:,} tokens\n")
    print(
        "Made by `python benchmarks/attention_work.py`; counts of the same rows, so "
        "the machine does not matter.\n"
    )
    print((__doc__ or "").split("\n\n", 2)[2].strip() + "\n")
    print(
        "Columns: pairs and tiles over the least; the busiest rank's attention, and "
        "its whole layer (attention and\n"
        "linear, ALIA-40b), over the mean; padding tokens added; MiB that the busiest "
        "rank receives a layer forward\n"
        "(all 8 KV heads in bf16; divide by TP; backward returns as much); kernel "
        "calls a layer of the rank with\n"
        "most; and the busiest rank's layer work over an even share of what is needed, "
        "which a step waits for.\n"
        f"Means of {ROWS} rows.\n"
    )
    splits = {
        "zigzag": partial(row_split, balance=None),
        "balanced": partial(row_split, balance=Balance(PAIRS_PER_TOKEN)),
        "document": document_zigzag,
    }
    kinds = {
        "One document": [np.array([0, LENGTH])] * ROWS,
        "Half long documents, half web text": pack(mixed_lengths, 0),
        "Web text only": pack(web_lengths, 1),
    }
    for kind, rows in kinds.items():
        documents = np.concatenate([np.diff(row) for row in rows])
        print(
            f"## {kind}\n\n{len(documents)} pieces in {ROWS} rows, "
            f"median {np.median(documents):.0f} tokens, "
            f"longest {documents.max():,}.\n"
        )
        print(
            "| cp | split | pairs | tiles | attention | layer | padding | MiB received "
            "| calls | step wait |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for cp in CONTEXT_PARALLEL:
            for name, split in splits.items():
                print("|", " | ".join([str(cp), name, *measure(rows, cp, split)]), "|")
        print()


if __name__ == "__main__":
    main()
