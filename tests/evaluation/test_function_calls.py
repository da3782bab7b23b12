"""Calls of held-out conversations: found by their tag, right when every token is a hit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import DataError
from alia_ctx.evaluation.function_calls import ConversationScores, call_spans

WORDS = {
    1: "<tool_call>",
    2: "<tool_",
    3: "call>",
    4: "\n",
    5: "<|im_start|>assistant\n",
    6: "{",
    7: "Sure.\n",
}


def decode(tokens: list[int]) -> str:
    return "".join(WORDS.get(token, "x") for token in tokens)


@pytest.mark.parametrize(
    "tokens,weights,spans",
    [
        ([9, 1, 8, 8, 9], [0, 1, 1, 1, 0], [(1, 4)]),
        ([9, 2, 3, 8], [0, 1, 1, 1], [(1, 4)]),  # a tag of several tokens
        ([9, 8, 1, 6], [0, 1, 1, 1], []),  # in the middle of words
        ([9, 1, 8, 8, 1], [0, 0, 1, 1, 0], []),  # a tag that is not trained
        ([1, 8, 9, 1, 8], [1, 1, 0, 1, 1], [(0, 2), (3, 5)]),
        ([9, 5, 1, 8], [0, 1, 1, 1], [(2, 4)]),  # the header trained too
        ([9, 7, 1, 6, 8], [0, 1, 1, 1, 1], [(2, 5)]),  # behind words
        ([9, 8, 4, 2, 3, 4, 6, 8], [0] + [1] * 7, [(3, 8)]),
        ([9, 5, 7, 1, 4, 6, 8], [0] + [1] * 6, [(3, 7)]),
        ([9, 7, 1, 8], [0, 1, 1, 1], []),  # words that name the tag
        ([9, 4, 1, 8], [0, 1, 1, 1], [(1, 4)]),
        ([9, 8], [0, 0], []),
    ],
)
def test_calls_are_trained_turns_that_begin_with_the_tag(
    tokens: list[int], weights: list[int], spans: list[Any]
) -> None:
    found = call_spans(np.array(tokens), np.array(weights), decode)
    assert found == spans
    none = np.zeros(len(tokens), bool)
    assert call_spans(np.array(tokens), np.array(weights), decode, none) == spans


def test_what_the_store_marks_as_calls_is_what_calls_are() -> None:
    tokens, weights = (
        np.array([9, 1, 8, 8, 9, 7, 8, 8]),
        np.array([0, 1, 1, 1, 0, 1, 1, 1]),
    )
    called = np.array([0, 0, 1, 1, 1, 0, 1, 1], bool)
    assert call_spans(tokens, weights, decode, called) == [(2, 4), (6, 8)]


def row() -> PackedRow:
    documents = [np.array([9, 9, 1, 8, 8, 9]), np.array([9, 1, 8, 9, 1, 7])]
    weights = [np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 0, 1, 1])]
    return PackedRow.from_documents(documents, 16, weights=weights)


SPANS = {0: [(2, 5)], 1: [(1, 3), (4, 6)]}


def scored(hits: np.ndarray, losses: np.ndarray) -> ConversationScores:
    scores = ConversationScores(("a", "b"), [0, 1], SPANS)
    scores.add(row(), losses, hits, position_offset=(0, 0))
    return scores


def test_a_call_is_exact_when_each_of_its_tokens_is_a_hit() -> None:
    losses = np.where(row().targets() >= 0, 2.0, np.nan)
    hits = row().targets() >= 0
    assert scored(hits, losses).summary() == {
        "loss": 2.0,
        "loss_by_source": {"a": 2.0, "b": 2.0},
        "calls": 3,
        "calls_exact": 1.0,
        "calls_exact_by_source": {"a": 1.0, "b": 1.0},
    }
    for position in np.flatnonzero(hits):
        missed = hits.copy()
        missed[position] = False
        summary = scored(missed, losses).summary()
        assert summary["calls_exact"] == pytest.approx(2 / 3), position
        source = "a" if position < 6 else "b"
        assert summary["calls_exact_by_source"][source] < 1
    # what is not predicted is no part of a call
    more = scored(np.ones(16, bool), losses)
    assert more.summary() == scored(hits, losses).summary()


def test_halves_of_a_row_on_two_ranks_add_up() -> None:
    losses = np.where(row().targets() >= 0, np.arange(16.0), np.nan)
    hits = row().targets() >= 0
    whole = scored(hits, losses).summary()
    for cut in range(17):
        left = np.arange(16) < cut
        parts = [
            scored(hits & mine, np.where(mine, losses, np.nan))
            for mine in (left, ~left)
        ]
        total = ConversationScores(("a", "b"), [0, 1], SPANS)
        for part in parts:
            total.merge(ConversationScores.from_json(part.to_json()))
        assert total.summary() == whole  # sums of small whole numbers are exact


def test_what_is_no_score_is_refused() -> None:
    scores = ConversationScores(("a",), [0, 0], {})
    with pytest.raises(DataError, match="hits of whole conversations"):
        scores.add(row(), np.zeros(16))
    with pytest.raises(DataError, match="hits of whole conversations"):
        scores.add(row(), np.zeros(16), np.ones(16, bool), position_offset=(0, 5))
    with pytest.raises(DataError, match="cannot be added"):
        scores.merge(ConversationScores(("b",), [0], {}))
    with pytest.raises(DataError, match="no scores of conversations"):
        ConversationScores.from_json({"sources": ["a"], "sums": [[1]]})
