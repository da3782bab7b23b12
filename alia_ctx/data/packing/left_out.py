"""What evaluation keeps from training: what a plan says of it, and which documents it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import xxhash

from alia_ctx.data.tokens import TokenStore


def held_out_statement(
    *held_out: TokenStore | None, kept_out: Mapping[str, np.ndarray] | None = None
) -> str | None:
    """What a plan says of the stores that it was cleared of, and of documents that it
    leaves out by their numbers; None of neither.
    """
    parts = [store.fingerprint for store in held_out if store is not None]
    if statement := kept_out_statement(kept_out or {}):
        parts.append(statement)
    return "+".join(parts) or None


def kept_out_statement(kept_out: Mapping[str, np.ndarray]) -> str | None:
    """What a plan says of documents that it leaves out by their numbers."""
    digest = xxhash.xxh3_128()
    for name, numbers in sorted(kept_out.items()):
        if numbers.size:
            digest.update(f"{name} {numbers.size} ".encode())
            digest.update(numbers.astype("<i8").tobytes())
    some = any(numbers.size for numbers in kept_out.values())
    return f"kept_out:{digest.hexdigest()}" if some else None


def all_left_out(
    names: Iterable[str], *parts: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray] | None:
    """Numbers of documents that any of `parts` leaves out of each source, rising; None
    where none leaves out any.
    """
    given = [part for part in parts if part]
    if not given:
        return None
    none = np.empty(0, np.int64)
    return {
        name: np.unique(np.concatenate([part.get(name, none) for part in given]))
        for name in names
    }
