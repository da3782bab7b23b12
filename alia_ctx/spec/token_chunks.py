"""How a rank's tokens are cut for `engine.tp_overlap_chunks`: what the engine does, and what
rules and notes say of it.
"""

from __future__ import annotations

# Rows that a kernel multiplies at once: others at a chunk's end would be computed for nothing.
TILE = 128


def chunk_tokens(tokens: int, count: int) -> int:
    """Tokens of each chunk but the last, which may have fewer, where `tokens` are cut into at
    most `count`: whole tiles where a chunk is longer than one.
    """
    length = max(1, -(-tokens // count))
    return length if length <= TILE else -(-length // TILE) * TILE


def most_chunks(tokens: int) -> int:
    """Chunks of at least a tile that `tokens` can be cut into."""
    return max(1, tokens // TILE)
