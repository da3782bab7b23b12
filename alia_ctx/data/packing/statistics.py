"""What a plan says about itself: counts by row, source and stratum, and how much context
its tokens have.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from alia_ctx.data.packing.blend import Corpus, Stratum
from alia_ctx.data.packing.history import History
from alia_ctx.data.packing.plan_files import PackedRows


def plan_statistics(
    corpus: Corpus,
    packed: PackedRows,
    strata: list[Stratum],
    row_length: int,
    segments: int,
    earlier: History | None,
    *,
    places: int,
) -> dict[str, Any]:
    """Everything that a plan says about itself; tokens are counted as often as they are
    trained on. `earlier`: what the stages before have trained on; `places`: of all
    rows, padding included.
    """
    lengths = packed.piece_lengths
    rows = packed.row_pairs.size
    tokens = int(lengths.sum(dtype=np.int64))
    whole = corpus.lengths[packed.piece_documents]
    cut = lengths < whole
    return {
        "rows": rows,
        "row_length": row_length,
        "tokens": tokens,
        "predicted": int(packed.row_predicted.sum()),
        "fill": tokens / places,
        "pieces": int(lengths.size),
        "cut_pieces": int(cut.sum()),
        "cut_documents": int(np.unique(packed.piece_documents[cut]).size),
        "cut_documents_that_fit": int(
            np.unique(packed.piece_documents[cut & (whole <= row_length)]).size
        ),
        "segments": segments,
        "sources": _source_stats(corpus, packed, earlier),
        "strata": {
            stratum.name: {"share": stratum.share, "tokens": stratum.tokens}
            for stratum in strata
        },
        "context": context_use(lengths, row_length),
    }


def _source_stats(
    corpus: Corpus, packed: PackedRows, earlier: History | None
) -> dict[str, dict[str, Any]]:
    count = len(corpus.names)
    owner = corpus.source_of(packed.piece_documents)
    trained = np.bincount(owner, weights=packed.piece_lengths, minlength=count)
    usable_owner = corpus.source_of(corpus.usable)
    documents = np.bincount(usable_owner, minlength=count)
    tokens = np.bincount(
        usable_owner, weights=corpus.lengths[corpus.usable], minlength=count
    )
    total = trained.sum()
    in_plan = np.zeros(corpus.lengths.size, bool)
    in_plan[packed.piece_documents] = True
    seen = np.zeros(in_plan.size, np.int64) if earlier is None else earlier.tokens
    parts = [slice(low, high) for low, high in pairwise(corpus.base.tolist())]
    return {
        name: {
            "documents": int(documents[number]),
            "tokens": int(tokens[number]),
            "trained_tokens": int(trained[number]),
            "epochs": float(trained[number] / tokens[number])
            if tokens[number]
            else 0.0,
            "share": float(trained[number] / total),
            "trained_documents": int(np.count_nonzero(in_plan[parts[number]])),
            "trained_documents_seen_before": int(
                np.count_nonzero(in_plan[parts[number]] & (seen[parts[number]] > 0))
            ),
            "seen_tokens": int(seen[parts[number]].sum()),
            "seen_documents": int(np.count_nonzero(seen[parts[number]])),
            "seen_epochs": float(seen[parts[number]].sum() / tokens[number])
            if tokens[number]
            else 0.0,
            "dropped": corpus.dropped[name],
        }
        for number, name in enumerate(corpus.names)
    }


def context_use(lengths: np.ndarray, row_length: int) -> list[list[float]]:
    """[n, share of tokens that have more than n tokens of their own document before
    them], n = 0 and 8 an octave.
    """
    pieces = np.bincount(lengths, minlength=row_length + 1)
    longer = np.cumsum(pieces[::-1])[::-1]  # pieces of length >= i
    tokens = float((np.arange(pieces.size) * pieces).sum())
    # a piece of length L has L-1-n tokens with more than n before them: sum of `longer` above n+1
    beyond = np.append(np.cumsum(longer[::-1])[::-1], 0)
    points = sorted(
        {
            0,
            *(int(2 ** (step / 8)) for step in range(8 * int(np.log2(row_length)) + 1)),
            row_length - 1,
        }
    )
    return [[n, float(beyond[min(n + 2, row_length + 1)]) / tokens] for n in points]
