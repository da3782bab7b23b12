"""Which keys each context-parallel rank needs and who sends them:

literal cases, and properties of random rows.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.errors import DataError, LayoutError
from alia_ctx.nn.context_parallel import (
    Balance,
    RankGeometry,
    Transfer,
    attention_offsets,
    rank_geometry,
)

CUTS = st.sampled_from(
    [
        None,
        Balance(pairs_per_token=0),
        Balance(pairs_per_token=5, most_cuts=2, tolerance=1.5),
    ]
)


def row_tokens(geometry: RankGeometry) -> np.ndarray:
    return np.concatenate([np.arange(*r) for r in geometry.ranges])


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """(document offsets, row length, cp) with fill in some."""
    cp = draw(st.sampled_from([1, 2, 3, 4]))
    length = 2 * cp * draw(st.integers(1, 12))
    bounds = draw(st.sets(st.integers(1, length), max_size=10))
    return np.array([0, *sorted(bounds)], dtype=np.int64), length, cp


def pairs_of(geometry: RankGeometry) -> set[tuple[int, int]]:
    """All (query, key) row tokens that the rank's kernel calls would attend, from the
    offsets they get.
    """
    buffer = np.concatenate([np.arange(*r) for r in geometry.key_ranges])
    found = set()
    for chunk in geometry.chunks:
        queries, keys = np.arange(*chunk.row), buffer[slice(*chunk.keys)]
        documents = zip(
            pairwise(chunk.query_offsets), pairwise(chunk.key_offsets), strict=True
        )
        for (q0, q1), (k0, k1) in documents:
            for i in range(q0, q1):
                visible = k1 - (q1 - 1 - i)  # bottom-right alignment
                found |= {(int(queries[i]), int(key)) for key in keys[k0:visible]}
    return found


def test_zigzag_with_two_ranks_and_a_document_across_chunks() -> None:
    """16 tokens, documents of 3, 7 and 6: rank 0 holds chunks 0 and 3, rank 1 chunks 1 and 2."""
    first, second = (
        rank_geometry(np.array([0, 3, 10, 16]), 16, 2, rank) for rank in (0, 1)
    )
    assert first.positions.tolist() == [0, 1, 2, 0, 2, 3, 4, 5]
    assert first.key_ranges == ((0, 4), (10, 16))
    assert [c.query_offsets.tolist() for c in first.chunks] == [[0, 3, 4], [0, 4]]
    assert [c.key_offsets.tolist() for c in first.chunks] == [[0, 3, 4], [0, 6]]
    assert first.receives == (
        Transfer(source=1, source_start=6, target=0, target_start=4, length=2),
    )

    assert second.positions.tolist() == [1, 2, 3, 4, 5, 6, 0, 1]
    assert second.key_ranges == ((3, 12),)
    assert [c.query_offsets.tolist() for c in second.chunks] == [[0, 4], [0, 2, 4]]
    assert [c.key_offsets.tolist() for c in second.chunks] == [[0, 5], [0, 7, 9]]
    assert second.receives == (
        Transfer(source=0, source_start=3, target=1, target_start=0, length=1),
    )
    assert second.sends == first.receives and first.sends == second.receives


def test_one_rank_needs_no_buffer() -> None:
    geometry = rank_geometry(np.array([0, 5]), 8, 1, 0)
    assert (geometry.local, geometry.sends, geometry.receives) == ((), (), ())
    assert geometry.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert geometry.chunks[0].query_offsets.tolist() == [0, 5, 8]


def test_one_document_moves_three_quarters_of_a_gather() -> None:
    """Rank r's later chunk sees the chunks before it only: 2*cp-r chunks, of which it holds two."""
    cp, chunk = 8, 10
    moved = [
        sum(t.length for t in rank_geometry(np.array([0, 160]), 160, cp, rank).receives)
        for rank in range(cp)
    ]
    assert moved == [(2 * cp - rank - 2) * chunk for rank in range(cp)]


@settings(deadline=None)
@given(rows(), CUTS)
def test_the_ranks_attend_exactly_the_mask(
    row: tuple[np.ndarray, int, int], balance: Balance | None
) -> None:
    offsets, length, cp = row
    document = np.searchsorted(
        attention_offsets(offsets, length), np.arange(length), side="right"
    )
    expected = {
        (q, k)
        for q in range(length)
        for k in range(q + 1)
        if document[q] == document[k]
    }
    ranks = [rank_geometry(offsets, length, cp, rank, balance) for rank in range(cp)]
    parts = [pairs_of(geometry) for geometry in ranks]
    assert set().union(*parts) == expected
    assert sum(map(len, parts)) == len(expected)
    assert sum(c.attended_pairs() for g in ranks for c in g.chunks) == len(expected)


@settings(deadline=None)
@given(rows(), CUTS)
def test_transfers_fill_each_buffer_once_with_the_right_tokens(
    row: tuple[np.ndarray, int, int], balance: Balance | None
) -> None:
    offsets, length, cp = row
    if cp == 1:
        return
    ranks = [rank_geometry(offsets, length, cp, rank, balance) for rank in range(cp)]
    held = [row_tokens(geometry) for geometry in ranks]
    assert sorted(np.concatenate(held)) == list(range(length))
    for rank, geometry in enumerate(ranks):
        assert geometry.tokens == length // cp
        buffer = np.full(geometry.buffer_tokens, -1)
        for move in (*geometry.local, *geometry.receives):
            assert move.target == rank
            place = slice(move.target_start, move.target_start + move.length)
            assert (buffer[place] == -1).all()
            buffer[place] = held[move.source][
                move.source_start : move.source_start + move.length
            ]
        assert buffer.tolist() == [
            t for key_range in geometry.key_ranges for t in range(*key_range)
        ]
        # Both sides list the messages between two ranks in one order, or they would be mixed up.
        for other, peer in enumerate(ranks):
            assert [t for t in geometry.receives if t.source == other] == [
                t for t in peer.sends if t.target == rank
            ]


@pytest.mark.parametrize("cp", [2, 3, 8])
def test_balancing_leaves_one_document_to_the_zigzag(cp: int) -> None:
    length = 48 * cp
    for rank in range(cp):
        plain = rank_geometry(np.array([0, length]), length, cp, rank)
        assert rank_geometry(
            np.array([0, length]), length, cp, rank, Balance(0)
        ).positions.tolist() == (plain.positions.tolist())


def test_balancing_evens_out_a_long_document_that_ends_early() -> None:
    """A zigzag of 4 ranks gives the rank that holds the long document's end 1.75 times the mean."""
    offsets, length = np.array([0, 2048, *range(2056, 4097, 8)]), 4096

    def busiest(balance: Balance | None) -> float:
        ranks = [rank_geometry(offsets, length, 4, rank, balance) for rank in range(4)]
        loads = [sum(c.attended_pairs() for c in g.chunks) for g in ranks]
        return max(loads) / np.mean(loads)

    assert busiest(None) > 1.7
    assert busiest(Balance(0, most_cuts=2)) < busiest(None)
    assert busiest(Balance(0, most_cuts=8)) < 1.05


def test_balancing_cuts_no_further_than_it_must() -> None:
    """Where linear layers dominate, attention's imbalance is within the tolerance and
    two chunks a rank are kept.
    """
    offsets = np.array([0, 2048, *range(2056, 4097, 8)])
    assert (
        len(rank_geometry(offsets, 4096, 4, 0, Balance(pairs_per_token=1e6)).chunks)
        <= 2
    )
    assert (
        len(rank_geometry(offsets, 4096, 4, 0, Balance(pairs_per_token=0)).chunks) > 2
    )


def test_a_row_that_cp_does_not_divide() -> None:
    with pytest.raises(LayoutError, match=r"row of 100 tokens.*2\*cp=6"):
        rank_geometry(np.array([0, 100]), 100, 3, 0)


@pytest.mark.parametrize("offsets", [[1, 5], [0, 5, 5], [0, 9, 3], [], [0, 17]])
def test_broken_offsets(offsets: list[int]) -> None:
    with pytest.raises(DataError, match="build the plan again"):
        rank_geometry(np.array(offsets, dtype=np.int64), 16, 1, 0)
