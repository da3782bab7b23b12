"""What rows that were planned before have trained on: how often each document, and which
parts of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError

_LEAST_TOKENS = 2  # fewer predict nothing


class Spans(NamedTuple):
    """Tokens [start, start + length) of documents; int64 [n] each, `length` of any integer
    type.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray


NO_SPANS = Spans(*[np.empty(0, np.int64)] * 3)


class PlannedRows(NamedTuple):
    """What is asked of an earlier plan: its sources, with the fingerprints of their
    stores and the number of documents of each, and its pieces, documents being numbered
    through all its sources.
    """

    stores: Sequence[Sequence[str]]
    documents: Sequence[int]
    pieces: Spans


@dataclass(frozen=True)
class History:
    """How often the documents of a corpus were trained on.

    times: int64 [documents], how often the whole of each was.
    rest: of documents trained on `times` times and in part once more (or more often),
        the parts that were not. Parts of fewer than 2 tokens, which would predict
        nothing, are taken as trained on.
    tokens: int64 [documents], tokens trained on, repetitions counted.
    """

    times: np.ndarray
    rest: Spans
    tokens: np.ndarray


def history_of(lengths: np.ndarray, pieces: Spans) -> History:
    """The history that training on `pieces` makes, for documents of `lengths` tokens."""
    document, start, length = (np.asarray(a, np.int64) for a in pieces)
    tokens = np.bincount(document, length, lengths.size).astype(np.int64)
    whole = (start == 0) & (length == lengths[document])
    times = np.bincount(document[whole], minlength=lengths.size)
    cut = Spans(*(values[~whole] for values in (document, start, length)))
    least, rest = _coverage(lengths, cut)
    times[least.document] += least.start
    return History(times, rest, tokens)


def _coverage(lengths: np.ndarray, cut: Spans) -> tuple[Spans, Spans]:
    """How often all tokens of each document in `cut` are covered (as spans whose `start`
    is that number), and the parts that are not covered more often.
    """
    documents = np.unique(cut.document)
    # Events: +1 where a piece begins, -1 where it ends, 0 at both ends of a document.
    owner = np.concatenate((cut.document, cut.document, documents, documents))
    place = np.concatenate((
        cut.start, cut.start + cut.length, np.zeros_like(documents), lengths[documents],
    )).astype(np.int64)  # fmt: skip
    change = np.repeat((1, -1, 0, 0), (*[cut.document.size] * 2, *[documents.size] * 2))
    order = np.lexsort((place, owner))
    owner, place, change = owner[order], place[order], change[order]
    first = np.ones(owner.size, bool)
    first[1:] = (owner[1:] != owner[:-1]) | (place[1:] != place[:-1])
    firsts = np.flatnonzero(first)
    if not firsts.size:
        return NO_SPANS, NO_SPANS
    owner, place = owner[firsts], place[firsts]
    change = np.add.reduceat(change, firsts)
    # Where one piece ends and another begins, nothing changes: the intervals are one.
    edge = (change != 0) | (place == 0) | (place == lengths[owner])
    owner, place, cover = owner[edge], place[edge], np.cumsum(change[edge])
    inside = np.flatnonzero(owner[1:] == owner[:-1])
    begin, end, cover, owner = (
        place[inside],
        place[inside + 1],
        cover[inside],
        owner[inside],
    )
    bounds = np.searchsorted(owner, documents)
    least = np.minimum.reduceat(cover, bounds)
    index = np.repeat(np.arange(documents.size), np.diff([*bounds, owner.size]))
    # A part of one token predicts nothing: a document of which only such are left is done.
    lacking = (cover == least[index]) & (end - begin >= _LEAST_TOKENS)
    anything = np.zeros(documents.size, bool)
    anything[index[lacking]] = True
    partly = np.maximum.reduceat(cover, bounds) > least
    least = least + (partly & ~anything)
    keep = lacking & partly[index]
    rest = Spans(owner[keep], begin[keep], (end - begin)[keep])
    return Spans(documents, least, least), rest


def combined_pieces(
    stores: Mapping[str, TokenStore],
    base: np.ndarray,
    plans: Mapping[str, PlannedRows],
    unused: Collection[str] = (),
) -> Spans:
    """The pieces of all `plans` (by stage), with documents numbered as `base` has it:
    document 0 of source s is base[s]. Those of `unused` sources are left out.

    DataError where a source's store is not the one that a plan was built from, or a
    source is gone.
    """
    names = list(stores)
    parts = []
    for stage, plan in plans.items():
        shift = np.zeros(len(plan.stores), np.int64)
        begins = np.concatenate(([0], np.cumsum(plan.documents)))
        used = np.ones(len(plan.stores), bool)
        for number, (name, fingerprint) in enumerate(plan.stores):
            if name in unused:
                used[number] = False
                continue
            if name not in stores or not stores[name].is_called(fingerprint):
                what = "has other tokens now" if name in stores else "is no source now"
                raise DataError(
                    f"the data of stage {stage} cannot be continued: its source {name} "
                    f"{what}; restore it, or set pack.data to restart"
                )
            shift[number] = base[names.index(name)] - begins[number]
        document, start, length = plan.pieces
        owner = np.searchsorted(begins, document, "right") - 1
        spans = Spans(document + shift[owner], start, length)
        if not used.all():
            spans = Spans(*(column[used[owner]] for column in spans))
        parts.append(spans)
    return join_spans(parts)


def join_spans(parts: Sequence[Spans]) -> Spans:
    if len(parts) == 1:
        return parts[0]
    return Spans(*map(np.concatenate, zip(NO_SPANS, *parts, strict=True)))


def unseen_spans(history: History, documents: np.ndarray, lengths: np.ndarray) -> Spans:
    """What the pass under way through `documents` (sorted) has not trained on: documents
    trained on least often, whole or what is left of them.
    """
    times = history.times[documents]
    behind = documents[times == times.min()]
    split = np.isin(history.rest.document, behind)
    rest = Spans(*(column[split] for column in history.rest))
    whole = behind[~np.isin(behind, rest.document)]
    return join_spans([
        Spans(whole, np.zeros(whole.size, np.int64), lengths[whole].astype(np.int64)),
        rest,
    ])  # fmt: skip
