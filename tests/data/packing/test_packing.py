"""Pack plans: every token once per epoch, each policy's promise, rows on demand, plans
that know their data.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from alia_ctx.data.packing import (
    IGNORE,
    LengthBucket,
    PackedRow,
    PackPlan,
    PackSpec,
    build_plan,
    plan_table,
)
from alia_ctx.data.packing.policies import POLICIES
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.store import write_store
from alia_ctx.errors import ConfigError, DataError
from tests.data.packing.plans import LENGTHS, SPEC, make_store, tokens_in, tokens_of

PADDING = 3
lengths_lists = st.lists(st.integers(0, 60), min_size=1, max_size=40)
policies = st.sampled_from(list(POLICIES))


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


# -- arguments -------------------------------------------------------------------------


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


@pytest.mark.parametrize("length", [100, 128, 129, 150])
def test_context_in_use_has_the_edge_of_documents_of_one_length(
    tmp_path: Path, length: int
) -> None:
    store = write_store(tmp_path / "text", [np.arange(4, 4 + length)] * 50, 200)
    spec = PackSpec(policy="best_fit", long_docs="split")
    plan = build_plan({"text": store}, spec, 256, None, tmp_path / "plan")
    console = Console(file=io.StringIO(), width=120)
    console.print(plan_table(plan)[-1])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    [share] = re.findall(r"more than 127 .*?([\d.]+)%", shown)
    beyond = max(0, length - 128) / length
    assert float(share) == pytest.approx(100 * beyond, abs=0.006)
