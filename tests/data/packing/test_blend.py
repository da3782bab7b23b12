"""Weights of sources and length buckets are shares of tokens, all along a plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.packing import (
    LengthBucket,
    PackPlan,
    PackSpec,
    build_plan,
)
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import DataError
from tests.data.packing.plans import make_store, tokens_in, tokens_of


@pytest.fixture
def blend_stores(tmp_path: Path) -> dict[str, TokenStore]:
    chance = np.random.default_rng(0)
    long = chance.integers(2, 400, 400).tolist()
    short = chance.integers(2, 60, 1500).tolist()
    return {
        "long": make_store(tmp_path / "long", long),
        "short": make_store(tmp_path / "short", short, 1 << 18),
    }


def test_weights_are_shares_of_tokens(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    spec = PackSpec("best_fit", "split", weights={"long": 0.25, "short": 0.75})
    plan = build_plan(blend_stores, spec, 128, 1200, tmp_path / "p")
    sources = plan.stats["sources"]
    assert sources["long"]["share"] == pytest.approx(0.25, abs=0.01)
    epochs = 0.75 * plan.stats["tokens"] / sources["short"]["tokens"]
    assert sources["short"]["epochs"] == pytest.approx(epochs, rel=0.02)
    found = tokens_of(plan)
    for name in (
        blend_stores
    ):  # no document gets ahead of another by more than the epoch under way
        counts = {found[token] for token in tokens_in(blend_stores[name])}
        assert max(counts) - min(counts) <= 1, name


def test_the_blend_is_the_same_all_along_the_plan(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    spec = PackSpec("best_fit", "split", weights={"long": 0.5, "short": 0.5})
    plan = build_plan(blend_stores, spec, 128, 1200, tmp_path / "p")
    for start in range(0, 1200, 300):
        rows = [plan.row(index) for index in range(start, start + 300)]
        long = sum(
            int(np.diff(row.doc_offsets)[row.sources == 0].sum()) for row in rows
        )
        assert long / sum(row.real_tokens for row in rows) == pytest.approx(
            0.5, abs=0.06
        )


def test_length_buckets_are_shares_of_tokens(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    buckets = [LengthBucket(100, 0.3), LengthBucket(300, 0.5)]
    spec = PackSpec("best_fit", "split", length_buckets=buckets)
    plan = build_plan(blend_stores, spec, 512, 400, tmp_path / "p")
    assert shares_by_length(plan, blend_stores, (100, 300)) == pytest.approx(
        [0.2, 0.3, 0.5], abs=0.02
    )


def test_weights_and_buckets_together_meet_both(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    weights = {"long": 0.6, "short": 0.4}
    spec = PackSpec(
        "best_fit", "split", weights=weights, length_buckets=[LengthBucket(40, 0.7)]
    )
    plan = build_plan(blend_stores, spec, 512, 400, tmp_path / "p")
    assert plan.stats["sources"]["long"]["share"] == pytest.approx(0.6, abs=0.02)
    assert shares_by_length(plan, blend_stores, (40,)) == pytest.approx(
        [0.3, 0.7], abs=0.02
    )


def test_an_impossible_blend_says_why(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    none_so_long = PackSpec(
        "best_fit", "split", length_buckets=[LengthBucket(5000, 0.5)]
    )
    with pytest.raises(DataError, match=r"nothing is there for 5000\+ tokens"):
        build_plan(blend_stores, none_so_long, 512, 40, tmp_path / "p")
    # "short" has no documents of 100 tokens, so 80% of it leaves 20% at most for them
    weights = {"long": 0.2, "short": 0.8}
    against = PackSpec(
        "best_fit", "split", weights=weights, length_buckets=[LengthBucket(100, 0.5)]
    )
    with pytest.raises(DataError, match="contradict"):
        build_plan(blend_stores, against, 512, 40, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def shares_by_length(
    plan: PackPlan, stores: dict[str, TokenStore], bounds: tuple[int, ...]
) -> list[float]:
    sums = np.zeros(len(bounds) + 1)
    for index in range(len(plan)):
        row = plan.row(index)
        for number, source, size in zip(
            row.doc_ids, row.sources, np.diff(row.doc_offsets), strict=True
        ):
            sums[
                np.searchsorted(
                    bounds, stores[plan.sources[source]].lengths[number], "right"
                )
            ] += size
    return (sums / sums.sum()).tolist()


def test_short_documents_apart_never_share_a_row_with_long_ones(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    buckets = [LengthBucket(100, 0.5)]
    long = [store.lengths >= 100 for store in blend_stores.values()]
    kinds = {}
    for short in ("apart", "with_long"):
        spec = PackSpec(
            "best_fit",
            "split",
            length_buckets=buckets,
            short_docs=short,  # type: ignore[arg-type]
        )
        plan = build_plan(blend_stores, spec, 512, 200, tmp_path / short)
        rows = [plan.row(index) for index in range(len(plan))]
        kinds[short] = [
            len(
                {
                    bool(long[source][number])
                    for number, source in zip(row.doc_ids, row.sources, strict=True)
                }
            )
            for row in rows
        ]
    assert set(kinds["apart"]) == {1}
    assert 2 in kinds["with_long"]


def test_repetition_is_refused_above_its_limit(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    weights = {"long": 0.1, "short": 0.9}
    spec = PackSpec("best_fit", "split", weights=weights, max_epochs=2)
    with pytest.raises(DataError, match=r"short: \d+\.\d+ epochs"):
        build_plan(blend_stores, spec, 128, 1200, tmp_path / "p")
    build_plan(blend_stores, spec, 128, 600, tmp_path / "p")
