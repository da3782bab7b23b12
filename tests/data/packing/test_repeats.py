"""Copies and near copies among the sources, against sources that were made to hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.packing import find_repeats
from alia_ctx.data.tokens.store import TokenStore, write_store

VOCABULARY = 5000


def words(generator: np.random.Generator, length: int) -> np.ndarray:
    return generator.integers(1, VOCABULARY, length)


def changed(document: np.ndarray, every: int) -> np.ndarray:
    """With another word at every so many tokens: of the runs of 13, 13 in `every` go."""
    other = document.copy()
    other[every // 2 :: every] = 0
    return other


def stores(folder: Path, **sources: list[np.ndarray]) -> dict[str, TokenStore]:
    for name, documents in sources.items():
        write_store(folder / name, documents, VOCABULARY)
    return {name: TokenStore(folder / name) for name in sources}


def test_copies_are_counted_over_all_sources(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    one, two, three = (words(generator, n) for n in (100, 300, 5))
    found = find_repeats(
        stores(tmp_path, a=[one, two, one, three], b=[two, three, three, one[:99]])
    )
    assert (found["a"].documents, found["a"].copies) == (4, 1)
    assert (found["b"].documents, found["b"].copies) == (4, 3)


@pytest.mark.parametrize(("every", "is_near"), [(400, True), (16, False)])
def test_what_is_nearly_another(every: int, is_near: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    texts = [words(generator, 900) for _ in range(12)]
    found = find_repeats(
        stores(tmp_path, a=texts, b=[changed(texts[3], every), words(generator, 500)])
    )
    assert [found[n].near for n in "ab"] == ([1, 1] if is_near else [0, 0])
    assert [found[n].copies for n in "ab"] == [0, 0]
    assert [found[n].compared for n in "ab"] == [12, 2]


def test_as_brute_force_has_it(tmp_path: Path) -> None:
    """Sets of runs compared pair by pair; texts that share a middle in growing measure."""
    generator = np.random.default_rng(3)
    shared = words(generator, 400)
    texts = [
        np.concatenate((words(generator, n), shared, words(generator, n)))
        for n in (0, 5, 20, 40, 100, 200, 400)
    ]
    texts += [shared[:300], words(generator, 300)]
    runs = [{tuple(t[i : i + 13].tolist()) for i in range(len(t) - 12)} for t in texts]
    near = {
        i
        for i, mine in enumerate(runs)
        for j, other in enumerate(runs)
        if i != j and len(mine & other) >= 0.5 * min(len(mine), len(other))
    }
    assert 0 < len(near) < len(texts)
    found = find_repeats(stores(tmp_path, a=texts))
    assert found["a"].near == len(near)


def test_of_large_sources_an_even_sample_is_compared(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    made = stores(tmp_path, a=[words(generator, 100) for _ in range(50)])
    assert find_repeats(made, sample_tokens=1000)["a"].compared == 10
    assert find_repeats(made, sample_tokens=50)["a"].compared == 0


def test_documents_without_tokens_are_no_copies(tmp_path: Path) -> None:
    nothing = np.empty(0, np.int64)
    found = find_repeats(stores(tmp_path, a=[nothing, nothing]))
    assert (found["a"].copies, found["a"].compared, found["a"].near) == (0, 0, 0)
