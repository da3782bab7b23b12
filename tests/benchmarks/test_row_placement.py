"""Which token lies where, by the rules of other programs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.row_placement import dual_chunks, even_share, offsets_of, padded, pairs


def test_documents_are_cut_as_transformer_engine_shows_it() -> None:
    """The example of its context_parallel.py: sequences of 8 and 4 tokens, two ranks."""
    offsets = np.array([0, 8, 12])
    assert dual_chunks(offsets, 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert dual_chunks(offsets, 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


def test_documents_are_filled_up() -> None:
    offsets = np.array([0, 5, 6, 14])
    assert padded(offsets, 4).tolist() == [0, 8, 12, 20]
    assert padded(offsets, 1).tolist() == offsets.tolist()
    assert dual_chunks(offsets, 2, 0).tolist() == [0, 1, -1, -1, 5, -1, 6, 7, 12, 13]
    assert dual_chunks(offsets, 2, 1).tolist() == [2, 3, 4, -1, -1, -1, 8, 9, 10, 11]


@pytest.mark.parametrize("cp", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["one", "8k", "short", "web", "mixed"])
def test_every_token_has_one_rank(kind: str, cp: int) -> None:
    offsets = offsets_of(kind, 9600)
    shares = [dual_chunks(offsets, cp, rank) for rank in range(cp)]
    assert len({len(share) for share in shares}) == 1
    held = np.concatenate(shares)
    assert np.array_equal(np.sort(held[held >= 0]), np.arange(9600))
    assert len(held) == padded(offsets, 2 * cp)[-1]
    even = np.concatenate([even_share(9600, cp, rank) for rank in range(cp)])
    assert np.array_equal(even, np.arange(9600))


def test_rows() -> None:
    assert offsets_of("one", 4096).tolist() == [0, 4096]
    assert offsets_of("short", 5000).tolist() == [0, 2048, 4096, 5000]
    assert offsets_of("mixed", 4096)[1] == 2048
    lengths = np.diff(offsets_of("8k", 100_000))
    assert lengths[:-1].min() >= 4096 and lengths.max() <= 8192
    with pytest.raises(KeyError):
        offsets_of("many", 4096)


def test_pairs_are_what_the_mask_lets_through() -> None:
    offsets = np.array([0, 3, 7])
    document = np.repeat([0, 1], [3, 4])
    mask = np.tril(document[:, None] == document)
    assert pairs(offsets) == mask.sum()
