"""Held-out documents among the training documents, against comparing all pairs by sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.packing import PackSpec, build_plan, contamination
from alia_ctx.data.packing.contamination import NEAR, RUN, find_contamination
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.errors import DataError

VOCABULARY = 500


def runs(tokens: np.ndarray) -> set[tuple[int, ...]]:
    values = tokens.tolist()
    return {tuple(values[i : i + RUN]) for i in range(len(values) - RUN + 1)}


def brute_force(store: TokenStore, held_out: TokenStore) -> tuple[list[int], list[int]]:
    """Numbers of the exact and of the near documents, by comparing all pairs."""
    others = [held_out.document(n) for n in range(held_out.n_documents)]
    sets = [runs(tokens) for tokens in others]
    exact, near = [], []
    for number in range(store.n_documents):
        tokens = store.document(number)
        own = runs(tokens)
        if any(tokens.size and np.array_equal(tokens, other) for other in others):
            exact.append(number)
        elif any(
            own and other and len(own & other) >= NEAR * min(len(own), len(other))
            for other in sets
        ):
            near.append(number)
    return exact, near


def damaged(
    tokens: np.ndarray, share: float, chance: np.random.Generator
) -> np.ndarray:
    """The document with a share of its tokens replaced."""
    out = tokens.copy()
    places = chance.random(tokens.size) < share
    out[places] = chance.integers(0, VOCABULARY, int(places.sum()))
    return out


def corpus(folder: Path, seed: int) -> tuple[dict[str, TokenStore], TokenStore]:
    chance = np.random.default_rng(seed)

    def text(n: int) -> np.ndarray:
        return chance.integers(0, VOCABULARY, n)

    held = [text(int(n)) for n in chance.integers(1, 900, 25)] + [
        text(RUN - 1),
        text(4),
    ]
    boilerplate = text(40)
    documents = [text(int(n)) for n in chance.integers(0, 600, 120)]
    for number, other in enumerate(held):
        if number % 3 == 0:
            documents.append(other)
        documents.append(damaged(other, 0.01 * (number % 8), chance))
        documents.append(other[: other.size // 2])
        documents.append(
            np.concatenate((text(300), other[other.size // 3 :], text(90)))
        )
        documents.append(np.concatenate((boilerplate, text(200))))
        documents.append(np.concatenate((other[:40], text(500))))
    held = [
        np.concatenate((boilerplate, other)) if n % 2 else other
        for n, other in enumerate(held)
    ]
    order = chance.permutation(len(documents))
    half = len(order) // 2
    stores = {
        name: write_store(folder / name, [documents[n] for n in part], VOCABULARY)
        for name, part in (("a", order[:half]), ("b", order[half:]))
    }
    return stores, write_store(folder / "held", held, VOCABULARY)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 997, 1 << 22])
def test_what_is_found_is_what_comparing_all_pairs_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, block: int
) -> None:
    monkeypatch.setattr(contamination, "_BLOCK_TOKENS", block)
    stores, held_out = corpus(tmp_path, seed)
    result = find_contamination(stores, held_out)
    for name, store in stores.items():
        exact, near = brute_force(store, held_out)
        assert result.exact[name].tolist() == exact
        assert result.near[name].tolist() == near
        assert exact and near


def test_a_sample_of_the_runs_finds_nearly_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of much held-out text only a sample is looked up; a document at the very edge may
    be missed then, one well above it may not.
    """
    monkeypatch.setattr(contamination, "_FULL_TOKENS", 3000)
    stores, held_out = corpus(tmp_path, 1)
    assert held_out.n_tokens > 4 * 3000 // 2
    result = find_contamination(stores, held_out)
    for name, store in stores.items():
        exact, near = brute_force(store, held_out)
        long = [n for n in exact if store.lengths[n] >= 200]
        assert set(long) <= set(result.exact[name].tolist())
        assert set(result.near[name].tolist()) <= set(near)


def test_dropping_leaves_out_just_those(tmp_path: Path) -> None:
    stores, held_out = corpus(tmp_path, 2)
    spec = PackSpec("best_fit", "split", drop_contaminated=True)
    plan = build_plan(stores, spec, 256, None, tmp_path / "p", held_out=held_out)
    found = find_contamination(stores, held_out)
    for number, (name, store) in enumerate(stores.items()):
        packed = {
            int(document)
            for index in range(len(plan))
            for row in [plan.row(index)]
            for document in row.doc_ids[row.sources == number]
        }
        usable = set(np.flatnonzero(store.lengths >= 2).tolist())
        left_out = set(found.documents(name).tolist())
        assert packed == usable - left_out
        dropped = plan.stats["sources"][name]["dropped"]
        assert dropped["contaminated_documents"] == len(left_out & usable)
    assert plan.identity["held_out"] == held_out.fingerprint
    with pytest.raises(DataError, match="drop_contaminated needs held-out text"):
        build_plan(stores, spec, 256, None, tmp_path / "q")
    other = write_store(tmp_path / "other", [np.arange(50)], VOCABULARY)
    with pytest.raises(DataError, match=r"held_out: .* in the plan, .* now"):
        build_plan(stores, spec, 256, None, tmp_path / "p", held_out=other)


def test_the_same_store_on_both_sides_is_refused(tmp_path: Path) -> None:
    stores, _ = corpus(tmp_path, 3)
    for suffix in (".bin", ".idx"):
        (tmp_path / f"copy{suffix}").write_bytes((tmp_path / f"b{suffix}").read_bytes())
    with pytest.raises(DataError, match=r"same tokens as source b"):
        find_contamination(stores, TokenStore(tmp_path / "copy"))


def test_exact_copies_are_found_whatever_held_out_documents_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of texts that are mostly boilerplate, repeated, short, or not in the sample."""
    monkeypatch.setattr(contamination, "_FULL_TOKENS", 500)
    chance = np.random.default_rng(5)
    boilerplate, repeated = chance.integers(0, 500, 180), chance.integers(0, 500, 300)
    held = [
        np.concatenate((boilerplate, chance.integers(0, 500, 20))) for _ in "a" * 90
    ]
    held += [repeated] * 70 + [chance.integers(0, 500, n) for n in [*range(1, 30)] * 5]
    other = [chance.integers(0, 500, 200) for _ in range(40)]
    order = chance.permutation(len(held))
    store = write_store(tmp_path / "t", [*[held[n] for n in order], *other], 500)
    held_out = write_store(tmp_path / "h", held, 500)
    result = find_contamination({"t": store}, held_out)
    assert result.exact["t"].tolist() == list(range(len(held)))
    assert result.near["t"].size == 0
    assert result.held_out.tolist() == list(range(len(held)))


@pytest.mark.parametrize("full", [1 << 21, 500])
def test_what_documents_share_with_many_others_does_not_hide_what_is_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: int
) -> None:
    monkeypatch.setattr(contamination, "_FULL_TOKENS", full)
    chance = np.random.default_rng(6)
    template = chance.integers(0, 500, 400)
    words = [chance.integers(0, 500, 60) for _ in range(100)]
    held = [np.concatenate((template, own)) for own in words]
    with_own = [np.concatenate((template, own[:45], [7])) for own in words]
    excerpt = [own[:40] for own in words]  # without the template
    elsewhere = [np.concatenate((template[::-1], own)) for own in words]
    without = [np.concatenate((template, chance.integers(0, 500, 60))) for _ in words]
    store = write_store(
        tmp_path / "t", [*with_own, *excerpt, *without, *elsewhere], 500
    )
    result = find_contamination({"t": store}, write_store(tmp_path / "h", held, 500))
    assert result.exact["t"].size == 0
    # 48 of its 61 own runs, then 28 of 28, none, and 48 of 60
    assert result.near["t"].tolist() == [*range(200), *range(300, 400)]


def test_versions_of_one_text_are_like_one_another_however_many_they_are(
    tmp_path: Path,
) -> None:
    """Nothing is its own in a text of which a hundred versions are held out."""
    chance = np.random.default_rng(7)
    text = chance.integers(0, 500, 600)
    versions = [damaged(text, 0.001, chance) for _ in range(200)]
    half = np.concatenate((text[:300], chance.integers(0, 500, 300)))
    quarter = np.concatenate((text[:150], chance.integers(0, 500, 450)))
    held_out = write_store(tmp_path / "h", versions[:100] * 3, 500)
    store = write_store(tmp_path / "t", [*versions, text[:400], half, quarter], 500)
    result = find_contamination({"t": store}, held_out)
    assert set(result.exact["t"]) >= set(range(100))
    found = set(result.documents("t").tolist())
    assert found >= set(range(201)) and 202 not in found
