"""One training row: which documents it holds, and their tokens and targets on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

# target of a position that predicts nothing; torch's cross entropy has the same default
IGNORE = -100
# mean tokens a piece under which one indexed gather beats a copy per piece (benchmarks/packing.py)
_GATHER_BELOW = 256


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A row of `length` tokens made of document pieces that do not see each other.

    index: row number in its plan.
    doc_offsets: int64 [n+1]; piece i is tokens [doc_offsets[i], doc_offsets[i+1]).
        Tokens after the last offset are padding: for attention one more document, never
        predicted, never counted.
    doc_ids, sources: int64 [n] and int32 [n]; number of the document in its source, and
        of the source in the plan.
    piece_starts: int64 [n]; position in its document at which each piece begins (0
        unless the document was cut).
    """

    index: int
    length: int
    doc_offsets: np.ndarray
    doc_ids: np.ndarray
    sources: np.ndarray
    piece_starts: np.ndarray
    padding_id: int
    _tokens: tuple[np.ndarray, ...]  # all tokens of each source
    _begins: np.ndarray  # int64 [n]: where each piece begins in its source's tokens
    # uint8: loss weights of each source's tokens; () where no source has any
    _weights: tuple[np.ndarray | None, ...] = ()
    _predicted: int | None = None  # as the plan says; None: all but each piece's first
    # float32 [n]: what the loss of each piece's targets counts; None: 1
    piece_weights: np.ndarray | None = None

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[np.ndarray],
        length: int,
        padding_id: int = 0,
        index: int = 0,
        weights: Sequence[np.ndarray] | None = None,
    ) -> PackedRow:
        """A row from token arrays in memory, in order;

        for tests and for text that is in no store. `weights`: 0 or 1 for each token of
        each document, its weight as a target; None is 1 throughout.
        """
        sizes = np.array([len(tokens) for tokens in documents], np.int64)
        if sizes.sum() > length or (sizes < 1).any():
            raise ValueError(
                f"documents of {sizes.tolist()} tokens do not make a row of {length}"
            )
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        tokens = np.concatenate(
            [np.empty(0, np.int64), *(np.asarray(each, np.int64) for each in documents)]
        )
        numbers = np.arange(sizes.size, dtype=np.int64)
        zeros = np.zeros_like(numbers)
        loss_weights: tuple[np.ndarray, ...] = ()
        predicted = None
        if weights is not None:
            if [len(document) for document in weights] != sizes.tolist():
                raise ValueError("every token needs exactly one weight")
            loss_weights = (np.concatenate([np.empty(0, np.uint8), *weights]) != 0,)
            predicted = int(sum(np.count_nonzero(part[1:]) for part in weights))
        return cls(
            index,
            length,
            offsets,
            numbers,
            zeros.astype(np.int32),
            zeros,
            padding_id,
            (tokens,),
            offsets[:-1],
            loss_weights,
            predicted,
        )

    @property
    def real_tokens(self) -> int:
        """Tokens of documents, padding not counted."""
        return int(self.doc_offsets[-1])

    @property
    def predicted(self) -> int:
        """Positions with a target: each piece predicts those of its tokens, the first
        left out, that have a loss weight.
        """
        if self._predicted is not None:
            return self._predicted
        return self.real_tokens - self.doc_ids.size

    def predicted_of_pieces(self) -> np.ndarray:
        """Positions with a target in each piece, int64 [n]."""
        targets = self.targets()[: self.real_tokens] != IGNORE
        if not self.doc_ids.size:
            return np.zeros(0, np.int64)
        return np.add.reduceat(targets, self.doc_offsets[:-1], dtype=np.int64)

    def loss_weights(self, start: int, stop: int) -> np.ndarray:
        """What the losses of row positions [start, stop) count, float32."""
        if self.piece_weights is None:
            return np.ones(stop - start, np.float32)
        positions = np.arange(start, stop)
        piece = np.searchsorted(self.doc_offsets, positions, "right") - 1
        return np.append(self.piece_weights, np.float32(0))[piece]

    def tokens(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Token ids of row positions [start, stop), padding included; int64 [stop - start].

        Only pieces that overlap the range are read from the store.
        """
        stop = self.length if stop is None else stop
        if not 0 <= start <= stop <= self.length:
            raise ValueError(
                f"tokens [{start}, {stop}) are not within a row of {self.length}"
            )
        out = np.empty(stop - start, np.int64)
        end = max(start, min(stop, self.real_tokens))
        out[end - start :] = self.padding_id
        if end > start:
            self._read(self._tokens, out[: end - start], start, end)
        return out

    def _read(
        self,
        stores: tuple[np.ndarray | None, ...],
        out: np.ndarray,
        start: int,
        end: int,
    ) -> None:
        """Fill `out` with what `stores` hold for row positions [start, end); a source
        whose store is None leaves its positions as they are.
        """
        first = int(np.searchsorted(self.doc_offsets, start, "right")) - 1
        last = int(np.searchsorted(self.doc_offsets, end, "left"))
        edges = np.clip(self.doc_offsets[first : last + 1], start, end)
        begins = self._begins[first:last] + (edges[:-1] - self.doc_offsets[first:last])
        sources = self.sources[first:last]
        if last - first > 8 and out.size < _GATHER_BELOW * (last - first):
            _gather(stores, out, edges - start, begins, sources)
            return
        for source, begin, low, high in zip(
            sources.tolist(),
            begins.tolist(),
            (edges[:-1] - start).tolist(),
            (edges[1:] - start).tolist(),
            strict=True,
        ):
            store = stores[source]
            if store is not None:
                out[low:high] = store[begin : begin + high - low]

    def targets(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """For row positions [start, stop) the next token of the piece, else IGNORE
        (last of a piece, padding, loss weight 0); int64.
        """
        return self.tokens_and_targets(start, stop)[1]

    def tokens_and_targets(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both at once: the store is read once instead of twice."""
        stop = self.length if stop is None else stop
        tokens = self.tokens(start, min(stop + 1, self.length))
        targets = np.empty(stop - start, np.int64)
        end = max(start, min(stop, self.real_tokens))
        following = tokens[1 : end - start + 1]
        targets[: following.size] = following
        targets[end - start :] = IGNORE
        first, last = np.searchsorted(self.doc_offsets, (start + 1, stop + 1))
        targets[self.doc_offsets[first:last] - 1 - start] = IGNORE
        last_target = min(start + 1 + following.size, self.real_tokens)
        if self._weights and start + 1 < last_target:
            weights = np.ones(last_target - start - 1, np.uint8)
            self._read(self._weights, weights, start + 1, last_target)
            targets[: weights.size][weights == 0] = IGNORE
        return tokens[: stop - start], targets


def weigh_by_piece(rows: Sequence[PackedRow]) -> list[PackedRow]:
    """The rows of an update with weights under which the mean loss of its predicted
    tokens is the mean over its documents of each one's own mean loss. Their mean over the
    predicted tokens is 1; documents that predict nothing do not count.
    """
    counts = [row.predicted_of_pieces() for row in rows]
    tokens = sum(int(count.sum()) for count in counts)
    documents = sum(int(np.count_nonzero(count)) for count in counts)
    each = tokens / max(documents, 1)
    return [
        replace(row, piece_weights=(each / np.maximum(count, 1)).astype(np.float32))
        for row, count in zip(rows, counts, strict=True)
    ]


def _gather(
    stores: tuple[np.ndarray | None, ...],
    out: np.ndarray,
    edges: np.ndarray,
    begins: np.ndarray,
    sources: np.ndarray,
) -> None:
    """Fill `out` by one indexed read per source:

    no Python per piece, for rows of very short documents.
    """
    sizes = np.diff(edges)
    where = np.repeat(begins - edges[:-1], sizes) + np.arange(out.size)
    present = np.unique(sources).tolist()
    owner = np.repeat(sources, sizes) if len(present) > 1 else None
    for source in present:
        store = stores[source]
        if store is None:
            continue
        if owner is None:
            np.copyto(out, store[where])
        else:
            of_source = owner == source
            out[of_source] = store[where[of_source]]
