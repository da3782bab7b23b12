"""Copies that are found in passing, against comparing all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.packing import find_copies
from alia_ctx.data.tokens.store import write_store

VOCABULARY = 50


@pytest.mark.parametrize("seed", range(3))
def test_as_all_pairs_have_it(seed: int, tmp_path: Path) -> None:
    """Short documents of few words, so that many are the same by chance; none without
    tokens is.
    """
    chance = np.random.default_rng(seed)
    texts = {
        name: [chance.integers(0, 3, n) for n in chance.integers(0, 6, size)]
        for name, size in (("a", 80), ("b", 40), ("held_out", 12))
    }
    stores = {n: write_store(tmp_path / n, t, VOCABULARY) for n, t in texts.items()}
    held = stores.pop("held_out")
    copies = find_copies(stores, held)
    assert copies is not None and copies.compared
    kept = [tuple(t) for t in texts["held_out"]]
    before: dict[tuple[int, ...], tuple[str, int]] = {}
    for name in ("a", "b"):
        words = [tuple(t.tolist()) for t in texts[name]]
        expected = [(n, kept.index(w)) for n, w in enumerate(words) if w in kept and w]
        assert copies.held_out[name] == expected
        repeated = []
        for number, word in enumerate(words):
            if word and word in before:
                repeated.append((number, *before[word]))
            before.setdefault(word, (name, number))
        assert copies.repeated[name] == repeated and repeated


def test_of_much_text_only_what_may_be_held_out_is_read(tmp_path: Path) -> None:
    texts = [np.full(n, n) for n in (5, 5, 6, 7, 7, 9)]
    stores = {"a": write_store(tmp_path / "a", texts, VOCABULARY)}
    held = write_store(tmp_path / "held", [np.full(6, 6)], VOCABULARY)
    some = find_copies(stores, held, most_documents=3)
    assert some is not None and not some.compared and not some.repeated
    assert some.held_out == {"a": [(2, 0)]}
    assert find_copies(stores, held, most_documents=1) is None
    assert find_copies(stores, held, most_tokens=11) is None
    assert find_copies(stores, most_documents=3) is None
    whole = find_copies(stores, most_documents=4)
    assert whole is not None
    assert whole.repeated == {"a": [(1, "a", 0), (4, "a", 3)]}
