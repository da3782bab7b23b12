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
    prefetch_rows,
)
from alia_ctx.data.packing.build import plan_checksum
from alia_ctx.data.tokens import TokenStore, write_store
from alia_ctx.errors import ConfigError, DataError

FILL = 3
lengths_lists = st.lists(st.integers(0, 60), min_size=1, max_size=40)
policies = st.sampled_from(["concat", "best_fit"])


def make_store(folder: Path, lengths: list[int], first: int = 0) -> TokenStore:
    """A store in which each token is a number of its own, from `first`."""
    ends = np.cumsum([first, *lengths])
    return write_store(folder, [np.arange(a, b) for a, b in pairwise(ends)], 1 << 20)


def tokens_of(plan: PackPlan, rows: range | None = None) -> Counter[int]:
    found: Counter[int] = Counter()
    for index in rows or range(len(plan)):
        row = plan.row(index)
        found.update(row.tokens(0, row.real_tokens).tolist())
    return found


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
        assert np.array_equal(plan.document_lengths(index), np.diff(row.doc_offsets))
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
        [np.arange(a, b) for a, b in pairwise(ends)], length, fill_id=FILL
    )
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    assert np.array_equal(row.tokens(start, stop), row.tokens()[start:stop])
    assert np.array_equal(row.targets(start, stop), row.targets()[start:stop])
    assert (row.tokens()[row.real_tokens :] == FILL).all()


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


def test_prefetched_ranges_are_the_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", [7, 20, 33, 5] * 10)
    plan = build_plan(
        {"a": store}, PackSpec("concat", "split"), 32, None, tmp_path / "p"
    )
    for depth in (0, 1, 3):
        order = [3, 0, 5, 4, 1]
        for index, loaded in zip(
            order, prefetch_rows(plan, order, [(8, 16), (16, 24)], depth), strict=True
        ):
            row = plan.row(index)
            assert loaded.row.index == index
            assert np.array_equal(loaded.tokens, row.tokens(8, 24))
            assert np.array_equal(loaded.targets, row.targets(8, 24))


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
        spec = PackSpec("best_fit", "split", length_buckets=buckets, short_docs=short)  # type: ignore[arg-type]
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


# -- held out --------------------------------------------------------------------------


def test_held_out_documents_are_never_trained_on(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    spec = PackSpec("best_fit", "split", holdout_documents=12, holdout_min_tokens=50)
    held = build_plan(blend_stores, spec, 128, None, tmp_path / "held", held_out=True)
    apart = tokens_of(held)
    assert sum(each["documents"] for each in held.stats["sources"].values()) == 24
    for policy, row, seed in (("best_fit", 128, 0), ("concat", 512, 7)):
        other = PackSpec(policy, "split", holdout_documents=12, holdout_min_tokens=50)  # type: ignore[arg-type]
        train = build_plan(blend_stores, other, row, None, tmp_path / policy, seed=seed)
        assert not set(tokens_of(train)) & set(apart)
        assert len(tokens_of(train)) + len(apart) == sum(
            len(tokens_in(store)) for store in blend_stores.values()
        )


def test_holding_out_everything_is_refused(
    tmp_path: Path, blend_stores: dict[str, TokenStore]
) -> None:
    spec = PackSpec("best_fit", "split", holdout_documents=10, holdout_min_tokens=395)
    with pytest.raises(
        DataError, match=r"source long: has \d+ documents of 395 tokens"
    ):
        build_plan(blend_stores, spec, 128, None, tmp_path / "p")


# -- identity --------------------------------------------------------------------------

SPEC = PackSpec("best_fit", "split")
LENGTHS = [5, 9, 30, 2, 17] * 8


def test_equal_input_is_equal_bytes_and_the_seed_matters(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    sums = [
        plan_checksum(
            build_plan(stores, SPEC, 32, 60, tmp_path / name, seed=seed).directory
        )
        for name, seed in (("p", 1), ("q", 1), ("r", 2))
    ]
    assert sums[0] == sums[1] != sums[2]


def test_a_plan_refuses_what_it_was_not_built_from(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    build_plan(stores, SPEC, 32, 60, tmp_path / "p", seed=1)
    PackPlan.open(tmp_path / "p", stores, spec=SPEC, row_length=32, seed=1, rows=60)
    for asked, told in (
        ({"seed": 2}, "seed: 1 in the plan, 2 now"),
        ({"row_length": 64}, "row_length: 32 in the plan, 64 now"),
        ({"rows": 61}, "rows: 60 in the plan, 61 now"),
        (
            {"spec": PackSpec("concat", "split")},
            "spec.policy: best_fit in the plan, concat now",
        ),
        (
            {"spec": PackSpec("best_fit", "split", weights={"a": 1.0})},
            r"spec.weights.a: None in the plan, 1.0 now",
        ),
        ({"held_out": True}, "held_out: False in the plan, True now"),
    ):
        with pytest.raises(DataError, match=told):
            PackPlan.open(tmp_path / "p", stores, **asked)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="sources: a in the plan, b now"):
        PackPlan.open(tmp_path / "p", {"b": stores["a"]})


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_changed_token_or_length_of_a_store_is_noticed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_plan({"a": make_store(folder / "a", LENGTHS)}, SPEC, 32, 60, folder / "p")
        if data.draw(st.booleans()):
            raw = bytearray((folder / "a.bin").read_bytes())
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
            (folder / "a.bin").write_bytes(raw)
        else:
            changed = list(LENGTHS)
            changed[data.draw(st.integers(0, len(changed) - 1))] += 1
            make_store(folder / "a", changed)
        with pytest.raises(DataError, match=r"store a: content .* in the plan, .* now"):
            PackPlan.open(folder / "p", {"a": TokenStore(folder / "a")})


def test_a_finished_plan_is_opened_and_another_refused(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    plan = build_plan(stores, SPEC, 32, 60, tmp_path / "p")
    made = (tmp_path / "p" / "plan.json").stat().st_mtime_ns
    assert (
        build_plan(stores, SPEC, 32, 60, tmp_path / "p").fingerprint == plan.fingerprint
    )
    assert (tmp_path / "p" / "plan.json").stat().st_mtime_ns == made
    with pytest.raises(
        DataError, match="another plan is there:\n  row_length: 32 in the plan, 64 now"
    ):
        build_plan(stores, SPEC, 64, 60, tmp_path / "p")
    assert (
        build_plan(stores, SPEC, 64, 60, tmp_path / "p", overwrite=True).row_length
        == 64
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not empty and holds no plan"):
        build_plan(stores, SPEC, 32, 60, tmp_path / "other")


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    with pytest.raises(DataError, match="holds no pack plan"):
        PackPlan.open(tmp_path / "p", stores)
    build_plan(stores, SPEC, 32, 60, tmp_path / "p")
    array = tmp_path / "p" / "piece_lengths.npy"
    whole = array.read_bytes()
    for damaged in (whole[:-4], b"", whole[:20]):
        array.write_bytes(damaged)
        with pytest.raises(DataError, match=r"piece_lengths\.npy"):
            PackPlan.open(tmp_path / "p", stores)
    np.save(array, np.zeros(3, np.int32))
    with pytest.raises(DataError, match=r"piece_lengths\.npy"):
        PackPlan.open(tmp_path / "p", stores)
    (tmp_path / "p" / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json"):
        PackPlan.open(tmp_path / "p", stores)


def test_arguments_that_make_no_plan(tmp_path: Path) -> None:
    stores = {"a": make_store(tmp_path / "a", LENGTHS)}
    with pytest.raises(DataError, match="row_length=1 "):
        build_plan(stores, SPEC, 1, 60, tmp_path / "p")
    with pytest.raises(DataError, match="n_rows=0"):
        build_plan(stores, SPEC, 32, 0, tmp_path / "p")
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
        holdout_documents=-1,
        holdout_min_tokens=1,
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
        "p.holdout_documents",
        "p.holdout_min_tokens",
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
