"""Held-out conversations: loss by source, and which function calls a model would write
word for word.

A turn is right exactly when every token of it is a hit, as greedy decoding writes the
token of the largest logit; so nothing has to be generated.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.said import CALLS, said_of
from alia_ctx.errors import DataError
from alia_ctx.evaluation.evaluator import RowPieces

CALL_TAG = "<tool_call>"
_HEADER = "<|im_start|>assistant\n"  # trained too where the masks say so
# First of all, or behind words at the beginning of a line: words may name the tag.
_CALL = re.compile(rf"\A\s*{CALL_TAG}|^{CALL_TAG}\s*\{{", re.MULTILINE)
Span = tuple[int, int]


def call_spans(
    tokens: NDArray[np.integer[Any]],
    weights: NDArray[Any],
    decode: Callable[[list[int]], str],
    called: NDArray[np.bool_] | None = None,
) -> list[Span]:
    """Tokens [start, stop) of the calls of each turn of a conversation, parallel calls and
    stop token included, words before them not. They are trained (weight above 0).

    called: which tokens are of calls, as the store was told by the template. Where it
        marks none, calls are what begins with `CALL_TAG`, to the end of the turn.
    """
    trained = weights > 0
    if called is not None and called.any():
        return _runs(trained & called)
    spans = []
    for start, stop in _runs(trained):
        text = decode(tokens[start:stop].tolist())
        words = text.removeprefix(_HEADER)
        if match := _CALL.search(words):
            rest = len(words) - match.start()
            # The last token from which on the text still holds the whole call.
            first = bisect.bisect_right(
                range(start, stop),
                -rest,
                key=lambda number: -len(decode(tokens[number:stop].tolist())),
            )
            spans.append((start + first - 1, stop))
    return spans


def calls_of(
    store: TokenStore, numbers: Iterable[int], decode: Callable[[list[int]], str]
) -> Iterator[list[Span]]:
    """The calls of each of these documents of a store of conversations: see `call_spans`."""
    weights, said = store.weights, said_of(store)
    for number in numbers:
        begin, end = store.starts(np.array([number, number + 1])).tolist()
        tokens = store.tokens[begin:end]
        yield call_spans(
            tokens,
            np.ones(tokens.size, np.uint8) if weights is None else weights[begin:end],
            decode,
            None if said is None else said[begin:end] & CALLS > 0,
        )


def _runs(chosen: NDArray[np.bool_]) -> list[Span]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], chosen, [0]))))
    return [(start, stop) for start, stop in edges.reshape(-1, 2).tolist()]


class ConversationScores:
    """Loss by source, and calls of which every token is a hit; an `Evaluator`.

    Args:
        sources: names of the sources of conversations.
        source_of: number among them of the source of each document.
        spans: document -> its calls, as `call_spans` finds them.
    """

    def __init__(
        self,
        sources: Sequence[str],
        source_of: Sequence[int] | NDArray[np.integer[Any]],
        spans: Mapping[int, Sequence[Span]],
    ) -> None:
        self.sources, self.spans = tuple(sources), dict(spans)
        self._source_of = source_of
        self._sums = np.zeros((len(self.sources), 2))  # losses, tokens
        # (document, start of the call) -> source, tokens, hits: a context-parallel rank
        # sees some of a call's tokens
        self._calls: dict[tuple[int, int], tuple[int, int, int]] = {}

    def add(
        self,
        row: RowPieces,
        losses_T: NDArray[np.floating[Any]],
        hits_T: NDArray[np.bool_] | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        """Add one row; DataError without hits, or where a piece is no whole document."""
        if hits_T is None or any(position_offset or ()):
            raise DataError("calls are scored by the hits of whole conversations")
        offsets = row.doc_offsets.tolist()
        for document, begin, end in zip(
            row.doc_ids.tolist(), offsets[:-1], offsets[1:], strict=True
        ):
            source = int(self._source_of[document])
            losses = losses_T[begin:end]
            known = np.isfinite(losses)
            self._sums[source] += (losses[known].sum(dtype=np.float64), known.sum())
            for start, stop in self.spans.get(document, ()):
                # a token is predicted at the position before it
                first = begin + max(start, 1) - 1
                hits = int(np.count_nonzero(hits_T[first : begin + stop - 1]))
                self._count(document, start, source, stop - max(start, 1), hits)

    def _count(
        self, document: int, start: int, source: int, size: int, hits: int
    ) -> None:
        *_, before = self._calls.get((document, start), (source, size, 0))
        self._calls[document, start] = (source, size, before + hits)

    def merge(self, other: Self) -> None:
        """Add what `other` holds; DataError where its sources are others."""
        if other.sources != self.sources:
            raise DataError(
                f"scores of {', '.join(other.sources)} cannot be added to those of "
                f"{', '.join(self.sources)}"
            )
        self._sums += other._sums
        for (document, start), (source, size, hits) in other._calls.items():
            self._count(document, start, source, size, hits)

    @property
    def exact_match(self) -> float | None:
        """Share of calls of which every token is a hit; None without calls."""
        right = [hits == size for _, size, hits in self._calls.values()]
        return sum(right) / len(right) if right else None

    def summary(self) -> dict[str, Any]:
        """Loss over all predicted tokens and by source, number of calls, and the share
        that is exact, in all and by source.
        """
        losses, tokens = self._sums[:, 0], self._sums[:, 1]
        by_source: dict[str, list[bool]] = {}
        for source, size, hits in self._calls.values():
            by_source.setdefault(self.sources[source], []).append(hits == size)
        return {
            "loss": float(losses.sum() / tokens.sum()) if tokens.sum() else None,
            "loss_by_source": {
                name: float(total / count)
                for name, total, count in zip(self.sources, losses, tokens, strict=True)
                if count
            },
            "calls": len(self._calls),
            "calls_exact": self.exact_match,
            "calls_exact_by_source": {
                name: sum(right) / len(right) for name, right in by_source.items()
            },
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "sources": list(self.sources),
            "sums": self._sums.tolist(),
            "calls": [[*key, *value] for key, value in sorted(self._calls.items())],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, to be merged: it can add no rows. DataError for
        another form.
        """
        try:
            scores = cls(data["sources"], (), {})
            scores._sums += np.array(data["sums"], float).reshape(scores._sums.shape)
            for document, start, source, size, hits in data["calls"]:
                scores._count(document, start, source, size, hits)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no scores of conversations ({error!r})") from error
        return scores
