"""Pack plans: every token once per epoch, each policy's promise, rows on demand, plans
that know their data.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.data.packing import (
    IGNORE,
    LengthBucket,
    PackedRow,
    PackPlan,
    PackSpec,
    build_plan,
)
from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.data.tokens import TokenStore
from alia_ctx.errors import ConfigError, DataError
from tests.data.packing.plans import LENGTHS, make_store, tokens_of

PADDING = 3
lengths_lists = st.lists(st.integers(0, 60), min_size=1, max_size=40)
policies = st.sampled_from(list(POLICIES))


def tokens_in(store: TokenStore, keep: object = lambda length: length >= 2) -> set[int]:
    lengths = store.lengths.tolist()
    return {
        int(t)
        for n, length in enumerate(lengths)
        if keep(length)
        for t in store.document(n)
    }  # type: ignore[operator]


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_lists,
    more=lengths_lists,
    row=st.integers(2, 40),
    policy=policies,
    seed=st.integers(0, 9),
)
def test_one_epoch_has_every_token_once(
    lengths: list[int], more: list[int], row: int, policy: str, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        first = make_store(Path(name) / "a", lengths)
        second = make_store(Path(name) / "b", more, first=first.n_tokens)
        wanted = tokens_in(first) | tokens_in(second)
        stores = {"a": first, "b": second}
        if not wanted:
            with pytest.raises(DataError, match="no documents are left"):
                build_plan(
                    stores, PackSpec(policy, "split"), row, None, Path(name) / "p"
                )  # type: ignore[arg-type]
            return
        plan = build_plan(
            stores, PackSpec(policy, "split"), row, None, Path(name) / "p", seed=seed
        )  # type: ignore[arg-type]
        found = tokens_of(plan)
        assert set(found) == wanted and set(found.values()) == {1}
        assert plan.stats["tokens"] == len(wanted)
        check_rows(plan, stores, row, policy)


def check_rows(
    plan: PackPlan, stores: dict[str, TokenStore], row_length: int, policy: str
) -> None:
    """The contract of every row, and what the policy promises about cuts."""
    for index in range(len(plan)):
        row = plan.row(index)
        tokens, targets = row.tokens(), row.targets()
        assert (
            tokens.dtype == targets.dtype == np.int64
            and tokens.size == targets.size == row_length
        )
        assert (
            row.doc_offsets[0] == 0
            and (np.diff(row.doc_offsets) > 0).all()
            and row.doc_offsets[-1] <= row_length
        )
        expected = np.full(row_length, IGNORE)
        for piece, (number, source, start) in enumerate(
            zip(row.doc_ids, row.sources, row.piece_starts, strict=True)
        ):
            low, high = row.doc_offsets[piece : piece + 2]
            store = stores[plan.sources[source]]
            assert np.array_equal(
                tokens[low:high], store.document(number, start, start + high - low)
            )
            expected[low : high - 1] = tokens[low + 1 : high]
            if policy == "best_fit":
                whole = int(store.lengths[number])
                assert (
                    high - low == whole
                    if whole <= row_length
                    else start % row_length == 0
                )
        assert np.array_equal(targets, expected)
        assert row.predicted == (targets != IGNORE).sum()
        assert plan.predicted(index) == row.predicted
        sizes = [*np.diff(row.doc_offsets), row_length - row.real_tokens]
        assert plan.attention_pairs([index])[0] == sum(
            int(n) * (int(n) + 1) // 2 for n in sizes
        )


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_lists,
    row=st.integers(2, 40),
    policy=policies,
    rows=st.integers(1, 120),
)
def test_epochs_follow_each_other_whole(
    lengths: list[int], row: int, policy: str, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name) / "a", lengths)
        wanted = tokens_in(store)
        if not wanted:
            return
        epoch = len(
            build_plan(
                {"a": store}, PackSpec(policy, "split"), row, None, Path(name) / "e"
            )
        )  # type: ignore[arg-type]
        plan = build_plan(
            {"a": store}, PackSpec(policy, "split"), row, rows, Path(name) / "p"
        )  # type: ignore[arg-type]
        assert len(plan) == rows
        found = tokens_of(plan)
        whole = rows // epoch
        assert set(found.values()) <= {whole, whole + 1}
        if whole:
            assert set(found) == wanted
            assert tokens_of(plan, range(epoch)) == Counter(wanted)
        assert plan.stats["sources"]["a"]["epochs"] == pytest.approx(
            sum(found.values()) / len(wanted)
        )


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=5, max_size=40),
    row=st.integers(8, 40),
    policy=policies,
)
def test_drop_leaves_out_exactly_the_long_documents(
    lengths: list[int], row: int, policy: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name) / "a", lengths)
        spec = PackSpec(policy, "drop")  # type: ignore[arg-type]
        if min(lengths) > row:
            with pytest.raises(DataError, match="left out"):
                build_plan({"a": store}, spec, row, None, Path(name) / "p")
            return
        plan = build_plan({"a": store}, spec, row, None, Path(name) / "p")
        assert set(tokens_of(plan)) == tokens_in(store, lambda length: length <= row)
        dropped = plan.stats["sources"]["a"]["dropped"]
        assert dropped["long_documents"] == sum(each > row for each in lengths)
        assert dropped["long_tokens"] == sum(each for each in lengths if each > row)


def test_documents_that_predict_nothing_are_dropped_and_counted(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", [0, 1, 5, 1, 2])
    plan = build_plan(
        {"a": store}, PackSpec("best_fit", "split"), 8, None, tmp_path / "p"
    )
    assert plan.stats["tokens"] == 7
    assert plan.stats["sources"]["a"]["dropped"]["short_documents"] == 3
    assert plan.stats["sources"]["a"]["dropped"]["short_tokens"] == 2


@settings(max_examples=40, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_any_part_of_a_row_is_that_part_of_the_row(
    data: st.DataObject, sizes: list[int]
) -> None:
    length = sum(sizes) + data.draw(st.integers(0, 9))
    ends = np.cumsum([100, *sizes])
    row = PackedRow.from_documents(
        [np.arange(a, b) for a, b in pairwise(ends)], length, padding_id=PADDING
    )
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert np.array_equal(row.tokens(start, stop), row.tokens()[start:stop])
    assert np.array_equal(row.targets(start, stop), row.targets()[start:stop])
    assert (row.tokens()[row.real_tokens :] == PADDING).all()


def test_rows_of_many_short_documents_of_several_sources(tmp_path: Path) -> None:
    stores = {
        "a": make_store(tmp_path / "a", [2, 3, 4] * 200),
        "b": make_store(tmp_path / "b", [2, 5] * 200, 5000),
    }
    plan = build_plan(
        stores, PackSpec("best_fit", "split"), 512, None, tmp_path / "p"
    )  # gathered, not copied by piece
    check_rows(plan, stores, 512, "best_fit")
    assert set(tokens_of(plan)) == tokens_in(stores["a"]) | tokens_in(stores["b"])


def test_ranges_outside_the_row_are_refused() -> None:
    row = PackedRow.from_documents([np.arange(5)], 8)
    for start, stop in ((-1, 3), (4, 9), (5, 4)):
        with pytest.raises(ValueError, match="not within a row"):
            row.tokens(start, stop)
    with pytest.raises(ValueError, match="do not make a row"):
        PackedRow.from_documents([np.arange(9)], 8)


# -- blend -----------------------------------------------------------------------------


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


# -- arguments -------------------------------------------------------------------------

SPEC = PackSpec("best_fit", "split")


def test_arguments_that_make_no_plan(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    with pytest.raises(DataError, match="row_length=1 "):
        build_plan(stores, SPEC, 1, 60, tmp_path / "p")
    with pytest.raises(DataError, match="n_rows=0"):
        build_plan(stores, SPEC, 32, 0, tmp_path / "p")
    with pytest.raises(DataError, match="rows_per_update=0"):
        build_plan(stores, SPEC, 32, 60, tmp_path / "p", rows_per_update=0)
    with pytest.raises(DataError, match="need n_rows"):
        build_plan(
            stores,
            PackSpec("concat", "split", weights={"a": 1.0}),
            32,
            None,
            tmp_path / "p",
        )
    with pytest.raises(ConfigError, match="no such source"):
        build_plan(
            stores,
            PackSpec("concat", "split", weights={"b": 1.0}),
            32,
            9,
            tmp_path / "p",
        )
    assert not (tmp_path / "p").exists()


def test_spec_problems_are_all_found() -> None:
    spec = PackSpec(
        "first_fit",
        "keep",
        weights={"a": 0.9, "c": -0.1},
        length_buckets=[LengthBucket(9, 0.8), LengthBucket(4, 0.8)],  # type: ignore[arg-type]
        max_epochs=0,
    )
    keys = [problem.key for problem in spec.problems("p", ["a", "b"])]
    assert keys == [
        "p.policy",
        "p.long_docs",
        "p.weights.b",
        "p.weights.c",
        "p.weights",
        "p.length_buckets",
        "p.length_buckets",
        "p.max_epochs",
    ]
    assert PackSpec("concat", "drop").problems("p", ["a"]) == []
    assert (
        PackSpec("concat", "drop", short_docs="apart").problems("p", ["a"])[0].key
        == "p.short_docs"
    )


def test_stats_are_plain_json(tmp_path: Path) -> None:
    plan = build_plan(
        {"a": make_store(tmp_path / "a", LENGTHS)}, SPEC, 32, 60, tmp_path / "p"
    )
    assert json.loads(json.dumps(plan.stats)) == plan.stats
