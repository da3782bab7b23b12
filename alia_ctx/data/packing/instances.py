"""Updates of conversations: which documents an update has, and how few places its rows
take.

An epoch is each conversation once, in an order that the seed decides, cut in updates of
so many conversations each; the last update of an epoch has what is left. So the updates
of an epoch are the same whatever epochs follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from alia_ctx.data.packing.blend import Corpus, gather_corpus, shuffled
from alia_ctx.data.packing.plan_files import PackedRows, Statement, load_arrays
from alia_ctx.data.packing.policies import best_fit, cut_long
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

_PARTS = 128  # of a row: rows of conversations end at one of so many places
_LEAST_MULTIPLE = 64


def shortest_row(row_length: int) -> int:
    """What the lengths of rows of conversations are multiples of, and their least.

    The rows of an update are as long as the fullest of them needs, rounded up to a
    128th of the context (64 tokens at least), which layouts must divide.
    """
    multiple = max(row_length // _PARTS, _LEAST_MULTIPLE)
    return multiple if row_length % multiple == 0 else row_length


def row_lengths(
    tokens: np.ndarray, update_offsets: np.ndarray, row_length: int
) -> np.ndarray:
    """Places of each row, int64 [rows], of rows that hold `tokens`: one length for all
    rows of an update.
    """
    multiple = shortest_row(row_length)
    fullest = np.maximum.reduceat(tokens, update_offsets[:-1])
    lengths = np.minimum(-(-fullest // multiple) * multiple, row_length)
    return np.repeat(lengths, np.diff(update_offsets))


def held_out_shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` over sources of so many conversations, by largest remainders."""
    total = sum(sizes.values())
    if count >= total:
        raise DataError(
            f"pack.held_out_instances={count} of {total} conversations leaves none to "
            "train on; hold out fewer"
        )
    exact = {name: count * size / total for name, size in sizes.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def draw_held_out(
    stores: Mapping[str, TokenStore], spec: PackSpec, seed: int
) -> dict[str, np.ndarray]:
    """Numbers of the conversations of each source that are kept for evaluation, rising.

    They depend on the stores and the seed alone, so that all stages keep the same ones.
    Text without loss weights gives none, where other sources have weights.
    """
    weighted = {name for name, store in stores.items() if store.weights is not None}
    candidates = {
        name: np.flatnonzero(store.lengths >= 2)
        for name, store in stores.items()
        if name in weighted or not weighted
    }
    sizes = {name: numbers.size for name, numbers in candidates.items()}
    shares = held_out_shares(sizes, spec.held_out_instances)
    return {
        name: np.sort(
            numbers[shuffled(numbers.size, f"held_out/{seed}/{name}")[: shares[name]]]
        )
        for name, numbers in candidates.items()
    }


def gather_instances(
    stores: Mapping[str, TokenStore],
    spec: PackSpec,
    row_length: int,
    seed: int,
    held_out: Mapping[str, np.ndarray],
    contaminated: Mapping[str, np.ndarray] | None,
) -> Corpus:
    """The conversations that are trained on, and how many are not and why.

    DataError where one is longer than a row and would be cut: what is left of a
    conversation answers what the model does not see.
    """
    for name, store in stores.items():
        long = int(np.count_nonzero(store.lengths > row_length))
        if long and store.weights is not None and spec.long_docs == "split":
            raise DataError(
                f"source {name}: {long} conversations are longer than a row of "
                f"{row_length} tokens and would be cut; set pack.long_docs to drop, or "
                "shorten them where they are made"
            )
    left_out = contaminated
    if left_out is not None:
        left_out = {
            name: np.setdiff1d(numbers, held_out.get(name, ()))
            for name, numbers in left_out.items()
        }
    corpus = gather_corpus(stores, spec, row_length, left_out)
    usable, dropped = [], {}
    for number, name in enumerate(corpus.names):
        first, last = corpus.base[number : number + 2]
        own = corpus.usable[(corpus.usable >= first) & (corpus.usable < last)]
        kept = np.setdiff1d(own, held_out.get(name, np.empty(0, np.int64)) + first)
        most = spec.max_instances.get(name, kept.size)
        chosen = shuffled(kept.size, f"instances/{seed}/{name}/most")[:most]
        usable.append(np.sort(kept[chosen]))
        dropped[name] = {
            **corpus.dropped[name],
            "held_out_documents": own.size - kept.size,
            "surplus_documents": kept.size - usable[-1].size,
        }
    return Corpus(
        corpus.names, corpus.base, corpus.lengths, np.concatenate(usable), dropped
    )


def epoch_order(corpus: Corpus, spec: PackSpec, epoch: int, seed: int) -> np.ndarray:
    """Numbers of the documents of an epoch (from 0), int64, in training order.

    A source that comes `sampling` times an epoch is a stream of passes, each in an order
    of its own, of which the epoch takes the next part.
    """
    owner = corpus.source_of(corpus.usable)
    parts = [np.empty(0, np.int64)]
    for number, name in enumerate(corpus.names):
        documents = corpus.usable[owner == number]
        size, often = documents.size, spec.sampling.get(name, 1.0)
        begin, end = _part(epoch, often, size)
        for done in range(begin // max(size, 1), -(-end // max(size, 1))):
            order = shuffled(size, f"instances/{seed}/{name}/{done}")
            low, high = max(begin - done * size, 0), min(end - done * size, size)
            parts.append(documents[order[low:high]])
    drawn = np.concatenate(parts)
    order = shuffled(drawn.size, f"instances/{seed}/epoch/{epoch}")
    return np.take(drawn, order)


def updates_of_epochs(statement: Statement, epochs: int) -> int:
    """Updates that the first `epochs` epochs of a plan of conversations have."""
    sampling = statement.identity["spec"].get("sampling", {})
    used = {
        name: counts["used"]
        for name, counts in statement.stats["conversations"]["sources"].items()
    }
    updates = 0
    for epoch in range(epochs):
        parts = (_part(epoch, sampling.get(n, 1.0), size) for n, size in used.items())
        drawn = sum(end - begin for begin, end in parts)
        updates += -(-drawn // statement.identity["update_instances"])
    return updates


def first_row_of_update(statement: Statement, update: int) -> int:
    """The first row of an update of a plan, or its rows behind the last one."""
    return int(load_arrays(statement, verify=False)["update_offsets"][update])


def _part(epoch: int, often: float, size: int) -> tuple[int, int]:
    """Begin and end of an epoch in the stream of passes through a source."""
    return round(epoch * often * size), round((epoch + 1) * often * size)


class PackedUpdates(NamedTuple):
    """Rows of whole updates: rows of each update int64 [updates], pieces of each row
    int64 [rows], and the pieces' documents int64, starts uint32 and lengths int32.
    """

    rows: np.ndarray
    pieces: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def pack_epochs(
    corpus: Corpus,
    spec: PackSpec,
    row_length: int,
    update_instances: int,
    epochs: range,
    seed: int,
    report: Callable[[str, float], None],
) -> PackedUpdates:
    """Pack the updates of `epochs`, one after another, each by itself.

    DataError where an epoch has no conversation.
    """
    updates: list[_Update] = []
    for epoch in epochs:
        order = epoch_order(corpus, spec, epoch, seed)
        if not order.size:
            raise DataError(
                f"epoch {epoch + 1} has no conversation (pack.sampling={spec.sampling}); "
                "sample more often"
            )
        lengths = corpus.lengths[order]
        for first in range(0, order.size, update_instances):
            part = slice(first, first + update_instances)
            updates.append(
                _pack_update(order[part], lengths[part], row_length, spec.min_rows)
            )
        done = (epoch + 1 - epochs.start) / len(epochs)
        report(f"{len(updates)} updates packed", 0.05 + 0.85 * done)
    return PackedUpdates(
        np.array([update.pieces.size for update in updates], np.int64),
        *(np.concatenate(arrays) for arrays in zip(*updates, strict=True)),
    )


class _Update(NamedTuple):
    pieces: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def _pack_update(
    documents: np.ndarray, lengths: np.ndarray, row_length: int, min_rows: int
) -> _Update:
    """As few rows as hold the update's tokens, or `min_rows` where they stay as long as
    the longest piece; of those, the shortest rows in which best-fit finds room.
    """
    document, start, length = cut_long(documents, lengths, row_length)
    total, longest = int(length.sum(dtype=np.int64)), int(length.max())
    multiple = shortest_row(row_length)
    rows = max(-(-total // row_length), min(min_rows, total // longest))
    numbers = np.arange(length.size)
    while True:
        least = max(longest, -(-total // rows))
        for room in range(-(-least // multiple) * multiple, row_length + 1, multiple):
            packed = best_fit(numbers, length, room)
            if packed.bins <= rows:
                order = packed.document
                counts = np.bincount(packed.bin)
                return _Update(
                    counts,
                    document[order],
                    start[order].astype(np.uint32),
                    packed.length,
                )
        rows += 1


def rows_of_updates(
    packed: PackedUpdates, row_length: int
) -> tuple[PackedRows, np.ndarray]:
    """The arrays of a plan, without what its rows predict, and the first row of each
    update.
    """
    offsets = np.concatenate(([0], np.cumsum(packed.pieces)))
    update_offsets = np.concatenate(([0], np.cumsum(packed.rows)))
    sizes = packed.lengths.astype(np.int64)
    tokens = np.add.reduceat(sizes, offsets[:-1])
    padding = row_lengths(tokens, update_offsets, row_length) - tokens
    pairs = np.add.reduceat(sizes * (sizes + 1) // 2, offsets[:-1])
    pairs += padding * (padding + 1) // 2
    rows = PackedRows(
        offsets, pairs, np.empty(0, np.int64),
        packed.documents, packed.starts, packed.lengths,
    )  # fmt: skip
    return rows, update_offsets
