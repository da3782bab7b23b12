"""Small stores and plans that the packing tests share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from alia_ctx.data.packing import PackPlan, PackSpec
from alia_ctx.data.tokens import TokenStore, write_store

SPEC = PackSpec("best_fit", "split")
VERSION_0_1 = Path(__file__).with_name("version_0_1")  # made by that version's code
LENGTHS = [5, 9, 30, 2, 17] * 8


def make_store(folder: Path, lengths: list[int], first: int = 0) -> TokenStore:
    """A store in which each token is a number of its own, from `first`."""
    ends = np.cumsum([first, *lengths])
    return write_store(folder, [np.arange(a, b) for a, b in pairwise(ends)], 1 << 20)


def tokens_in(store: TokenStore, keep: object = lambda length: length >= 2) -> set[int]:
    lengths = store.lengths.tolist()
    return {
        int(t)
        for n, length in enumerate(lengths)
        if keep(length)
        for t in store.document(n)
    }  # type: ignore[operator]


def tokens_of(plan: PackPlan, rows: range | None = None) -> Counter[int]:
    """How often each token is in the plan's rows."""
    counts: Counter[int] = Counter()
    for index in rows or range(len(plan)):
        row = plan.row(index)
        counts.update(row.tokens(0, row.real_tokens).tolist())
    return counts


def pieces_of(plan: PackPlan) -> Iterator[tuple[int, str, int, range]]:
    """(row, source, document, tokens of the document) of each piece, in training order."""
    for index in range(len(plan)):
        row = plan.row(index)
        for number, source, start, size in zip(
            row.doc_ids.tolist(),
            row.sources.tolist(),
            row.piece_starts.tolist(),
            np.diff(row.doc_offsets).tolist(),
            strict=True,
        ):
            yield index, plan.sources[source], number, range(start, start + size)


def trained(plan: PackPlan) -> set[tuple[int, int]]:
    """(document, token) of all rows."""
    return {(number, at) for _, _, number, piece in pieces_of(plan) for at in piece}


def order_problems(plans: list[PackPlan], stores: dict[str, TokenStore]) -> list[str]:
    """Every token that is trained on a second time before every document of its source
    was trained on once, but for rests of one token, which predict nothing.
    """
    problems = []
    left = {
        (name, number): set(range(int(length)))
        for name, store in stores.items()
        for number, length in enumerate(store.lengths)
        if length >= 2
    }
    waiting = Counter(name for name, _ in left)
    for plan in plans:
        for index, name, number, piece in pieces_of(plan):
            rest, tokens = left[name, number], set(piece)
            if waiting[name] and not tokens <= rest:
                problems.append(
                    f"{plan.directory.name} row {index}: {name}/{number} again"
                )
            before = _runs(rest)
            rest -= tokens
            waiting[name] -= bool(before) and not _runs(rest)
    return problems


def _runs(tokens: set[int]) -> bool:
    """Whether two tokens in a row are among them."""
    return any(token + 1 in tokens for token in tokens)
