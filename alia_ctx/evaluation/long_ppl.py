"""LongPPL: perplexity over the tokens that need far context (Fang et al., arXiv 2410.23771).

A contrast model finds them. A token is a key token where its log-likelihood with all of
the document before it exceeds that with a short context by more than `difference` (the
paper's long-short difference, LSD > alpha), and is itself above `log_likelihood` (LCL >
beta). Short contexts are windows of `short` tokens and what is measured after them, as
in the paper's code: window i begins at `stride * i`, and of its tokens those from
`short` on are measured, so each has `short` to `short + stride` tokens before it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alia_ctx.errors import DataError
from alia_ctx.evaluation.evaluator import RowPieces
from alia_ctx.evaluation.held_out import Documents, SpanRows

DIFFERENCE, LOG_LIKELIHOOD = 2.0, -2.0  # alpha and beta of the paper's experiments


@dataclass(frozen=True)
class Windows:
    """Short contexts of `short` tokens, measured `stride` tokens at a time."""

    short: int
    stride: int

    @classmethod
    def of(cls, short: int, row_length: int) -> Windows:
        """As the paper has it: 1,024 tokens after 4,096, or the same share of `short`; fewer
        where rows of `row_length` tokens, which are longer than `short`, hold no more.
        """
        return cls(short, max(1, min(short // 4, row_length - short)))

    def starts(self, length: int) -> range:
        """Where windows over a document of `length` tokens begin."""
        return range(0, max(0, length - self.short), self.stride)

    def rows(
        self, text: Documents, documents: Sequence[int], length: int, row_length: int
    ) -> SpanRows:
        """Rows (packed sequences) of `row_length` tokens that hold all windows over the
        first `length` tokens of `documents`.
        """
        size = self.short + self.stride
        spans = [
            (document, start, min(start + size, length))
            for document in documents
            for start in self.starts(length)
        ]
        return SpanRows(text, spans, row_length, row_length // size)


class TokenLosses:
    """An `Evaluator` that keeps the loss of every predicted token, by document and
    position; of several that a token was given, the last. `skip` leaves out that many
    at the beginning of each piece: what a window only reads.

    Args:
        length: positions that are kept of each document.
    """

    def __init__(self, length: int, skip: int = 0) -> None:
        self.length, self.skip = length, skip
        self.losses: dict[int, NDArray[np.float64]] = {}  # by document, [length], nan

    def add(
        self,
        row: RowPieces,
        losses_T: NDArray[np.floating[Any]],
        hits_T: NDArray[np.bool_] | None = None,
        *,
        position_offset: Sequence[int] | None = None,
    ) -> None:
        """Add one row. The loss at a position predicts the token after it, so that of a
        window of which `skip` tokens are only read, the first that counts is at skip - 1.
        """
        offsets = position_offset or [0] * len(row.doc_ids)
        for piece, document in enumerate(row.doc_ids.tolist()):
            start, stop = row.doc_offsets[piece : piece + 2].tolist()
            start += max(0, self.skip - 1)
            if start >= stop:
                continue
            at = offsets[piece] + start - int(row.doc_offsets[piece])
            values = np.asarray(losses_T[start:stop], np.float64)
            kept = self._of(document)[at : at + stop - start]
            there = ~np.isnan(values[: len(kept)])
            kept[there] = values[: len(kept)][there]

    def _of(self, document: int) -> NDArray[np.float64]:
        empty = np.full(self.length, np.nan)
        return self.losses.setdefault(document, empty)

    def merge(self, other: TokenLosses) -> None:
        """Add all that `other` holds."""
        for document, values in other.losses.items():
            there = ~np.isnan(values)
            self._of(document)[there] = values[there]

    def to_json(self) -> dict[str, Any]:
        """All that this holds, in JSON's types; `from_json` reads it back."""
        # As bytes of fp32, which they are made of: rows have 163,840 tokens.
        losses = {
            str(document): base64.b64encode(values.astype("<f4").tobytes()).decode()
            for document, values in self.losses.items()
        }
        return {"length": self.length, "skip": self.skip, "losses": losses}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenLosses:
        """The inverse of `to_json`; DataError where the data is of another form."""
        try:
            made = cls(int(data["length"]), int(data["skip"]))
            for document, values in data["losses"].items():
                made._of(int(document))[:] = np.frombuffer(
                    base64.b64decode(values, validate=True), "<f4"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"no losses as `to_json` writes them: {error!r}") from error
        return made


@dataclass(frozen=True)
class KeyTokens:
    """Which positions predict a key token, bool [length] by document, and how they were
    found.
    """

    positions: Mapping[int, NDArray[np.bool_]]
    contrast_model: str
    long_context: int
    short_context: int
    difference: float = DIFFERENCE
    log_likelihood: float = LOG_LIKELIHOOD

    @classmethod
    def find(
        cls,
        whole: TokenLosses,
        windows: TokenLosses,
        contrast_model: str,
        long_context: int,
        short_context: int,
    ) -> KeyTokens:
        """From a contrast model's losses with the whole document and in windows."""
        found = {}
        for document, losses in whole.losses.items():
            short = windows.losses.get(document, np.full_like(losses, np.nan))
            # A comparison with nan, where a window has no loss, is false.
            found[document] = (short - losses > DIFFERENCE) & (-losses > LOG_LIKELIHOOD)
        return cls(found, contrast_model, long_context, short_context)

    @property
    def settings(self) -> dict[str, Any]:
        """How they were found, in JSON's types."""
        return {
            "contrast_model": self.contrast_model,
            "long_context": self.long_context,
            "short_context": self.short_context,
            "threshold": {
                "difference": self.difference,
                "log_likelihood": self.log_likelihood,
            },
        }

    def long_ppl(self, losses: TokenLosses) -> dict[str, Any]:
        """LongPPL and plain perplexity of a model's losses over the whole documents.
        None where there is no token to average over.
        """
        kept = [
            (
                values[~np.isnan(values)],
                values[self.positions[document] & ~np.isnan(values)],
            )
            for document, values in losses.losses.items()
            if document in self.positions
        ]
        everything = np.concatenate([np.empty(0), *(all_ for all_, _ in kept)])
        keys = np.concatenate([np.empty(0), *(key for _, key in kept)])
        return {
            "key_tokens": len(keys),
            "tokens": len(everything),
            "long_ppl": math.exp(min(keys.mean(), 700.0)) if len(keys) else None,
            "ppl": math.exp(min(everything.mean(), 700.0)) if len(everything) else None,
            **self.settings,
        }
