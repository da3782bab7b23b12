"""How often a stage will read its text, by the blend that packs it, before it is packed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from alia_ctx.data.packing.blend import LEAST_TOKENS, buckets_of, fit_shares
from alia_ctx.data.packing.spec import PackSpec
from alia_ctx.data.tokens import TokenStore


@dataclass(frozen=True)
class TextByLength:
    """Tokens of sources, in parts by the length of their documents.

    names: of the sources. lows: int64 [parts], the least length of each part, rising.
    tokens: int64 [sources, parts].
    """

    names: tuple[str, ...]
    lows: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(
        cls, stores: Mapping[str, TokenStore], stages: Iterable[tuple[PackSpec, int]]
    ) -> TextByLength:
        """Parts so fine that each of `stages` (spec, row length) treats the documents of a
        part alike. Reads the lengths of documents, no tokens.
        """
        edges = {0, LEAST_TOKENS}
        for spec, row_length in stages:
            edges |= {bucket.min_tokens for bucket in spec.length_buckets}
            if spec.long_docs == "drop":
                edges.add(row_length + 1)
        lows = np.array(sorted(edges))
        tokens = np.zeros((len(stores), lows.size), np.int64)
        for number, store in enumerate(stores.values()):
            part = np.searchsorted(lows, store.lengths, "right") - 1
            # Weights of float64 count exactly below 2**53 tokens.
            tokens[number] = np.bincount(part, store.lengths, lows.size)
        return cls(tuple(stores), lows, tokens)

    def usable(self, spec: PackSpec, row_length: int) -> np.ndarray:
        """Tokens that a stage may draw from, int64 [sources, parts]."""
        fits = self.lows >= LEAST_TOKENS
        if spec.long_docs == "drop":
            fits &= self.lows <= row_length
        drawn = spec.drawn_from(self.names)
        of_stage = np.array([name in drawn for name in self.names])
        return np.where(of_stage[:, None] & fits, self.tokens, 0)

    def times_read(self, spec: PackSpec, row_length: int, tokens: int) -> np.ndarray:
        """How often a stage of so many `tokens` reads each part: float64 [sources, parts].
        DataError where no blend of the text meets the spec.
        """
        usable = self.usable(spec, row_length)
        drawn = [self.names.index(name) for name in spec.drawn_from(self.names)]
        buckets = buckets_of(self.lows, spec.length_buckets)
        whole = np.zeros((len(drawn), len(spec.length_buckets) + 1))
        for part, bucket in enumerate(buckets.tolist()):
            whole[:, bucket] += usable[drawn, part]
        times = np.zeros(usable.shape)
        if not whole.sum():
            return times
        names = tuple(self.names[number] for number in drawn)
        trained = fit_shares(whole, names, spec) * tokens
        passes = np.divide(trained, whole, out=np.zeros_like(whole), where=whole > 0)
        times[drawn] = passes[:, buckets]
        return np.where(usable > 0, times, 0.0)
