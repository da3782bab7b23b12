"""Documents of a packed row, and which of its tokens a context-parallel rank holds under the
rules of programs that cut each document on its own.
"""

from __future__ import annotations

import numpy as np

from benchmarks.attention_work import web_lengths

PADDING = -1
KINDS = ("one", "8k", "short", "web", "mixed")


def offsets_of(kind: str, length: int) -> np.ndarray:
    """Bounds of the documents of a row of `length` tokens, int64 [n+1].

    `one` document; `8k`, of 4,096 to 8,192 tokens; `short`, of 2,048; `web`, of lengths
    like filtered web text; `mixed`, half of the row one document and the rest `web`. The
    last document is cut at the row's end.
    """
    generator = np.random.default_rng(0)
    draw = {
        "one": lambda: length,
        "8k": lambda: int(generator.integers(4096, 8193)),
        "short": lambda: 2048,
        "web": lambda: web_lengths(generator),
        "mixed": lambda: web_lengths(generator),
    }[kind]
    lengths = [length // 2] if kind == "mixed" else []
    while (left := length - sum(lengths)) > 0:
        lengths.append(min(left, draw()))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def row_of(text: str) -> str:
    """The text, where it names a row, length:documents; else ValueError."""
    length, _, kind = text.partition(":")
    if not length.isdigit() or int(length) < 1 or kind not in KINDS:
        raise ValueError(f"a row is length:documents, these one of {', '.join(KINDS)}")
    return text


def pairs(offsets: np.ndarray) -> float:
    """(query, key) pairs that the causal mask of each document lets through."""
    lengths = np.diff(offsets).astype(float)
    return float((lengths * (lengths + 1) / 2).sum())


def padded(offsets: np.ndarray, multiple: int) -> np.ndarray:
    """Bounds of the same documents, each filled up to a multiple of `multiple` tokens."""
    lengths = -(-np.diff(offsets) // multiple) * multiple
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def dual_chunks(offsets: np.ndarray, cp: int, rank: int) -> np.ndarray:
    """Tokens of the row that `rank` holds, int64, where each document is filled up to a
    multiple of 2*cp, cut in 2*cp chunks, and rank r has chunks r and 2*cp-1-r of each:
    TransformerEngine's order (its `attn_forward_func_with_cp`), and that of
    ring-flash-attn's zigzag. `PADDING` where a document was filled up.
    """
    held = []
    for start, stop, fill in zip(
        offsets[:-1], offsets[1:], np.diff(padded(offsets, 2 * cp)), strict=True
    ):
        tokens = np.full(fill, PADDING, np.int64)
        tokens[: stop - start] = np.arange(start, stop)
        chunks = tokens.reshape(2 * cp, -1)
        held += [chunks[rank], chunks[2 * cp - 1 - rank]]
    return np.concatenate(held)


def even_share(length: int, cp: int, rank: int) -> np.ndarray:
    """Tokens of `rank` where each has an even share of the row, in order."""
    return np.arange(rank * length // cp, (rank + 1) * length // cp)
